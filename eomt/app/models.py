"""The models of a page: each folder with each engine that is installed, loaded when first asked for."""

import threading
from pathlib import Path

from transformers import AutoImageProcessor

from ..inference.engines import exported_engines, missing_packages
from ..inference.loading import load_for_inference, require_model

TITLES = {"torch": "PyTorch", "openvino": "OpenVINO", "onnx": "ONNX Runtime"}
VIEWS = {
    "panoptic": ("panoptic", "instance", "semantic", "confidence"),
    "instance": ("instance", "semantic", "confidence"),
    "semantic": ("semantic", "confidence"),
}
"""What can be looked at, by the task a model was trained for; its own first."""


class ServedModel:
    """One model with one engine."""

    def __init__(self, name: str, folder: str, engine: str, device: str | None = None):
        self.name, self.folder, self.engine, self.device = name, folder, engine, device
        self.processor = AutoImageProcessor.from_pretrained(folder)
        self._model, self._lock = None, threading.Lock()

    @property
    def task(self) -> str:
        return self.processor.task

    @property
    def views(self) -> tuple[str, ...]:
        return VIEWS[self.task]

    def load(self):
        """The model, in evaluation mode with masked attention off."""
        with self._lock:
            if self._model is None:
                self._model = self._loaded()
            return self._model

    def _loaded(self):
        if self.engine != "torch":
            from ..inference.exported import ExportedEoMT

            return ExportedEoMT.from_pretrained(self.folder, engine=self.engine)
        return load_for_inference(self.folder, self.device)


def find_models(folders: list[str], device: str | None = None) -> dict[str, ServedModel]:
    """Folders or hub names → {name on the page: model}, in their order.

    Raises:
        ValueError: when there is no model, or none of its engines is installed.
    """
    found: dict[str, ServedModel] = {}
    for folder in folders:
        require_model(folder)
        exported = exported_engines(folder)
        engines = [engine for engine in exported if not missing_packages(engine)]
        if not exported or any(Path(folder).glob("*.safetensors")):
            engines = ["torch", *engines]
        if not engines:
            packages = " ".join(missing_packages(exported[0]))
            raise ValueError(f"{folder} was exported for {', '.join(exported)}; pip install {packages}")
        title = Path(folder).name if Path(folder).is_dir() else folder
        if any(name.startswith(f"{title}, ") for name in found):
            title = folder
        for engine in engines:
            name = f"{title}, {TITLES[engine]}"
            found[name] = ServedModel(name, folder, engine, device)
    return found
