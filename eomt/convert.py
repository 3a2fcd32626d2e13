"""`eomt convert`: convert an authors' checkpoint to a folder for transformers, and back. Weights stay bit for bit.

The configuration is inferred from the shapes of the weights and printed before any file is written. The result is
read back and kept only if all weights are equal.
"""

import json
from pathlib import Path

import torch
from transformers import AutoImageProcessor
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from .configuration import as_pair, find_backbone
from .configuration.labels import PACKAGED, LabelSpace, label_space
from .configuration.pmt import PMTConfig
from .image_processing import EoMTImageProcessor
from .loading import load_model, require_model
from .modeling_eomt import EoMTForUniversalSegmentation, convert_to_authors, load_authors_checkpoint
from .modeling_eomt.weights.inferred_config import describe_config
from .modeling_eomt.weights.published import Published, open_published, read_published
from .modeling_eomt.weights.state_dicts import read_state_dict, write_state_dict
from .options import ConvertOptions
from .training.data.folders import numbered_classes
from .training.files import atomic, require_free, require_writable

FILES = (".bin", ".ckpt", ".pt", ".pth", ".safetensors")
TO_HUB_ONLY = ("task", "labels", "stuff", "image_size", "heads", "backbone", "reference_backbone")


def convert(source: str, destination: Path, options: ConvertOptions) -> int:
    """Convert a saved model to an authors' checkpoint, and any other source to a folder. Returns the exit code."""
    require_free(destination, options.force, source)  # first: reading the source takes minutes
    require_writable(destination.parent)
    published = read_published(source) if is_hub(source) else open_published(source)
    if published is None:  # a saved model
        to_authors(source, destination, options)
    else:
        to_hub(source, published, destination, options)
    return 0


def is_hub(source: str) -> bool:
    """Whether the source is a folder with a configuration, or a name that only the hub can have."""
    path = Path(source)
    if path.exists():
        return (path / "config.json").is_file()
    if path.suffix in FILES or path.is_absolute() or source.startswith("."):
        raise FileNotFoundError(f"there is no file or folder {source}")
    return source.count("/") == 1


def to_hub(source: str, published: Published, destination: Path, options: ConvertOptions) -> None:
    if options.delta_from:
        raise ValueError("--delta-from is for saved models; use --reference-backbone to read differences")
    if destination.suffix in FILES:
        raise ValueError(f"{source} is an authors' checkpoint, so {destination} must be a folder")
    config = published.config(
        heads=options.heads,
        backbone=options.backbone,
        image_size=options.image_size,
        task=options.task,
        labels=read_labels(options.labels) if options.labels else None,
        stuff_label_ids=None if options.stuff is None else list(options.stuff),
    )
    print(describe_config(config))
    model = load_authors_checkpoint(published.state, config, reference_backbone=options.reference_backbone)
    print(f"masking   {masking(model)}")

    with atomic(destination, folder=True, force=options.force) as folder:
        model.save_pretrained(folder)
        image_processor(config, published.state).save_pretrained(folder)
        again = type(model).from_pretrained(folder).state_dict()
        changed = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, again[name])]
        if changed:
            raise RuntimeError(f"reloaded weights differ: {', '.join(changed)}")
    print(f"{len(again)} tensors, reloaded and equal: {destination}")


def to_authors(source: str, destination: Path, options: ConvertOptions) -> None:
    for name in TO_HUB_ONLY:
        if getattr(options, name) is not None:
            raise ValueError(f"--{name.replace('_', '-')} is for authors' checkpoints; {source} is a saved model")
    if destination.suffix not in FILES:
        raise ValueError(f"{source} is a saved model, so {destination} must end in one of {', '.join(FILES)}")
    require_model(source)
    model = load_model(source)
    if not isinstance(model, EoMTForUniversalSegmentation):
        raise ValueError(f"{source} is a {type(model).__name__}, not an EoMT")
    print(describe_config(model.config))
    print(f"masking   {masking(model)}")
    statistics = pixel_statistics(source, options.delta_from)
    state = convert_to_authors(model, options.delta_from) | statistics
    state = {key: tensor.contiguous() for key, tensor in state.items()}

    with atomic(destination, force=options.force) as file:
        wrap = destination.suffix == ".ckpt"
        write_state_dict(file, state, model.config.to_json_string(use_diff=False), wrap=wrap)
        again = read_state_dict(file)
        if again.keys() != state.keys() or not all(torch.equal(again[key], tensor) for key, tensor in state.items()):
            raise RuntimeError(f"the weights read back from {file} differ")
    print(f"{len(state)} tensors, read back and equal: {destination}")


def pixel_statistics(source: str, delta_from: str | None) -> dict[str, torch.Tensor]:
    """Mean and deviation of the source's image processor, as the authors' buffers (1, 3, 1, 1).

    Empty without an image processor, and for ImageNet's values.
    """
    try:
        processor = AutoImageProcessor.from_pretrained(source)
    except OSError:
        return {}
    values = (processor.image_mean, processor.image_std)  # one number, or one for each channel
    found = torch.stack([torch.tensor(value, dtype=torch.float32).expand(3) for value in values])  # [2, 3]
    if torch.allclose(found, torch.tensor([IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD]), atol=1e-6):
        return {}
    if delta_from:
        raise ValueError(f"--delta-from needs ImageNet's mean and deviation; {source} has {found.tolist()}")
    mean, std = found.view(2, 1, 3, 1, 1)
    return {"network.encoder.pixel_mean": mean, "network.encoder.pixel_std": std}


def image_processor(config, state) -> EoMTImageProcessor:
    """The model's image processor, with the mean and deviation of the checkpoint.

    The checkpoint of PMT's decoder alone has none; then they are the backbone's. A checkpoint of differences has zeros.
    """
    statistics = {}
    if isinstance(config, PMTConfig):
        row = find_backbone(config.encoder_name)
        if row.pixel_mean:
            statistics = {"image_mean": row.pixel_mean, "image_std": row.pixel_std}
    for ours, theirs in (("image_mean", "pixel_mean"), ("image_std", "pixel_std")):
        values = state.get(f"network.encoder.{theirs}")
        if values is not None and values.any():
            statistics[ours] = [round(value, 8) for value in values.flatten().tolist()]
    return EoMTImageProcessor(
        task=config.task,
        size=as_pair(config.image_size),
        stuff_label_ids=list(config.stuff_label_ids) if config.task == "panoptic" else None,
        **statistics,
    )


def masking(model) -> str:
    """The probabilities of masked attention as text, for the printed description."""
    probabilities = " ".join(f"{value:g}" for value in model.attn_mask_probs.tolist())
    note = "" if model.attn_mask_probs.any() else ": off, annealing has ended"
    return f"probabilities {probabilities}{note}"


def read_labels(given: str) -> LabelSpace:
    """Read a packaged label space, a JSON file (a list or {label: name}), or a text file with one name per line."""
    if given in PACKAGED:
        return label_space(given)
    path = Path(given)
    if not path.is_file():
        raise ValueError(f"--labels {given} is neither a file nor one of {', '.join(PACKAGED)}")
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        numbered = numbered_classes(json.loads(text), given)
        names = [numbered[label] for label in sorted(numbered)]
    else:
        names = [line.strip() for line in text.splitlines()]
    return LabelSpace(path.stem, [name for name in names if name])
