"""`eomt serve`: a Gradio page for trying models on images, with an HTTP API.

The model runs once per image. Its logits are kept, so that the sliders respond at once.
"""

import hashlib
import importlib.util
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image

from .configuration import TASK_ROWS
from .configuration.labels import LabelSpace
from .drawing import class_colors, draw_confidence, draw_prediction, segment_colors, write_jpeg
from .image_processing.images import read_image
from .image_processing.inference import FAILS_ALONE, confident_instances, error_line, iter_segments, predict_image
from .image_processing.targets import nearest_index
from .loading import load_for_inference, require_model
from .options import ServeOptions
from .results import Results

VIEWS = {  # by the task of the model, the task itself first
    "panoptic": ("panoptic", "instance", "semantic", "confidence"),
    "instance": ("instance", "semantic", "confidence"),
    "semantic": ("semantic", "confidence"),
}
KEPT_IMAGES = 8  # with logits; the least recently used are dropped
SHOWN_SIDE = 1280  # pixels; longest side of a view
WAITING = 32  # requests at most; further ones are refused
KEPT_SECONDS = 3600  # age of deleted uploads and results


def serve(models: Sequence[str], options: ServeOptions) -> int:
    """Serve the page until interrupted. Returns the exit code."""
    if importlib.util.find_spec("gradio") is None:
        raise ValueError("the page needs Gradio: pip install '.[app]' in the checkout")
    for model in models:
        require_model(model)
    folder = Path(tempfile.mkdtemp(prefix="eomt-serve-"))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that `finally` deletes the folder
    try:
        page = start(Predictor(models, options), options, folder)
        page.block_thread()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


def start(predictor: "Predictor", options: ServeOptions, folder: Path):
    """Build the page and start to listen. Uploads and results are stored in `folder`.

    Raises:
        OSError: if the port cannot be used.
    """
    os.environ |= {"GRADIO_TEMP_DIR": str(folder), "GRADIO_ANALYTICS_ENABLED": "False"}
    tempfile.tempdir = str(folder)  # Gradio writes uploads to tempdir first
    page = build_page(predictor, options, folder)
    page.queue(max_size=WAITING, default_concurrency_limit=options.requests)
    page.launch(
        server_name=options.host,
        server_port=options.port,
        max_file_size=f"{options.max_upload}mb",
        allowed_paths=[],
        prevent_thread_lock=True,
        quiet=True,
        ssr_mode=False,
    )
    print(f"{', '.join(predictor.folders)}: http://{options.host}:{options.port} (Ctrl+C to stop)", flush=True)
    return page


def build_page(predictor: "Predictor", options: ServeOptions, folder: Path):
    """The page as `gr.Blocks`: inputs on the left, results on the right, one endpoint of the API."""
    import gradio as gr

    names = list(predictor.folders)
    views = VIEWS[predictor.load(names[0]).task]

    def answer(compute):
        """`compute` for a request, with bad input reported to the visitor in one line."""

        def run(photo, model, view, score, mask, overlap):  # the parameters of the HTTP API
            try:
                if not photo:
                    raise ValueError("give an image")
                return compute(Request(predictor, photo, model, view, score, mask, overlap))
            except FAILS_ALONE as error:
                line = error_line(error).replace(str(photo), Path(str(photo)).name)
                raise gr.Error(line, print_exception=False) from None

        return run

    def draw_view(request: Request):
        drawn, annotations, colors = request.draw()
        return gr.AnnotatedImage(value=(drawn, annotations), color_map=colors)

    def fit_model(name: str):
        views = VIEWS[predictor.load(name).task]
        return gr.Radio(views, value=views[0])

    def fit_view(view: str):
        threshold = TASK_ROWS[view].drawing_threshold if view in TASK_ROWS else None
        shown = {"visible": threshold is not None}
        return gr.Slider(value=threshold or 0.5, **shown), gr.Slider(**shown), gr.Slider(visible=view == "panoptic")

    with gr.Blocks(title="EoMT", delete_cache=(KEPT_SECONDS // 10, KEPT_SECONDS)) as page, gr.Row():
        with gr.Column():
            # Not gr.Image, which would decode the image before its size is checked.
            image = gr.File(label="Image", file_types=["image"], height=140)
            model = gr.Dropdown(names, value=names[0], label="Model", visible=len(names) > 1)
            view = gr.Radio(views, value=views[0], label="View")
            threshold = TASK_ROWS[views[0]].drawing_threshold
            score = gr.Slider(0, 1, threshold or 0.5, step=0.01, label="Score", visible=threshold is not None)
            mask = gr.Slider(0.05, 0.95, 0.5, step=0.01, label="Mask probability", visible=threshold is not None)
            overlap = gr.Slider(0, 1, 0.8, step=0.01, label="Visible share", visible=views[0] == "panoptic")
            button = gr.Button("Get files")
        with gr.Column(scale=2):
            shown = gr.AnnotatedImage(label="Segments")
            result = gr.JSON(label="Result")
            files = gr.File(label="Files", file_count="multiple")
        inputs = [image, model, view, score, mask, overlap]
        draw = {"fn": answer(draw_view), "inputs": inputs, "outputs": shown, "api_visibility": "private"}
        model.input(fit_model, model, view, api_visibility="private").then(**draw)
        view.change(fit_view, view, [score, mask, overlap], api_visibility="private").then(**draw)
        image.upload(**draw)
        for slider in (score, mask, overlap):
            slider.release(**draw)
        button.click(answer(lambda request: request.write(folder)), inputs, [result, files], api_name="segment")
    return page


class Predictor:
    """Loads models on first use and keeps the logits of the last images.

    Args:
        models: folders or hub names.
    """

    def __init__(self, models: Sequence[str], options: ServeOptions):
        titles = [Path(model).name if Path(model).is_dir() else model for model in models]
        self.folders: dict[str, str] = {}  # name on the page → folder or hub name
        for title, model in zip(titles, models):
            name = title if titles.count(title) == 1 else model
            self.folders[name] = model
        self.options = options
        self._loaded: dict[str, SimpleNamespace] = {}
        self._outputs: OrderedDict[tuple[str, str], tuple] = OrderedDict()
        self._lock = threading.Lock()

    def load(self, name: str) -> SimpleNamespace:
        """The model, its processor and its task. Raises `ValueError` for a name that is not on the page."""
        if name not in self.folders:
            raise ValueError(f"there is no model {name!r}; choose from {', '.join(self.folders)}")
        with self._lock:
            if name not in self._loaded:
                model, processor = load_for_inference(self.folders[name], self.options.device)
                self._loaded[name] = SimpleNamespace(model=model, processor=processor, task=processor.task)
            return self._loaded[name]

    def run(self, path: str, name: str) -> tuple[Image.Image, SimpleNamespace]:
        """RGB image and model outputs for an uploaded file.

        Raises:
            ValueError: for a file that is not an image, or a truncated or too large image.
        """
        key = (hashlib.sha256(Path(path).read_bytes()).hexdigest(), name)
        with self._lock:
            if key in self._outputs:
                self._outputs.move_to_end(key)
                return self._outputs[key]
        loaded = self.load(name)
        image = read_image(path, max_pixels=self.options.max_pixels)
        inputs = loaded.processor(image, return_tensors="pt")
        offsets = [tuple(int(v) for v in row) for row in inputs["patch_offsets"]] or None
        with torch.no_grad():
            outputs = loaded.model(pixel_values=inputs["pixel_values"].to(loaded.model.device), patch_offsets=offsets)
        outputs = SimpleNamespace(
            masks_queries_logits=outputs.masks_queries_logits.cpu(),
            class_queries_logits=outputs.class_queries_logits.cpu(),
            patch_offsets=offsets,
        )
        with self._lock:
            self._outputs[key] = image, outputs
            if len(self._outputs) > KEPT_IMAGES:
                self._outputs.popitem(last=False)
        return image, outputs


class Request:
    """An image, a model, a view, and the thresholds of the sliders. Raises `ValueError` for unknown names, and as
    `Predictor.run`.
    """

    def __init__(
        self, predictor: Predictor, path: str, name: str, view: str, score: float, mask: float, overlap: float
    ):
        self.loaded = predictor.load(name)
        if view not in VIEWS[self.loaded.task]:
            raise ValueError(f"{name} has no {view} view; choose from {', '.join(VIEWS[self.loaded.task])}")
        self.path, self.view, self.score = path, view, score
        self.task = "semantic" if view == "confidence" else view
        self.rules = {}
        if view == "panoptic":
            self.rules = {"threshold": score, "overlap_mask_area_threshold": overlap}
        if view in ("panoptic", "instance"):
            self.rules["mask_threshold"] = min(max(mask, 1e-3), 1 - 1e-3)
        if view == "confidence":
            self.rules["confidence"] = True
        self.image, self.outputs = predictor.run(path, name)

    def predict(self, size: tuple[int, int]) -> dict:
        found = predict_image(self.loaded.processor, self.outputs, size, self.task, **self.rules)
        return confident_instances(found, self.score) if self.view == "instance" else found

    def segments(self, prediction: dict) -> list[tuple[int, str, float | None, np.ndarray]]:
        """Label, name, score and mask (H, W) of each segment."""
        names = self.loaded.model.config.id2label
        return [(label, names[label], score, mask) for label, score, mask in iter_segments(prediction)]

    def draw(self) -> tuple:
        """For `gr.AnnotatedImage`: the scaled image, (mask, text) of each segment, and {text: color}."""
        factor = min(1.0, SHOWN_SIDE / max(self.image.size))
        width, height = (max(1, round(side * factor)) for side in self.image.size)
        image = self.image.resize((width, height), reducing_gap=2.0) if factor < 1 else self.image
        if self.task == "semantic":  # the windows of the outputs are those of the real size
            prediction = self.predict((self.image.height, self.image.width))
            rows, columns = nearest_index(self.image.height, height), nearest_index(self.image.width, width)
            prediction = {name: pixels[rows][:, columns] for name, pixels in prediction.items()}
        else:
            prediction = self.predict((height, width))
        if self.view == "confidence":
            return draw_confidence(prediction["confidence"].numpy()), [], {}
        segments = self.segments(prediction)
        labels = [label for label, *_ in segments]
        tints = segment_colors(labels, class_colors(labels))
        annotations, colors = [], {}
        for number, ((_, name, score, mask), tint) in enumerate(zip(segments, tints), 1):
            text = f"{number} {name}" if score is None else f"{number} {name} {score:.2f}"
            annotations.append((mask.astype(np.float32), text))
            colors[text] = "#{:02x}{:02x}{:02x}".format(*tint)
        return image, annotations, colors

    def write(self, folder: Path) -> tuple[dict, list[str]]:
        """Write the files of `eomt predict`: overlay, JSON, PNG. Returns the segments and the paths."""
        config, stem = self.loaded.model.config, Path(self.path).stem
        prediction = self.predict((self.image.height, self.image.width))
        target = Path(tempfile.mkdtemp(dir=folder))
        results = Results(target, self.task, LabelSpace.from_config(config))
        results.write(stem, Path(self.path).name, prediction)
        results.finish([stem])
        write_jpeg(target / f"{stem}.jpg", draw_prediction(self.image, prediction, config.id2label, legend=True))
        listed = [{"label": name, "score": score} for _, name, score, _ in self.segments(prediction)]
        files = [file for file in target.rglob("*") if file.is_file()]
        shown = [str(file) for file in files if file.parent.name != "records" and file.name != "run.json"]
        return {"view": self.view, "segments": listed}, sorted(shown)
