"""The page, by Gradio: photos in, views out. Handlers return a line for the page where a visitor's input is bad."""

import tempfile
from functools import partial
from pathlib import Path

import gradio as gr

from eomt.app.downloads import write_files
from eomt.app.limits import Limits
from eomt.app.predictor import Photo, Predictor, Thresholds, segments
from eomt.app.views import figure, message, shown_size
from eomt.inference.image_files import SUFFIXES
from eomt.inference.segment import FAILS_ALONE, reason_of

NONE = "none"


def build_page(predictor: Predictor, limits: Limits, folder: Path) -> gr.Blocks:
    """Models → the page; files to download are written below `folder`."""
    names = list(predictor.models)
    first = predictor.models[names[0]]
    views = list(dict.fromkeys(view for model in predictor.models.values() for view in model.views))
    with gr.Blocks(title="EoMT", analytics_enabled=False, fill_width=True) as page:
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                files = gr.File(label="Photos (drop them here)", file_count="multiple", height=140, elem_id="photos")
                directory = gr.UploadButton("A folder of photos", file_count="directory", elem_id="folder")
                photo = gr.Dropdown([], label="Photo", elem_id="photo")
                model = gr.Dropdown(names, value=names[0], label="Model", elem_id="model")
                other = gr.Dropdown([NONE, *names], value=NONE, label="Beside it", elem_id="other")
                view = gr.Radio(views, value=first.views[0], label="View", elem_id="view")
                score = gr.Slider(0, 1, 0.5, step=0.01, label="Score", elem_id="score")
                mask = gr.Slider(0.05, 0.95, 0.5, step=0.01, label="Mask probability", elem_id="mask")
                overlap = gr.Slider(0, 1, 0.8, step=0.01, label="Share a segment must keep", elem_id="overlap")
                make = gr.Button("Make files: overlay, COCO json, label png", elem_id="make")
                made = gr.File(label="Files", file_count="multiple", interactive=False, elem_id="made")
            with gr.Column(scale=3, min_width=300):
                line = gr.HTML(elem_id="message")
                with gr.Row():
                    left = gr.HTML(elem_id="left")
                    right = gr.HTML(elem_id="right", visible=False)
        common = {"concurrency_id": "model", "concurrency_limit": limits.requests, "api_visibility": "private"}
        inputs = [files, photo, model, other, view, score, mask, overlap]
        draw = {"fn": partial(_draw, predictor), "inputs": inputs, "outputs": [left, right, line]}
        directory.upload(lambda paths: paths, directory, files, api_visibility="private")
        listed = files.change(_list, files, [photo, made], api_visibility="private")
        listed.then(**draw, **common)
        for control in (photo, model, other, view):
            control.input(**draw, **common)
        for slider in (score, mask, overlap):
            slider.change(**draw, **common, trigger_mode="always_last", show_progress="hidden")
        make.click(partial(_files, predictor, folder), inputs, [made, line], **common)
        _add_api(predictor, folder, limits)
    page.queue(max_size=limits.waiting, default_concurrency_limit=limits.requests, api_open=False)
    return page


def _add_api(predictor: Predictor, folder: Path, limits: Limits) -> None:
    """`/segment`: the same without the page."""
    with gr.Row(visible=False):
        photo = gr.File(label="photo")
        model = gr.Textbox("", label="model")
        view = gr.Textbox("", label="view")
        numbers = [gr.Number(value, label=name) for name, value in (("score", 0.5), ("mask", 0.5), ("overlap", 0.8))]
        result, files = gr.JSON(label="result"), gr.File(label="files", file_count="multiple")
        gr.Button().click(
            partial(_segment, predictor, folder),
            [photo, model, view, *numbers],
            [result, files],
            api_name="segment",
            api_description="A photo → its segments and the files overlay.jpg, COCO json, label png.",
            concurrency_id="model",
            concurrency_limit=limits.requests,
        )


def _list(files: list[str] | None):
    """Uploaded files → the list to choose from, its first selected."""
    choices = [(Path(path).name, i) for i, path in enumerate(files or []) if Path(path).suffix.lower() in SUFFIXES]
    choices = choices or [(Path(path).name, i) for i, path in enumerate(files or [])]
    return gr.Dropdown(choices=choices, value=choices[0][1] if choices else None), None


def _draw(predictor: Predictor, files, index, name, other, view, score, mask, overlap):
    if not files or index is None:
        return "", gr.HTML("", visible=False), ""
    shown, said = [], []
    for one in (name, other):
        if one == NONE:
            continue
        try:
            shown.append(
                _figure(predictor, files[int(index)], one, view, Thresholds(score=score, mask=mask, overlap=overlap))
            )
        except FAILS_ALONE as error:
            shown.append("")
            said += [reason_of(error)]
    right = shown[1] if len(shown) > 1 else ""
    return shown[0], gr.HTML(right, visible=bool(right)), message("; ".join(dict.fromkeys(said)))


def _figure(predictor: Predictor, path: str, name: str, view: str, thresholds: Thresholds) -> str:
    served, photo = predictor.model(name), predictor.photo(path, name)
    size = shown_size(photo.image)
    found = segments(served, photo, view, thresholds, size)
    image = photo.image.resize(size[::-1]) if size[::-1] != photo.image.size else photo.image
    return figure(served.name, view, found, image, dict(served.load().config.id2label))


def _files(predictor: Predictor, folder: Path, files, index, name, other, view, score, mask, overlap):
    if not files or index is None:
        return None, message("choose a photo first")
    try:
        thresholds = Thresholds(score=score, mask=mask, overlap=overlap)
        return _written(predictor, folder, files[int(index)], name, view, thresholds)[1], ""
    except FAILS_ALONE as error:
        return None, message(reason_of(error))


def _written(predictor: Predictor, folder: Path, path: str, name, view: str, thresholds: Thresholds):
    served = predictor.model(name)
    photo: Photo = predictor.photo(path, name)
    found = segments(served, photo, view, thresholds)
    target = Path(tempfile.mkdtemp(dir=folder))
    written = write_files(target, Path(path).name, view, found, photo.image, served.load().config)
    return found, [str(file) for file in written]


def _segment(predictor: Predictor, folder: Path, photo, model, view, score, mask, overlap):
    try:
        if not photo:
            raise ValueError("give a photo")
        served = predictor.model(model)
        view, thresholds = view or served.task, Thresholds(score=score, mask=mask, overlap=overlap)
        found, files = _written(predictor, folder, photo, served.name, view, thresholds)
    except FAILS_ALONE as error:
        raise gr.Error(reason_of(error), print_exception=False) from None
    return _summary(view, found, served.load().config.id2label), files


def _summary(view: str, found: dict, id2label: dict) -> dict:
    if view == "instance":
        pairs = zip(found["labels"].tolist(), found["scores"].tolist())
    elif view == "panoptic":
        pairs = ((s["label_id"], s["score"]) for s in found["segments_info"])
    else:
        pairs = ((c, None) for c in found["segmentation"].unique().tolist())
    return {"view": view, "segments": [{"label": id2label[c], "score": score} for c, score in pairs]}
