"""What the settings of an image processor may be: types by the annotations, and ranges."""

import math
from collections.abc import Mapping
from typing import Any, get_type_hints

from ..configuration.field_types import check_types, wrong
from ..configuration.tasks import TASKS

_FILTERS = range(6)  # Pillow's numbers
_JSON = (bool, int, float, str, list, tuple, dict)


def check_settings(settings: Mapping[str, Any], kinds: type) -> None:
    """Raise `ValueError` for a setting of a wrong type or out of its range. Objects that no json holds pass.

    Args:
        kinds: the processor's `valid_kwargs`, a TypedDict.
    """
    hints = get_type_hints(kinds)
    plain = {name: value for name, value in settings.items() if name in hints and isinstance(value, _JSON)}
    if isinstance(plain.get("size"), dict):  # transformers writes {"shortest_edge": 512, "longest_edge": null}
        plain["size"] = {edge: side for edge, side in plain["size"].items() if side is not None}
    check_types(hints, plain)
    if settings.get("task", TASKS[0]) not in TASKS:
        raise wrong("task", settings["task"], f"one of {', '.join(TASKS)}")
    for name in ("image_mean", "image_std", "rescale_factor"):
        value = settings.get(name)
        if value is None:
            continue
        values = value if isinstance(value, (list, tuple)) else [value]
        if len(values) not in (1, 3):
            raise wrong(name, value, "one number, or three")
        if not all(math.isfinite(v) for v in values):
            raise wrong(name, value, "finite")
        if name != "image_mean" and not all(v > 0 for v in values):
            raise wrong(name, value, "above 0")
    if settings.get("num_labels") is not None and settings["num_labels"] < 1:
        raise wrong("num_labels", settings["num_labels"], "1 or more")
    if any(label < 0 for label in settings.get("stuff_label_ids") or ()):
        raise wrong("stuff_label_ids", settings["stuff_label_ids"], "labels, 0 or more")
    resample = plain.get("resample")
    if resample is not None and resample not in _FILTERS:
        raise wrong("resample", resample, "one of Pillow's filters, 0 to 5")
