"""The models of `eomt benchmark`: from a folder, from the hub, or with random weights for the name of a backbone."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForUniversalSegmentation

from ..configuration import FAMILIES, EoMTConfig, as_pair, find_backbone
from ..configuration.families import nearest_backbone
from ..configuration.labels import label_space
from ..configuration.ladder import LadderConfig
from ..configuration.recipes import Reported, reported_for
from ..engines import ExportedEoMT, exported_engines, is_installed
from .flops import count_flops

DATASETS = {"panoptic": "coco", "instance": "coco", "semantic": "ade20k"}  # the paper's, for models with random weights
DEFAULT_SIZE = 640  # pixels, for configurations without an image size


def is_backbone(name: str) -> bool:
    """Whether this is the name of a backbone. Raises `ValueError` if it cannot be a hub name either."""
    try:
        find_backbone(name)
    except ValueError as unknown:
        if "/" not in name:
            raise ValueError(f"{name!r} is not a folder; {unknown}") from None
        return False
    return True


@dataclass
class Candidate:
    """One model at one image size. `load` returns it with weights."""

    name: str
    config: object
    image_size: tuple[int, int]  # (height, width) in pixels
    pretrained: bool  # from a folder or the hub, otherwise with random weights
    masked: bool | None = None  # masked attention at inference; None: as saved
    exported: bool = False

    @classmethod
    def find(
        cls, name: str, image_size=None, task: str = "panoptic", masked: bool | None = None, step: int = 5, **overrides
    ) -> "Candidate":
        """The model in a folder or on the hub, or an EoMT with random weights for a backbone of `BACKBONES`.

        Args:
            image_size: side or (height, width) in pixels; by default the model's own.
            task: of a backbone's model.
            masked: masked attention at inference on or off. By default as in the paper: on in steps 0 to 4, off in
                step 5. Saved models: as trained.
            step: for backbones, step of the paper's Table 1. Steps 0 to 3 are `LadderConfig`'s, 4 and 5 are EoMT.
            **overrides: for backbones, fields of the configuration.

        Raises:
            ValueError: for an unknown model, or one that is not for universal segmentation.
        """
        if not Path(name).exists() and is_backbone(name):
            return cls._of_backbone(name, image_size, task, masked, step, overrides)
        if step != 5:
            overrides["step"] = step
        if overrides:
            raise ValueError(f"{', '.join(overrides)} can be set for backbones only; {name} is a saved model")
        config = AutoConfig.from_pretrained(name)
        if type(config) not in AutoModelForUniversalSegmentation._model_mapping:
            raise ValueError(f"{name} is a {config.model_type!r}, not a model of AutoModelForUniversalSegmentation")
        if isinstance(config, EoMTConfig):
            config.image_size = image_size or config.image_size
            image_size = config.image_size
        exported = bool(exported_engines(name))
        if masked and (exported or not getattr(config, "masked_attention", True)):
            raise ValueError(f"{name} has no masked attention; leave out --masked")
        return cls(name, config, as_pair(image_size or DEFAULT_SIZE), True, masked, exported)

    @classmethod
    def _of_backbone(cls, name: str, image_size, task: str, masked, step: int, overrides: dict) -> "Candidate":
        space = label_space(f"{DATASETS[task]}_{task}")
        options = {"image_size": image_size or DEFAULT_SIZE, "task": task, "num_labels": space.num_labels, **overrides}
        if step < 4:
            config = LadderConfig.for_backbone(name, step=step, **options)
        else:
            config = EoMTConfig.for_backbone(name, **options)
        return cls(name, config, as_pair(config.image_size), False, step < 5 if masked is None else masked)

    @property
    def is_eomt(self) -> bool:
        return isinstance(self.config, EoMTConfig)

    @property
    def is_ladder(self) -> bool:
        return isinstance(self.config, LadderConfig)

    @property
    def label(self) -> str:
        """Name in the table."""
        name = Path(self.name).name if self.pretrained else self.name
        parts = [name, "×".join(map(str, self.image_size))]
        if self.is_ladder:
            parts.insert(1, f"step {self.config.step}")
        if self.masked and (self.pretrained or not self.is_ladder):  # steps 0 to 3 are always masked
            parts.append("masked")
        installed = [engine for engine in exported_engines(self.name) if is_installed(engine)]
        parts += installed[:1]  # `load` opens the first
        return " ".join(parts)

    def reported(self) -> Reported | None:
        """The result of this model in the paper or the authors' model zoo."""
        if not self.is_eomt or self.is_ladder or self.masked:
            return None
        if self.pretrained:
            return reported_for(Path(self.name).name)
        row, exact = nearest_backbone(self.config)
        if not exact or self.image_size[0] != self.image_size[1]:
            return None
        suffix = FAMILIES[row.family].recipe_suffix
        recipe = f"{DATASETS[self.config.task]}_{self.config.task}_eomt_{row.size}_{self.image_size[0]}"
        return reported_for(recipe + suffix) or reported_for(f"{recipe}_2x{suffix}")

    def load(self, device: torch.device, dtype: torch.dtype) -> nn.Module | ExportedEoMT:
        """Load the model for inference. An exported one stays on the CPU and in its exported precision."""
        if self.exported:
            return ExportedEoMT.from_pretrained(self.name)
        if self.pretrained:
            sizes = {"image_size": self.config.image_size} if self.is_eomt else {}
            model = AutoModelForUniversalSegmentation.from_pretrained(self.name, dtype=dtype, **sizes)
        else:
            model = AutoModelForUniversalSegmentation.from_config(self.config, dtype=dtype)
        if self.is_eomt and self.masked is not None:
            model.set_attn_mask_probs([float(self.masked)] * self.config.num_blocks)
        return model.eval().to(device)

    def inputs(self, batch: int, device, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        """Random images (batch, C, H, W)."""
        channels = getattr(self.config, "num_channels", 3)
        return {"pixel_values": torch.rand(batch, channels, *self.image_size, device=device, dtype=dtype)}

    def count(self, model: nn.Module | None = None) -> tuple[int, int]:
        """Number of parameters, and of multiply-adds for one input.

        EoMT is counted on the meta device. Other models need values: they are counted in a forward pass of `model`, or
        of a model with random weights.
        """
        if self.is_eomt:
            with torch.device("meta"):
                counted = AutoModelForUniversalSegmentation._model_mapping[type(self.config)](self.config)
            masked = self.config.masked_inference if self.masked is None else self.masked
            counted.set_attn_mask_probs([float(masked)] * self.config.num_blocks)
            device, dtype = "meta", torch.float32
        else:
            counted = model or AutoModelForUniversalSegmentation.from_config(self.config)
            first = next(counted.parameters())
            device, dtype = first.device, first.dtype
        parameters = sum(parameter.numel() for parameter in counted.parameters())
        return parameters, count_flops(counted, **self.inputs(1, device, dtype))
