"""`ExportedEoMT`: an exported model in the place of `EoMTForUniversalSegmentation`.

model = ExportedEoMT.from_pretrained("exported")
pipeline("image-segmentation", model=model, image_processor=AutoImageProcessor.from_pretrained("exported"))

B images · Q queries · C labels · H, W pixels
"""

from pathlib import Path

import torch
from torch import Tensor
from transformers.models.auto.modeling_auto import MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING_NAMES

from ..configuration import EoMTConfig, as_pair
from ..modeling_eomt import EoMTForUniversalSegmentationOutput
from ..modeling_eomt.outputs import group_by_image, is_grouped
from .engines import MAX_SIDE, open_engine
from .loading import load_config

# The pipeline checks class names against this table and would log an error for ours.
MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING_NAMES["ExportedEoMT"] = "ExportedEoMT"

DTYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


class ExportedEoMT:
    """Callable as the model is, for inference only. Inputs and outputs are float32 on the CPU, whatever the engine
    computes in; masked attention is off."""

    main_input_name = "pixel_values"
    device = torch.device("cpu")
    dtype = torch.float32
    training = False

    def __init__(self, config: EoMTConfig, engine):
        self.config = config
        self.engine = engine

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, engine: str = "auto", dtype=None, num_requests: int | None = 1
    ) -> "ExportedEoMT":
        """A folder that `eomt export` wrote → a model.

        Args:
            engine: "openvino", "onnx", or "auto": the fastest that is there and installed.
            dtype: what the engine computes in: "fp32", "bf16" or "fp16", or torch's types; by default what the file
                was exported for.
            num_requests: how many images OpenVINO computes at once at most, for calls from as many threads: 1, each
                as soon as possible; None, as many as give the most images a second. The cores are shared out. Other
                engines compute one at a time.

        Raises:
            ValueError: when the folder, its files, the engine or the number type cannot be used.
        """
        dtype = DTYPES.get(dtype, dtype)
        if not Path(folder, "config.json").is_file():
            raise ValueError(f"there is no config.json in {str(folder)!r}; give a folder that eomt export wrote")
        config = load_config(folder)
        config.name_or_path = str(folder)
        return cls(config, open_engine(folder, engine, dtype, num_requests))

    def __call__(self, pixel_values: Tensor, patch_offsets: list | None = None, **kwargs):
        """(B, 3, H, W) → class_queries_logits (B, Q, C + 1) and masks_queries_logits (B, Q, H/4, W/4).

        Raises:
            ValueError: when the file does not take this image size, or labels are given.
        """
        if kwargs.get("mask_labels") is not None or kwargs.get("class_labels") is not None:
            raise ValueError("an exported model has no loss; leave out mask_labels and class_labels")
        self._require_size(pixel_values)
        pixels = pixel_values.detach().to("cpu", torch.float32).contiguous().numpy()
        classes, masks = self.engine.run(pixels)
        output = EoMTForUniversalSegmentationOutput(
            class_queries_logits=torch.from_numpy(classes),
            masks_queries_logits=torch.from_numpy(masks),
            patch_offsets=patch_offsets,
        )
        return group_by_image(output) if is_grouped(patch_offsets) else output

    forward = __call__

    def _require_size(self, pixel_values: Tensor) -> None:
        channels, sides = self.config.num_channels, self.engine.size
        if pixel_values.ndim != 4 or pixel_values.shape[1] != channels:
            raise ValueError(
                f"pixel_values have shape {tuple(pixel_values.shape)}; give (batch, {channels}, height, width)"
            )
        height, width = pixel_values.shape[2:]
        if any(side not in (None, given) for side, given in zip(sides, (height, width))):
            raise ValueError(
                f"pixel_values are {height} × {width} pixels; the file takes {sides[0]} × {sides[1]}: use its own "
                "image processor, or export with --image-size or --dynamic-size"
            )
        for fixed, given, patch in zip(sides, (height, width), as_pair(self.config.patch_size)):
            if fixed is None and (given % patch or not 2 * patch <= given <= MAX_SIDE):
                raise ValueError(
                    f"pixel_values are {height} × {width} pixels; the file takes sides that are multiples of {patch}, "
                    f"from {2 * patch} to {MAX_SIDE}: use its own image processor"
                )

    @property
    def num_requests(self) -> int:
        """Calls that are computed at once; more wait."""
        return self.engine.num_requests

    # --- what transformers' pipeline and this library's commands ask of a model --------------------------------------

    @property
    def attn_mask_probs(self) -> Tensor:
        return torch.zeros(self.config.num_blocks)

    def set_attn_mask_probs(self, probabilities) -> None:
        if any(probabilities):
            raise ValueError("an exported model has no masked attention; leave out --masked")

    def set_token_merging(self, *args, **kwargs) -> None:
        raise ValueError("an exported model cannot merge tokens: its file has fixed shapes; give the model it is of")

    def eval(self) -> "ExportedEoMT":
        return self

    def to(self, *args, **kwargs) -> "ExportedEoMT":
        return self

    def can_generate(self) -> bool:
        return False

    def parameters(self):
        return iter((torch.empty(0),))  # where inputs go and in which type
