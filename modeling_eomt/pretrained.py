"""Initialization, loading and saving of EoMT models."""

import copy
import json
import math
from pathlib import Path

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers import CONFIG_MAPPING, AutoConfig
from transformers import initialization as init
from transformers.configuration_utils import PreTrainedConfig
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import Chunk, WeightConverter, WeightRenaming
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, is_peft_available, logging
from transformers.utils.peft_utils import find_adapter_config_file

from ..configuration import EoMTConfig, EoMTDINOv3Config
from ..configuration.checkpoint import HUB_ARGUMENTS
from ..configuration.eomt import INFERRED, code_upload_refused
from .attention import Attention
from .embeddings import Embeddings
from .layers import EoMTLayer, LayerScale
from .loss import Criterion
from .weights.backbones import load_backbone
from .weights.published import Published, our_tensors, read_published
from .weights.state_dicts import read_config

logger = logging.get_logger(__name__)


def _register_older_layout() -> None:
    """Convert older checkpoints on loading. transformers 4.56 to 5.17 wrote EoMT's SwiGLU as `weights_in` (gate and up
    concatenated) and `weights_out`."""
    halves = [
        WeightConverter(
            source_patterns=f"mlp.weights_in.{kind}",
            target_patterns=[f"mlp.gate_proj.{kind}", f"mlp.up_proj.{kind}"],
            operations=[Chunk(dim=0)],
        )
        for kind in ("weight", "bias")
    ]
    rule = [*halves, WeightRenaming("mlp.weights_out", "mlp.down_proj")]
    register_checkpoint_conversion_mapping("EoMTForUniversalSegmentation", rule, overwrite=True)


def own_config(config: PreTrainedConfig) -> EoMTConfig:
    """Convert transformers' own `EomtConfig` or `EomtDinov3Config` to ours; ours are returned unchanged."""
    if isinstance(config, EoMTConfig):
        return config
    own = {row.model_type: row for row in (EoMTConfig, EoMTDINOv3Config)}.get(config.model_type)
    if own is None:
        raise ValueError(f"the configuration is a {type(config).__name__}; give an EoMTConfig")
    ours = own.from_dict(config.to_dict())
    ours._attn_implementation = config._attn_implementation
    return ours


def load_config(name: str) -> EoMTConfig:
    """Configuration of a folder or hub name; without a config.json, inferred from the authors' weights.

    Raises `ValueError` for a model of another package.
    """
    published = None if _read_config(name, {}) else read_published(name)
    if published is not None:
        return published.config()
    config = AutoConfig.from_pretrained(name)
    if not isinstance(config, EoMTConfig):
        raise ValueError(f"{name} holds a {config.model_type!r} model, not an EoMT")
    return config


def config_class_of(fields: dict, where: str) -> type[PreTrainedConfig]:
    """Class of the configuration in a config.json. Raises `ValueError` for a `model_type` of another package."""
    kind = fields.get("model_type")
    if kind not in CONFIG_MAPPING or not issubclass(CONFIG_MAPPING[kind], EoMTConfig):
        raise ValueError(f"{where}: config.json is of model_type {kind!r}, not of an EoMT")
    return CONFIG_MAPPING[kind]


def _read_config(path, hub: dict) -> dict:
    """Content of config.json; {} if there is none."""
    if path is None:
        return {}
    try:
        return EoMTConfig.get_config_dict(path, **hub)[0]
    except OSError:
        return {}


def _resolve_config(
    base, config, published: Published | None, hub: dict, kwargs: dict
) -> tuple[EoMTConfig, dict, dict]:
    """Arguments of `from_pretrained` → wanted configuration, content of config.json, other arguments."""
    if isinstance(config, PreTrainedConfig):
        config = own_config(config)
        stored = _read_config(base, hub)
        if getattr(config, INFERRED, False) and hub.get("subfolder"):  # the Auto classes do not pass the subfolder
            config.task = type(config).from_dict(stored, checkpoint=(str(base), hub)).task
        return config, stored, kwargs
    # `dtype` is an argument of the model, not of the configuration.
    dtypes = {name: kwargs.pop(name) for name in ("dtype", "torch_dtype") if name in kwargs}
    if published is not None and config is None and not _read_config(base, hub):
        fields = published.config().to_dict()
        kwargs = {name: value for name, value in kwargs.items() if name not in hub}
    else:
        fields, kwargs = EoMTConfig.get_config_dict(config or base, **kwargs)
    stored = fields if config is None else _read_config(base, hub)
    config, kwargs = config_class_of(fields, base).from_dict(fields, return_unused_kwargs=True, **kwargs)
    return config, stored, kwargs | hub | dtypes


def _refuse_tensor_parallelism(kwargs: dict) -> None:
    plan, size = kwargs.get("tp_plan"), kwargs.get("tp_size")
    if kwargs.get("distributed_config") is not None:
        plan, size = kwargs["distributed_config"].tp_plan, kwargs["distributed_config"].tp_size
    if plan or (size or 1) > 1:
        raise ValueError(f"tensor parallelism (plan {plan!r}, size {size!r}) gives wrong numbers with EoMT; use FSDP")


def _require_index(folder: Path) -> None:
    """Raise `ValueError` unless the index of a sharded checkpoint maps names of tensors to files of the folder."""
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    if not index.is_file():
        return
    try:
        files = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        missing = sorted({file for file in files if not (folder / file).is_file()})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError(f"{index} is damaged: it must hold a weight_map of tensors to files; copy it again") from None
    if missing:
        raise ValueError(f"{index} names {missing[0]}, which is not there; copy it again")


def _base_model(path, hub: dict) -> str:
    """`path`, or the base model of the PEFT adapter at `path`."""
    if not is_peft_available() or Path(path).is_file():
        return path
    adapter = find_adapter_config_file(path, **hub)
    if adapter is None:
        return path
    base = json.loads(Path(adapter).read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not isinstance(base, str):
        raise ValueError(f"{adapter} names no base_model_name_or_path; load the base model and add the adapter to it")
    return base


class EoMTPreTrainedModel(PreTrainedModel):
    """Base class: initialization, loading, saving, and the attributes that transformers reads."""

    config: EoMTConfig
    config_class = EoMTConfig
    base_model_prefix = "eomt"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["EoMTLayer", "Embeddings"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _can_record_outputs = {"hidden_states": EoMTLayer, "attentions": Attention}
    _keep_in_fp32_modules_strict = ["attn_mask_probs", "empty_weight"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """PyTorch's defaults for linear and convolution layers, and N(0, 1) for the queries, as in the authors' code.

        Each parameter is initialized by the module that holds it. transformers leaves out a module if its own
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
            init.copy_(module.empty_weight, module.class_weights())
        elif isinstance(module, EoMTPreTrainedModel):
            init.ones_(module.attn_mask_probs)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path, *model_args, config=None, reference_backbone=None, **kwargs
    ):
        """`PreTrainedModel.from_pretrained`, also for other image and patch sizes and for the authors' checkpoints.

        `from_pretrained(path, image_size=1280)` resamples learned positions (bicubic) and patch kernels (PI-resize)
        once. `config.image_size` and `config.patch_size` are then the new ones. Class weights of the loss follow the
        configuration (`no_object_weight`), not the checkpoint.

        An authors' checkpoint is a file, a folder or a repository. Those on DINOv3 hold the encoder as differences
        from the pre-trained backbone, which is read from the hub or its cache.

        Args:
            reference_backbone: DINOv3 weights (state dict, model, file or folder) to use instead of the hub's.

        Raises:
            ValueError: for a tensor-parallel plan, a damaged index of shards, another size with offloaded weights, or
                differences from a backbone that is gated, absent or of another size.
        """
        path = pretrained_model_name_or_path
        _refuse_tensor_parallelism(kwargs)
        hub = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
        base = path if path is None else _base_model(path, hub)
        published = None if path is None else read_published(base, **hub)
        if reference_backbone is not None and published is None:
            raise ValueError(f"reference_backbone is for authors' checkpoints, which {path} is not; leave it out")
        wanted, stored, kwargs = _resolve_config(base, config, published, hub, kwargs)
        if published is not None:
            saved = read_config(published.file) or stored
            tensors = our_tensors(published.state, wanted, reference_backbone, saved=saved, **hub)
            kwargs = {name: value for name, value in kwargs.items() if name not in hub} | {"state_dict": tensors}
            path, stored = None, {}  # no other file is read, and the tensors have the wanted sizes
        elif path is not None:
            _require_index(Path(path, hub.get("subfolder") or ""))
        is_ours = isinstance(wanted, cls.config_class)
        if not is_ours or wanted.blocks_are_the_encoders != cls.config_class.blocks_are_the_encoders:
            raise ValueError(f"{base} holds a {wanted.model_type!r} model, not a {cls.__name__}")
        config = copy.deepcopy(wanted)
        if stored:  # the weights have the sizes of config.json; they are resampled after loading
            config.image_size = stored.get("image_size", EoMTConfig.image_size)
            config.patch_size = stored.get("patch_size", EoMTConfig.patch_size)
            config.num_channels = stored.get("num_channels", EoMTConfig.num_channels)
        if config.use_swiglu_ffn:
            _register_older_layout()
        loaded = super().from_pretrained(path, *model_args, config=config, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if published is not None:
            model.name_or_path = model.config.name_or_path = str(base)
        model.config.num_channels = wanted.num_channels
        model.resize(wanted.image_size, wanted.patch_size)
        if not model.criterion.empty_weight.is_meta:
            model.criterion.empty_weight.copy_(model.criterion.class_weights())
        model.read_attn_mask_probs()
        return loaded

    def save_pretrained(self, save_directory, *args, **kwargs):
        """`PreTrainedModel.save_pretrained`, always in the current layout and with the permissions of config.json.

        safetensors would make weights readable for their owner only. A warning says if plain transformers, without this
        package, cannot load the checkpoint.

        Raises:
            ValueError: for weights quantized by torchao, which safetensors cannot hold.
        """
        for name, parameter in self.named_parameters():
            if is_traceable_wrapper_subclass(parameter) and not isinstance(parameter, DTensor):
                raise ValueError(
                    f"{name} is a {type(parameter).__name__}, quantized by torchao, which no safetensors file can "
                    "hold; save the model before quantizing it"
                )
        self._weight_conversions = []  # else transformers writes the older names of the checkpoint that was loaded
        lacking = self.config.plain_transformers_lacks
        if lacking:
            logger.warning_once(f"this model loads with this package only, not in plain transformers: {lacking}")
        super().save_pretrained(save_directory, *args, **kwargs)
        config = Path(save_directory, "config.json")
        for weights in Path(save_directory).glob("*.safetensors"):
            if config.is_file():
                weights.chmod(config.stat().st_mode)

    @classmethod
    def register_for_auto_class(cls, auto_class="AutoModel"):
        raise code_upload_refused()

    @classmethod
    def from_pretrained_backbone(cls, source, config: EoMTConfig):
        """A model to fine-tune: the encoder is a pre-trained ViT, queries and heads are initialized.

        Args:
            source: timm's or transformers' state dict or model of DINOv2 (with registers), DINOv3, EVA-02 or DeiT-III,
                a file or directory that holds one, or a name in `BACKBONES`, which is downloaded.
            config: configuration of the same family, width and depth; see `EoMTConfig.for_backbone`. Patch kernels and
                learned positions are resampled to its sizes (paper, Section 3.1).

        Raises:
            ValueError: when the backbone does not fit the configuration.
        """
        model = cls(config).eval()
        load_backbone(model, source)
        return model

    @torch.no_grad()
    def resize(self, image_size, patch_size=None) -> None:
        """Resample learned positions and patch kernels to another image and patch size, in place.

        Raises:
            ValueError: when the patch size does not divide the image size.
        """
        self.embeddings.resize(image_size, self.config.patch_size if patch_size is None else patch_size)
