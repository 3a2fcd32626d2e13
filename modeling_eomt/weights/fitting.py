"""Other people's state dicts ↔ ours, by a table of `key_maps`; and whether one fits a model."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .key_maps import Table

StateDict = dict[str, Tensor]


def take(state: StateDict, table: Table) -> tuple[StateDict, list[str], list[str]]:
    """Their state dict → (ours, keys of theirs that are missing, keys of theirs that are left over)."""
    ours, missing = {}, []
    for name, place in table.items():
        tensor = state.get(place.key)
        if tensor is None:
            missing.append(place.key)
        else:
            ours[name] = tensor.chunk(place.parts)[place.part] if place.parts > 1 else tensor
    used = {place.key for place in table.values()}
    return ours, sorted(set(missing)), sorted(set(state) - used)


def give(ours: StateDict, table: Table) -> StateDict:
    """Our state dict → theirs; parts are concatenated."""
    pieces: dict[str, list[Tensor]] = {}
    for name, place in sorted(table.items(), key=lambda item: item[1].part):
        pieces.setdefault(place.key, []).append(ours[name])
    return {key: torch.cat(parts) if len(parts) > 1 else parts[0].clone() for key, parts in pieces.items()}


def require_fit(
    what: str, model: nn.Module, ours: StateDict, missing: list[str], unexpected: list[str], keys: Table
) -> None:
    """Raise one `ValueError` with the missing, unexpected and mis-shaped keys in groups, unless all fits."""
    expected = model.state_dict()
    shapes = [
        f"{keys[name].key} {tuple(tensor.shape)}, the configuration gives {tuple(expected[name].shape)}"
        for name, tensor in ours.items()
        if tensor.shape != expected[name].shape
    ]
    groups = {"missing": missing, "unexpected": unexpected, "mis-shaped": shapes}
    if any(groups.values()):
        lines = [f"{what} does not fit the configuration; nothing was loaded."]
        lines += [f"{group} ({len(names)}): {_abridged(names)}" for group, names in groups.items() if names]
        raise ValueError("\n".join(lines))


def require_all_weights(what: str, model: nn.Module, found: Mapping) -> None:
    """`ValueError` unless a checkpoint's weights were the model's, all of them and finite.

    Args:
        found: what `from_pretrained(…, output_loading_info=True)` gave beside the model.
    """
    groups = {
        "missing": [name for name in sorted(found["missing_keys"]) if not name.startswith("criterion.")],
        "unexpected": sorted(found["unexpected_keys"]),
        "mis-shaped": sorted(name for name, *_ in found["mismatched_keys"]),
    }
    wrong = [f"{group} ({len(names)}): {_abridged(names, 3)}" for group, names in groups.items() if names]
    if wrong:
        raise ValueError(f"{what}: the weights do not fit config.json; {'; '.join(wrong)}")
    require_finite(what, model.state_dict())


def require_finite(what: str, state: Mapping[str, Tensor]) -> None:
    """`ValueError` naming the first tensors that hold NaN or infinity."""
    wrong = [name for name, tensor in state.items() if not tensor.is_meta and not tensor.isfinite().all()]
    if wrong:
        raise ValueError(f"{what} holds NaN or infinite weights ({len(wrong)}): {_abridged(wrong, 3)}")


def _abridged(names: list[str], limit: int = 12) -> str:
    more = f", … and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
