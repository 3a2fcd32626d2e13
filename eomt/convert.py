"""What `eomt convert` does: authors' checkpoint ↔ hub directory, written only once it is read back equal."""

import json
from pathlib import Path

import torch
from transformers import AutoImageProcessor
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from .configuration import as_pair
from .configuration.labels import PACKAGED, LabelSpace, label_space
from .configuration.sizes import parse_size
from .image_processing import EoMTImageProcessor
from .inference.loading import load_model, require_model
from .modeling_eomt import EoMTForUniversalSegmentation, convert_to_authors, load_authors_checkpoint
from .modeling_eomt.weights.inferred_config import config_from_checkpoint, describe_config
from .modeling_eomt.weights.state_dicts import read_config, read_state_dict, write_state_dict
from .training.files import atomic, require_free, require_writable

FILES = (".bin", ".ckpt", ".pt", ".pth", ".safetensors")


def convert(args) -> None:
    """In the direction that the source says; `args` as the command's parser gives them."""
    require_free(args.destination, args.force, args.source)  # before minutes of reading
    require_writable(args.destination.parent)
    if args.image_size:
        args.image_size = parse_size(*args.image_size)
    if _is_hub(args.source):
        _to_authors(args)
    else:
        _to_hub(args)


def _is_hub(source: str) -> bool:
    """A directory with a configuration, or what can only be a name on the hub."""
    path = Path(source)
    if path.exists():
        return (path / "config.json").is_file()
    if path.suffix in FILES or path.is_absolute() or source.startswith("."):
        raise FileNotFoundError(f"there is no file or directory {source}")
    return source.count("/") == 1


def _to_hub(args) -> None:
    if args.delta_from:
        raise ValueError("--delta-from is for hub → authors'; deltas are read with --reference-backbone")
    if args.destination.suffix in FILES:
        raise ValueError(f"{args.source} is an authors' checkpoint, so {args.destination} must be a directory")
    state = read_state_dict(args.source)
    mean = state.get("network.encoder.pixel_mean")
    if mean is not None and not mean.any() and not args.reference_backbone:
        raise ValueError(f"{args.source} holds deltas to DINOv3; give its weights as --reference-backbone")
    config = config_from_checkpoint(
        state,
        heads=args.heads,
        image_size=args.image_size,
        task=args.task,
        labels=_labels(args.labels),
        stuff_label_ids=args.stuff,
        saved=read_config(args.source),
    )
    print(describe_config(config))
    model = load_authors_checkpoint(state, config, reference_backbone=args.reference_backbone)
    print(f"masking   {_masking(model)}")

    with atomic(args.destination, folder=True, force=args.force) as folder:
        model.save_pretrained(folder)
        _processor(config, state).save_pretrained(folder)
        again = EoMTForUniversalSegmentation.from_pretrained(folder).state_dict()
        changed = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, again[name])]
        if changed:  # cannot happen; were it to, a wrong model would be the worst answer
            raise RuntimeError(f"reloaded weights differ: {', '.join(changed)}")
    print(f"{len(again)} tensors, reloaded and equal: {args.destination}")


def _to_authors(args) -> None:
    for name in ("task", "labels", "stuff", "image_size", "heads", "reference_backbone"):
        if getattr(args, name) is not None:
            raise ValueError(f"--{name.replace('_', '-')} is for authors' → hub; {args.source} is a hub directory")
    suffix = args.destination.suffix
    if suffix not in FILES:
        raise ValueError(f"{args.destination} must end in one of {', '.join(FILES)}: {args.source} is a hub directory")
    require_model(args.source)
    model = load_model(args.source)
    if not isinstance(model, EoMTForUniversalSegmentation):
        raise ValueError(f"{args.source} is a {type(model).__name__}, not an EoMT")
    print(describe_config(model.config))
    print(f"masking   {_masking(model)}")
    statistics = _pixel_statistics(args)
    state = convert_to_authors(model, args.delta_from) | statistics
    state = {key: tensor.contiguous() for key, tensor in state.items()}

    with atomic(args.destination, force=args.force) as file:
        write_state_dict(file, state, model.config.to_json_string(use_diff=False), wrap=suffix == ".ckpt")
        again = read_state_dict(file)
        if again.keys() != state.keys() or not all(torch.equal(again[key], tensor) for key, tensor in state.items()):
            raise RuntimeError("the file read back differs from what was written")
    print(f"{len(state)} tensors, read back and equal: {args.destination}")


def _pixel_statistics(args) -> dict[str, torch.Tensor]:
    """The source's mean and deviation as the authors' buffers; none where it has no image processor, or ImageNet's."""
    try:
        processor = AutoImageProcessor.from_pretrained(args.source)
    except OSError:
        return {}
    found = torch.tensor([processor.image_mean, processor.image_std])  # [2, 3]
    if torch.allclose(found, torch.tensor([IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD]), atol=1e-6):
        return {}
    if args.delta_from:
        raise ValueError(f"--delta-from needs ImageNet's mean and deviation; {args.source} has {found.tolist()}")
    mean, std = found.view(2, 1, 3, 1, 1)
    return {"network.encoder.pixel_mean": mean, "network.encoder.pixel_std": std}


def _processor(config, state):
    """Image processor of the model; the checkpoint's own mean and deviation where it does not hold deltas."""
    statistics = {}
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


def _masking(model) -> str:
    probabilities = " ".join(f"{value:g}" for value in model.attn_mask_probs.tolist())
    return f"probabilities {probabilities}" + ("" if model.attn_mask_probs.any() else ": off, as annealed to the end")


def _labels(given: str | None):
    """--labels → `LabelSpace`, or None."""
    if given is None:
        return None
    if given in PACKAGED:
        return label_space(given)
    path = Path(given)
    if not path.is_file():
        raise ValueError(f"--labels {given} is neither a file nor one of {', '.join(PACKAGED)}")
    try:
        text = path.read_text(encoding="utf-8")
        names = (
            json.loads(text) if path.suffix == ".json" else [line.strip() for line in text.splitlines() if line.strip()]
        )
    except (ValueError, RecursionError) as error:
        raise ValueError(f"--labels {given} is not a readable file of names: {error}") from None
    if isinstance(names, dict):
        if sorted(names) != sorted(map(str, range(len(names)))):
            raise ValueError(f"--labels {given}: its keys must be the labels 0 to {len(names) - 1}")
        names = [names[str(label)] for label in range(len(names))]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"--labels {given} must hold a list of names, or label → name")
    return LabelSpace(path.stem, names)
