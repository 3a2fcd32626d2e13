"""`PMTForUniversalSegmentation`: EoMT's queries in a Transformer decoder on a frozen ViT (PMT, arXiv 2603.25398).

B images · P prefix tokens · N patches · T = P + N tokens · D width · K levels of the encoder
"""

import hashlib
import json
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init
from transformers.activations import ACT2FN

from ..configuration import EoMTConfig, find_backbone
from ..configuration.pmt import PMTConfig
from .embeddings import Embeddings
from .eomt import EoMTForUniversalSegmentation
from .layers import EoMTLayer
from .rope import RotaryTable, rotary_table
from .weights.backbones import cached_revision, fit_sizes, load_backbone
from .weights.key_maps import Place
from .weights.published import saved_grid
from .weights.state_dicts import read_state_dict, require_fit, take


class FrozenEncoder(nn.Module):
    """A pre-trained ViT without gradients, always in evaluation mode."""

    def __init__(self, config: EoMTConfig):
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(EoMTLayer(config) for _ in range(config.num_hidden_layers))
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.freeze()
        self.is_shared = False
        self.unrounded_digest: str | None = None  # of weights that were rounded to float16 when they were loaded
        self._remembers = False
        self._remembered: tuple[Tensor, tuple[int, ...], list[Tensor]] | None = None

    def freeze(self) -> None:
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "FrozenEncoder":
        return super().train(False)

    def digest(self) -> str:
        """Fingerprint of the weights in bfloat16, without those that depend on the image and the patch size."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.state_dict().items()):
            if not name.startswith(("embeddings.patch", "embeddings.position")):
                digest.update(name.encode())
                digest.update(tensor.cpu().to(torch.bfloat16).contiguous().view(torch.int16).numpy())
        return digest.hexdigest()

    @contextmanager
    def remembering(self) -> Iterator[None]:
        """Context manager: the levels of the last images are kept for the next decoder on the same images."""
        self._remembers = True
        try:
            yield
        finally:
            self._remembers, self._remembered = False, None

    @torch.no_grad()
    def forward(self, pixel_values: Tensor, indices: list[int], grid: tuple[int, int], **kwargs) -> list[Tensor]:
        """Images → the normalized outputs (B, T, D) of the blocks at `indices`."""
        if self._remembers and self._remembered is not None:
            images, known, levels = self._remembered
            if known == tuple(indices) and torch.equal(images, pixel_values):
                return levels
        hidden_states = self.embeddings(pixel_values)  # [B, T, D]
        rotary = rotary_table(self.config, grid, hidden_states.device, hidden_states.dtype, training=False)
        levels = []
        for index, layer in enumerate(self.layers[: indices[-1] + 1]):
            hidden_states = layer(hidden_states, None, rotary, **kwargs)
            if index in indices:
                levels.append(self.layernorm(hidden_states))
        if self._remembers:
            self._remembered = (pixel_values.clone(), tuple(indices), levels)
        return levels


class TokenBatchNorm(nn.Module):
    """Batch norm over tokens, synchronized over processes, as a gain and a shift per channel.

    Its input comes from a frozen encoder, so no gradient flows through the statistics.
    """

    eps, momentum = 1e-5, 0.1

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, T, D) → gain and shift, (D,) each, from the batch in training, else from running statistics."""
        mean, variance = self._batch_statistics(tokens) if self.training else (self.running_mean, self.running_var)
        gain = self.weight * (variance + self.eps).rsqrt()
        return gain, self.bias - mean * gain

    @torch.no_grad()
    def _batch_statistics(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and biased variance (D,) over the tokens of all processes; updates the running statistics."""
        tokens = tokens.flatten(0, 1).float()
        totals = _sum_over_processes(F.pad(tokens.sum(0), (0, 1), value=len(tokens)))  # sums, then the count
        count = totals[-1]
        mean = totals[:-1] / count
        variance = _sum_over_processes((tokens - mean).square().sum(0)) / count
        mean, variance = mean.to(self.running_mean.dtype), variance.to(self.running_var.dtype)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        self.num_batches_tracked += 1
        return mean, variance


class FoldingLinear(nn.Linear):
    """A linear layer of gain · x + shift. Gain and shift (D,) are folded into its weights, which saves a pass."""

    def forward(self, tokens: Tensor, gain: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        if gain is None:
            return super().forward(tokens)
        return F.linear(tokens, self.weight * gain, self.bias + self.weight @ shift)


class Lateral(nn.Module):
    """A level of the encoder → its term of the decoder's input: scale · (x + projection(x)), x its batch norm."""

    def __init__(self, config: PMTConfig):
        super().__init__()
        width = config.hidden_size
        self.norm = TokenBatchNorm(width) if config.lateral_batch_norm else None
        self.projection = None
        if config.lateral_projection == "linear":
            self.projection = nn.Sequential(OrderedDict(fc1=FoldingLinear(width, width)))
        elif config.lateral_projection == "mlp":
            fc1, fc2 = FoldingLinear(width, width // 2), nn.Linear(width // 2, width)
            self.projection = nn.Sequential(OrderedDict(fc1=fc1, activation=ACT2FN[config.hidden_act], fc2=fc2))
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, level: Tensor) -> Tensor:
        """(B, T, D) → (B, T, D)."""
        if self.norm is None:
            return self._with_projection(level) * self.scale
        gain, shift = self.norm(level)
        if self.training:
            return self._with_projection(level * gain + shift) * self.scale
        return self._folded(level, gain, shift)

    def _with_projection(self, level: Tensor) -> Tensor:
        return level + (level if self.projection is None else self.projection(level))

    def _folded(self, level: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
        """The same, with the norm folded into the first layer."""
        scale = self.scale
        if self.projection is None:
            return level * (2 * gain * scale) + 2 * shift * scale
        projected = self.projection.fc1(level, gain, shift)
        for layer in self.projection[1:]:
            projected = layer(projected)
        return torch.addcmul(shift * scale, level, gain * scale) + projected * scale


class PMTForUniversalSegmentation(EoMTForUniversalSegmentation):
    """PMT for panoptic, instance and semantic segmentation.

    The pre-trained encoder is frozen. The decoder reads the sum of some of its levels. The decoder's blocks process
    queries and tokens jointly, with EoMT's mask module, masked attention and annealing.
    """

    config: PMTConfig
    config_class = PMTConfig
    base_model_prefix = "pmt"

    def build_vit(self) -> None:
        config = self.config
        if config.encoder_digest is not None:  # the checkpoint has no encoder
            self._keys_to_ignore_on_load_missing = [r"^encoder\."]
        config.encoder_config._attn_implementation = config._attn_implementation
        self.encoder = FrozenEncoder(config.encoder_config)
        self.laterals = nn.ModuleList(Lateral(config) for _ in config.interaction_indices)
        self.decoder = nn.Module()
        self.decoder.layers = nn.ModuleList(EoMTLayer(config) for _ in range(config.num_blocks))
        self.decoder.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    @property
    def joint_layers(self) -> nn.ModuleList:
        return self.decoder.layers

    @property
    def final_norm(self) -> nn.LayerNorm:
        return self.decoder.layernorm

    def get_input_embeddings(self) -> nn.Module:
        return self.encoder.embeddings.patch_embeddings

    def encode(
        self, pixel_values: Tensor, grid: tuple[int, int], encoder_levels: Tensor | None = None, **kwargs
    ) -> tuple[Tensor, RotaryTable, None]:
        """Images → the decoder's tokens (B, T, D), the rotary table of their positions, and None: tokens never merge.

        Args:
            encoder_levels: saved levels of the encoder (B, K, T, D), from training/features.py.
        """
        if encoder_levels is None:
            levels = self.encoder(pixel_values, self.config.interaction_indices, grid, **kwargs)
        else:
            levels = encoder_levels.to(self.query.weight.dtype).unbind(1)
        hidden_states = sum(lateral(level) for lateral, level in zip(self.laterals, levels))
        return hidden_states, rotary_table(self.config, grid, hidden_states.device, hidden_states.dtype, False), None

    def set_token_merging(self, *args, **kwargs) -> None:
        raise ValueError("token merging is for EoMT; the levels of PMT's encoder would have different tokens")

    # --- the encoder's weights --------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, encoder=None, **kwargs):
        """`EoMTPreTrainedModel.from_pretrained`, also for checkpoints of the decoder alone.

        Args:
            encoder: source of the encoder for a checkpoint without one, as in `load_encoder`; by default the backbone
                `config.encoder_name`.

        Raises:
            ValueError: when the encoder is not the one that the decoder was trained on.
        """
        loaded = super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.encoder.freeze()  # transformers makes every loaded parameter trainable
        if model.config.encoder_digest is not None:
            model.load_encoder(known_backbone(model.config.encoder_name) if encoder is None else encoder)
        elif encoder is not None:
            raise ValueError(f"{pretrained_model_name_or_path} has an encoder of its own; leave out encoder")
        return loaded

    @classmethod
    def from_pretrained_backbone(cls, source, config: PMTConfig):
        """A model to train: the encoder is a pre-trained ViT (`source` as in `load_encoder`), the decoder is new."""
        model = cls(config).eval()
        model.load_encoder(source)
        return model

    def load_encoder(self, source) -> None:
        """Load the weights of the encoder.

        Args:
            source: a PMT model or its folder, or a source of `EoMTForUniversalSegmentation.from_pretrained_backbone`:
                a backbone's state dict, model, file, folder or name.

        Raises:
            ValueError: for weights that do not fit, or differ from those that the decoder was trained on.
        """
        wanted, self.config.encoder_digest = self.config.encoder_digest, None
        dtype = next(self.encoder.parameters()).dtype
        self.encoder.float()  # the fingerprint is taken before a rounding to float16
        grid = None
        if isinstance(source, PMTForUniversalSegmentation):
            grid = source.config.encoder_config.grid_size
        elif isinstance(source, str | Path) and Path(source, "config.json").is_file():
            grid = saved_grid(json.loads(Path(source, "config.json").read_text(encoding="utf-8")))
        if not isinstance(source, str | Path) or Path(source).exists():
            source = read_state_dict(source)
        if isinstance(source, Mapping) and "encoder.embeddings.cls_token" in source:
            table = {name: Place(name) for name in self.encoder.state_dict()}
            state, missing, unexpected = take(encoder_state(source), table)
            state = fit_sizes(state, self.config.encoder_config, grid)
            require_fit("the encoder", self.encoder.state_dict(), state, missing, unexpected, table)
            self.encoder.load_state_dict(state)
        else:
            hub = {}
            if source == self.config.encoder_name and self.config.encoder_revision:
                hub["revision"] = self.config.encoder_revision
            load_backbone(self.encoder, source, **hub)
            if isinstance(source, str):
                self.config.encoder_name, self.config.encoder_revision = source, cached_revision(source)
        digest = self.encoder.digest() if wanted or dtype == torch.float16 else None
        if wanted is not None and wanted != digest:
            raise ValueError(
                f"the decoder was trained on other weights of {self.config.encoder_name}; give these as encoder="
            )
        self.encoder.to(dtype)
        self.encoder.unrounded_digest = digest if dtype == torch.float16 else None

    def share_encoder(self, other: "PMTForUniversalSegmentation") -> None:
        """Use the encoder of `other` from now on: there is one in memory, and `eomt.segment` runs it once for both.

        Raises:
            ValueError: when the two encoders differ.
        """
        ours, theirs = self.encoder.state_dict(), other.encoder.state_dict()
        different = next((name for name in ours if not _are_equal(ours[name], theirs.get(name))), None)
        if different or len(ours) != len(theirs):
            raise ValueError(f"the encoders differ ({different or 'in depth'}); only equal ones can be shared")
        self.encoder = other.encoder
        self.encoder.is_shared = True
        self.config.encoder_config = other.config.encoder_config

    def save_pretrained(self, save_directory, *args, decoder_only: bool = False, **kwargs):
        """`EoMTPreTrainedModel.save_pretrained`, optionally of the decoder alone.

        Args:
            decoder_only: save the encoder's name and fingerprint instead of its weights.

        Raises:
            ValueError: for the decoder alone of a model in float16 whose encoder was not loaded by `load_encoder`.
        """
        if decoder_only:
            digest = self.encoder.digest()
            if next(self.encoder.parameters()).dtype == torch.float16:
                digest = self.encoder.unrounded_digest
            if digest is None:
                raise ValueError("float16 rounds the weights of the encoder's fingerprint; load the model in float32")
            self.config.encoder_digest = digest
            state = kwargs.pop("state_dict", None) or self.state_dict()
            kwargs["state_dict"] = {name: t for name, t in state.items() if not name.startswith("encoder.")}
        try:
            super().save_pretrained(save_directory, *args, **kwargs)
        finally:
            self.config.encoder_digest = None

    @torch.no_grad()
    def resize(self, image_size, patch_size=None) -> None:
        if self.encoder.is_shared:
            raise ValueError(f"the encoder is shared; resize the models to {image_size} before share_encoder")
        patch_size = self.config.patch_size if patch_size is None else patch_size
        self.encoder.embeddings.resize(image_size, patch_size)
        self.config.image_size, self.config.patch_size = image_size, patch_size

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, TokenBatchNorm):
            for tensor in (module.weight, module.running_var):
                init.ones_(tensor)
            for tensor in (module.bias, module.running_mean, module.num_batches_tracked):
                init.zeros_(tensor)
        elif isinstance(module, Lateral):
            init.ones_(module.scale)
        else:
            super()._init_weights(module)


def known_backbone(name: str | None) -> str:
    """Return the name if it is in `BACKBONES`, else raise `ValueError`: a checkpoint must not choose what is read."""
    try:
        find_backbone(name or "")
    except ValueError:
        raise ValueError(f"the checkpoint holds the decoder alone, trained on {name!r}; give encoder=") from None
    return name


def encoder_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The encoder's part of a PMT model's state dict, under the encoder's own names."""
    return {name.removeprefix("encoder."): tensor for name, tensor in state.items() if name.startswith("encoder.")}


def _are_equal(ours: Tensor, theirs: Tensor | None) -> bool:
    if theirs is None or ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return False
    return torch.equal(ours, theirs.to(ours.device))


def _sum_over_processes(tensor: Tensor) -> Tensor:
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor
