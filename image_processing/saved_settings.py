"""How an image processor is saved and loaded, so that files travel between this package and plain transformers."""

from ..configuration.checkpoint import HUB_ARGUMENTS, checkpoint_stuff, checkpoint_task, read_beside
from ..configuration.eomt import code_upload_refused
from .geometry import input_size_of
from .settings import check_settings


class SavedSettings:
    """Mixin of the image processors, before transformers' own classes."""

    @classmethod
    def get_image_processor_dict(cls, pretrained_model_name_or_path, **kwargs) -> tuple[dict, dict]:
        """Also reads config.json, which knows what the hub's processors do not: the classes, and with them the task."""
        hub = {name: kwargs[name] for name in HUB_ARGUMENTS if kwargs.get(name)}
        saved, kwargs = super().get_image_processor_dict(pretrained_model_name_or_path, **kwargs)
        if isinstance(saved, dict) and (saved.get("task") is None or saved.get("stuff_label_ids") is None):
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
        if saved.get("stuff_label_ids") is None:
            saved["stuff_label_ids"] = checkpoint_stuff(config, task)
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
