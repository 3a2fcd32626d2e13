"""`LadderConfig`: the paper's steps from ViT-Adapter + Mask2Former to EoMT (Section 3.2, Tables 1 and B).

    step 0   ViT-Adapter, Mask2Former's pixel decoder and transformer decoder
    step 1   no adapter: a pyramid from the ViT's last features
    step 2   no pixel decoder: the decoder reads the pyramid
    step 3   no multi-scale features: the decoder reads the resolution of the ViT

Step 4 is EoMT with masked attention, step 5 EoMT without it at inference.
"""

from typing import Any, ClassVar

from .eomt import EoMTConfig, EoMTDINOv3Config, EoMTEVA02Config
from .field_types import wrong
from .sizes import as_pair
from .tasks import Task


class LadderConfig(EoMTConfig):
    r"""Configuration of steps 0 to 3 on a DINOv2 or DeiT-III backbone, `model_type` "eomt_ladder".

    The fields of `EoMTConfig` describe the ViT, the queries, the labels and the losses. Additional fields:

    Args:
        step (`int`): 0 to 3.
        num_blocks (`int`): decoder layers. The prediction before each layer can mask its attention.
        feature_size (`int`): width of the pixel decoder, the transformer decoder and the mask features.
        decoder_attention_heads (`int`): heads of both decoders.
        encoder_layers, encoder_feedforward_dim (`int`): layers and MLP width of the pixel decoder (steps 0 and 1).
        dim_feedforward (`int`): MLP width of the transformer decoder.
        stem_width (`int`): width of the adapter's first convolutions (step 0).
        deform_num_points (`int`), deform_ratio (`float`): points and relative width of its deformable attention.
        conv_ffn_ratio (`float`): relative width of its convolutional feed-forward layers.
        masked_inference (`bool`): True by default: steps 0 to 3 are not trained for inference without masks
            (Section 3.3).
    """

    model_type = "eomt_ladder"
    blocks_are_the_encoders: ClassVar[bool] = False
    num_interactions: ClassVar[int] = 4

    step: int = 0
    num_blocks: int = 9
    feature_size: int = 256
    decoder_attention_heads: int = 8
    encoder_layers: int = 6
    encoder_feedforward_dim: int = 1024
    dim_feedforward: int = 2048
    stem_width: int = 64
    deform_num_points: int = 4
    deform_ratio: float = 0.5
    conv_ffn_ratio: float = 0.25
    masked_inference: bool = True

    hub_class = None  # transformers has no such model

    @property
    def strides(self) -> tuple[int, ...]:
        """Strides of the feature maps in pixels, finest first."""
        return (4, 16) if self.step == 3 else (4, 8, 16, 32)

    @classmethod
    def for_backbone(
        cls, name: str, step: int = 0, image_size=640, task: Task = "panoptic", **overrides: Any
    ) -> "LadderConfig":
        """`EoMTConfig.for_backbone` for a step of the ladder.

        Raises:
            ValueError: when the backbone or the step is unknown, or the step does not support the backbone or size.
        """
        overrides.setdefault("num_blocks", cls.num_blocks)
        return super().for_backbone(name, image_size, task, step=step, **overrides)

    def check_fields(self) -> None:
        super().check_fields()
        if self.step not in (0, 1, 2, 3):
            raise wrong("step", self.step, "0, 1, 2 or 3; steps 4 and 5 are EoMTConfig's")
        if as_pair(self.patch_size) != (16, 16):
            raise wrong("patch_size", self.patch_size, "16: the feature maps' strides are 4, 8, 16 and 32 pixels")
        multiple = self.strides[-1]
        if any(side % multiple for side in as_pair(self.image_size)):
            raise wrong(
                "image_size", self.image_size, f"a multiple of {multiple}, the largest stride of step {self.step}"
            )
        if self.step == 0 and self.num_hidden_layers % self.num_interactions:
            raise wrong("num_hidden_layers", self.num_hidden_layers, "a multiple of 4: step 0 has four equal parts")
        if self.step == 0 and int(self.hidden_size * self.deform_ratio) % self.num_attention_heads:
            raise wrong(
                "deform_ratio", self.deform_ratio, f"such that {self.num_attention_heads} heads divide the width"
            )
        if self.feature_size % 32 or self.feature_size % self.decoder_attention_heads:
            raise wrong("feature_size", self.feature_size, "a multiple of 32 and of decoder_attention_heads")


class LadderDINOv3Config(LadderConfig, EoMTDINOv3Config):
    r"""The ladder on DINOv3, `model_type` "eomt_ladder_dinov3"."""

    model_type = "eomt_ladder_dinov3"


class LadderEVA02Config(LadderConfig, EoMTEVA02Config):
    r"""The ladder on EVA-02, `model_type` "eomt_ladder_eva02"."""

    model_type = "eomt_ladder_eva02"

    num_register_tokens: int = 0
    use_swiglu_ffn: bool = True


LadderConfig.class_of_layout = {
    kind.layout.name: kind for kind in (LadderConfig, LadderDINOv3Config, LadderEVA02Config)
}
