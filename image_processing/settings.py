"""The settings of an image processor: how they are saved and loaded, and what they may be."""

import math
from collections.abc import Mapping
from typing import Any, get_type_hints

from ..configuration.checkpoint import HUB_ARGUMENTS, checkpoint_stuff, checkpoint_task, read_beside
from ..configuration.eomt import code_upload_refused
from ..configuration.field_types import check_types, wrong
from ..configuration.tasks import TASKS
from .geometry import input_size_of

_FILTERS = range(6)  # Pillow's numbers
_JSON = (bool, int, float, str, list, tuple, dict)


class SavedSettings:
    """Mixin of the image processors, before transformers' own classes: files travel between this package and plain
    transformers."""

    @classmethod
    def get_image_processor_dict(cls, pretrained_model_name_or_path, **kwargs) -> tuple[dict, dict]:
        """Also reads config.json, which knows what the hub's processors do not: the classes, and with them the task."""
        hub = {name: kwargs[name] for name in HUB_ARGUMENTS if kwargs.get(name)}
        saved, kwargs = super().get_image_processor_dict(pretrained_model_name_or_path, **kwargs)
        if isinstance(saved, dict):
            path = str(pretrained_model_name_or_path)
            saved = {**saved, "checkpoint": (read_beside(path, "config.json", **hub), path)}
        return saved, kwargs

    @classmethod
    def from_dict(cls, image_processor_dict: dict, **kwargs):
        """Also reads what transformers' own processor saved, which knows no task. The task, saved, inferred or given
        as `task=`, decides between padding and windows, unless our own file or a keyword does."""
        saved = dict(image_processor_dict)
        config, path = saved.pop("checkpoint", ({}, None))
        own = saved.get("task") is not None
        if not own:
            saved["task"] = checkpoint_task(saved, config, saved, path)
        task = kwargs.get("task") or saved["task"]
        saved["stuff_label_ids"] = checkpoint_stuff(config, task, saved)
        check_settings({**saved, "task": task}, cls.valid_kwargs)
        if not own or (task == "semantic") != (saved["task"] == "semantic"):
            saved.pop("do_split_image", None)  # windows cannot be joined to segments, and semantic models expect them
            saved.pop("do_pad", None)
        return super().from_dict(saved, **kwargs)

    @classmethod
    def register_for_auto_class(cls, auto_class="AutoImageProcessor"):
        raise code_upload_refused()

    def to_dict(self) -> dict:
        """Settings as plain transformers reads them too: its class name, its spelling of square sizes."""
        settings = super().to_dict()
        settings["image_processor_type"] = "EomtImageProcessor"
        height, width = input_size_of(self.size, self.do_split_image)
        if self.do_split_image and height == width:
            settings["size"] = {"shortest_edge": height}
        elif height == width:
            settings["size"] = {"shortest_edge": height, "longest_edge": width}
        return settings


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
