"""A tiny model, synthetic samples and arguments for tests of the trainer."""

import datasets
import torch
from torch.utils.data import Dataset

from eomt.configuration import EoMTConfig, PMTConfig
from eomt.modeling_eomt import EoMTForUniversalSegmentation, PMTForUniversalSegmentation
from eomt.training import EoMTTrainingArguments

SIZE = 32
TINY_RUN = (
    "--hidden-size 32 --num-hidden-layers 3 --num-attention-heads 2 --num-blocks 2 --num-queries 8 --patch-size 8 "
    "--train-num-points 64 --dataloader-num-workers 0"
)
"""Options of `eomt train` for a model of seconds."""


def tiny_model(seed=0, config_class=EoMTConfig, **overrides):
    torch.manual_seed(seed)
    fields = {"image_size": SIZE, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    fields |= {"num_blocks": 2, "num_queries": 6, "train_num_points": 64, "layerscale_value": 0.1}
    fields |= {"id2label": {0: "thing", 1: "stuff"}, "stuff_label_ids": [1]}
    config = config_class.for_backbone("vit_small_patch14_reg4_dinov2", **(fields | overrides))
    model_class = PMTForUniversalSegmentation if config_class is PMTConfig else EoMTForUniversalSegmentation
    return model_class(config)


def tiny_pmt(seed=0, **overrides):
    return tiny_model(seed, PMTConfig, **overrides)


def overridden(command: str, options) -> list[str]:
    """The words of a command, with some options replaced."""
    kept, keep = [], True
    for word in command.split():
        if word.startswith("--"):
            keep = word not in options
        if keep:
            kept.append(word)
    return [*kept, *options]


class Samples(Dataset):
    """Squares on a background, with other noise on each access (as augmentation); every fifth image is empty."""

    def __init__(self, count=8, noise=0.1):
        self.count, self.noise = count, noise

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        masks = torch.zeros(2, SIZE, SIZE, dtype=torch.bool)
        low = 2 + index % 7
        masks[0, low : low + 16, low + 3 : low + 19] = True
        masks[1] = ~masks[0]
        pixels = torch.where(masks[0], 200.0, 60.0).expand(3, -1, -1) + 255 * self.noise * torch.randn(3, SIZE, SIZE)
        keep = 0 if index % 5 == 4 else 2
        return {
            "pixel_values": pixels.clamp(0, 255).to(torch.uint8),
            "mask_labels": masks[:keep],
            "class_labels": torch.tensor([0, 1])[:keep],
            "file_name": f"image{index}.png",
        }


def streamed(count=16, shards=4):
    """The samples as a stream of the `datasets` library. Its shards are shuffled in each pass."""
    numbers = datasets.Dataset.from_dict({"number": range(count)}).to_iterable_dataset(num_shards=shards)
    numbers = numbers.shuffle(seed=1, buffer_size=1)
    return numbers.map(_sample_of, remove_columns=["number"])


def _sample_of(row: dict) -> dict:  # not a lambda: from Python 3.14 on, workers are no longer forked
    return Samples()[row["number"]]


class Broken(Samples):
    """Samples, with some images of NaN."""

    def __init__(self, count, broken):
        super().__init__(count)
        self.broken = broken

    def __getitem__(self, index):
        sample = super().__getitem__(index)
        factor = float("nan") if index in self.broken else 1.0
        return sample | {"pixel_values": sample["pixel_values"] / 255 * factor}


def tiny_arguments(folder, **overrides):
    options = {"max_steps": 6, "per_device_train_batch_size": 2, "logging_steps": 1, "save_strategy": "no"}
    options |= {"report_to": "none", "disable_tqdm": True, "use_cpu": True}
    options |= {"head_warmup_steps": 1, "backbone_warmup_steps": 1}
    return EoMTTrainingArguments(str(folder), **(options | overrides))
