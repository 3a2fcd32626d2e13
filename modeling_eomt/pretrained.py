"""How an EoMT model is initialized and where its weights come from."""

import copy
import json
import math
from pathlib import Path

import torch
from torch import nn
from transformers import AutoConfig
from transformers import initialization as init
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import is_peft_available, logging
from transformers.utils.peft_utils import find_adapter_config_file

from ..configuration import EoMTConfig, EoMTDINOv3Config
from ..configuration.checkpoint import HUB_ARGUMENTS
from ..configuration.eomt import code_upload_refused
from .attention import Attention
from .criterion import Criterion
from .embeddings import Embeddings
from .layers import EoMTLayer, LayerScale
from .weights.backbones import load_backbone

logger = logging.get_logger(__name__)


def own_config(config: PreTrainedConfig) -> EoMTConfig:
    """transformers' own `EomtConfig` or `EomtDinov3Config` → the same as ours; ours stay as they are."""
    if isinstance(config, EoMTConfig):
        return config
    own = {row.model_type: row for row in (EoMTConfig, EoMTDINOv3Config)}.get(config.model_type)
    if own is None:
        raise ValueError(f"the configuration is a {type(config).__name__}; give an EoMTConfig")
    ours = own.from_dict(config.to_dict())
    ours._attn_implementation = config._attn_implementation
    return ours


def _base_model(path, hub: dict) -> str:
    """The folder or hub name of the whole model: `path`, or what the PEFT adapter there was trained on."""
    if not is_peft_available():
        return path
    adapter = find_adapter_config_file(path, **hub)
    if adapter is None:
        return path
    base = json.loads(Path(adapter).read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not isinstance(base, str):
        raise ValueError(f"{adapter} names no base_model_name_or_path; load the base model and add the adapter to it")
    return base


class EoMTPreTrainedModel(PreTrainedModel):
    """Initialization, loading, and what transformers needs to know."""

    config: EoMTConfig
    config_class = EoMTConfig
    base_model_prefix = "eomt"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["EoMTLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _can_record_outputs = {"hidden_states": EoMTLayer, "attentions": Attention}
    _keep_in_fp32_modules_strict = ["attn_mask_probs", "empty_weight"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """PyTorch's defaults for linear and convolution layers, N(0, 1) for the queries, as the authors have it.

        Each parameter is initialized by the module that holds it: transformers leaves out a module whose own
        parameters and buffers were all in the checkpoint.
        """
        if module is getattr(self, "query", None):
            init.normal_(module.weight)
        elif isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            if module.bias is not None:
                bound = 1 / math.sqrt(nn.init._calculate_fan_in_and_fan_out(module.weight)[0])
                init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, LayerScale):
            init.constant_(module.lambda1, self.config.layerscale_value)
        elif isinstance(module, Embeddings):
            init.trunc_normal_(module.cls_token, std=self.config.initializer_range)
            init.trunc_normal_(module.register_tokens, std=self.config.initializer_range)
        elif isinstance(module, nn.Embedding):  # of positions
            init.trunc_normal_(module.weight, std=self.config.initializer_range)
        elif isinstance(module, Criterion):
            empty_weight = torch.ones(self.config.num_labels + 1)
            empty_weight[-1] = self.config.no_object_weight
            init.copy_(module.empty_weight, empty_weight)
        elif isinstance(module, EoMTPreTrainedModel):
            init.ones_(module.attn_mask_probs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, config=None, **kwargs):
        """Like transformers'; a checkpoint of another image or patch size is resampled to the one asked for.

        `from_pretrained(path, image_size=1280)` resizes learned positions (bicubic) and patch kernels (PI-resize)
        once, at load; the saved configuration has the sizes the weights have.
        """
        path = pretrained_model_name_or_path
        hub = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
        base = path if path is None else _base_model(path, hub)
        if isinstance(config, PreTrainedConfig):
            config = own_config(config)
        elif path is not None:  # the type may be any of ours; "dtype" is the model's argument, not the configuration's
            dtypes = {name: kwargs.pop(name) for name in ("dtype", "torch_dtype") if name in kwargs}
            config, kwargs = AutoConfig.from_pretrained(config or base, return_unused_kwargs=True, **kwargs)
            config = own_config(config)
            kwargs |= hub | dtypes
        try:
            stored = config if path is None else AutoConfig.from_pretrained(base, **hub)
        except (OSError, ValueError, TypeError):  # weights without a configuration beside them
            stored = config
        wanted, config = config, copy.deepcopy(config)
        config.image_size, config.patch_size = stored.image_size, stored.patch_size
        loaded = super().from_pretrained(path, *model_args, config=config, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.resize(wanted.image_size, wanted.patch_size)
        model.read_attn_mask_probs()
        return loaded

    def save_pretrained(self, save_directory, *args, **kwargs):
        """Like transformers'; says so where plain transformers, without this package, could not load what is saved."""
        lacking = self.config.plain_transformers_lacks
        if lacking:
            logger.warning_once(f"this model loads with this package only, not in plain transformers: {lacking}")
        return super().save_pretrained(save_directory, *args, **kwargs)

    @classmethod
    def register_for_auto_class(cls, auto_class="AutoModel"):
        raise code_upload_refused()

    @classmethod
    def from_pretrained_backbone(cls, source, config: EoMTConfig):
        """A pre-trained ViT and a configuration → a model to fine-tune: encoder loaded, queries and heads fresh.

        Args:
            source: timm's or transformers' state dict or model of DINOv2 (with registers), DINOv3, EVA-02 or DeiT-III,
                a file or directory that holds one, or a name in `BACKBONES`, which is downloaded.
            config: of the same family, width and depth; `EoMTConfig.for_backbone` gives one. Patch kernels and learned
                positions are resampled to its sizes (paper, Section 3.1).

        Raises:
            ValueError: when the backbone does not fit the configuration.
        """
        model = cls(config).eval()
        load_backbone(model, source)
        return model

    @torch.no_grad()
    def resize(self, image_size, patch_size=None) -> None:
        """Resample learned positions, and patch kernels, to another image and patch size, in place.

        Raises:
            ValueError: when the patch size does not divide the image size.
        """
        self.embeddings.resize(image_size, self.config.patch_size if patch_size is None else patch_size)
