"""The page, by Gradio: what stands where, and what calls what."""

from pathlib import Path

import gradio as gr

from .handlers import EMPTY, NONE, Handlers
from .limits import Limits
from .predictor import Predictor, default_score

KEPT_SECONDS = 3600
"""Uploads and files to download are deleted after this time, looked for every tenth of it."""
TITLE = "<header><h1>EoMT</h1><p>Segments of your photos. Point at one to read its class and score.</p></header>"


def build_page(predictor: Predictor, limits: Limits, folder: Path) -> gr.Blocks:
    """Models → the page; files to download are written below `folder`."""
    names, handlers = list(predictor.models), Handlers(predictor, folder)
    first = predictor.models[names[0]]
    start = default_score(first.views[0])
    kept = (KEPT_SECONDS // 10, KEPT_SECONDS)
    with (
        gr.Blocks(title="EoMT", analytics_enabled=False, fill_width=True, delete_cache=kept) as page,
        gr.Row(elem_id="layout"),
    ):
        with gr.Column(elem_id="choose"):
            gr.HTML(TITLE)
            files = gr.File(label="Photos", file_count="multiple", height=140, elem_id="photos")
            directory = gr.UploadButton("Add a folder", file_count="directory", size="sm", elem_id="folder")
            photo = gr.Dropdown([], label="Photo", filterable=False, visible=False, elem_id="photo")
        with gr.Column(elem_id="result"):
            line = gr.HTML(elem_id="message")
            shown = gr.HTML(EMPTY, elem_id="shown")
        with gr.Column(elem_id="settings"):
            model = gr.Dropdown(names, value=names[0], label="Model", filterable=False, elem_id="model")
            other = gr.Dropdown(
                [NONE, *names],
                value=NONE,
                label="Compare with",
                filterable=False,
                visible=len(names) > 1,
                elem_id="other",
            )
            view = gr.Radio(first.views, value=first.views[0], label="View", elem_id="view")
            score = gr.Slider(
                0, 1, start, step=0.01, visible=start is not None, label="Score",
                info="Hide segments that the model is less sure of.", elem_id="score",
            )  # fmt: skip
            mask = gr.Slider(
                0.05, 0.95, 0.5, step=0.01, visible=start is not None, label="Mask probability",
                info="From which a pixel belongs to a mask: lower is larger.", elem_id="mask",
            )  # fmt: skip
            overlap = gr.Slider(
                0, 1, 0.8, step=0.01, visible=first.views[0] == "panoptic", label="Visible share",
                info="Hide segments that keep less of their mask than this.", elem_id="overlap",
            )  # fmt: skip
            make = gr.Button("Get files", elem_id="make")
            made = gr.File(
                label="Overlay, COCO json, label png", file_count="multiple", interactive=False, visible=False,
                elem_id="made",
            )  # fmt: skip
        common = {"concurrency_id": "model", "concurrency_limit": limits.requests, "api_visibility": "private"}
        quick = {"api_visibility": "private", "queue": False, "show_progress": "hidden"}
        inputs = [files, photo, model, other, view, score, mask, overlap]
        draw = {"fn": handlers.draw, "inputs": inputs, "outputs": [shown, made]}
        directory.upload(lambda paths: paths, directory, files, **quick)
        files.change(handlers.list_photos, files, photo, **quick).then(**draw, **common)
        sliders = [score, mask, overlap]
        model.input(handlers.fit_model, [model, view], [view, *sliders], **quick).then(**draw, **common)
        view.input(handlers.fit_view, view, sliders, **quick).then(**draw, **common)
        for control in (photo, other):
            control.input(**draw, **common)
        for slider in sliders:
            slider.input(**draw, **common, trigger_mode="always_last", show_progress="hidden")
        make.click(handlers.make_files, inputs, [made, line], **common)
        _add_api(handlers, limits)
    page.queue(max_size=limits.waiting, default_concurrency_limit=limits.requests, api_open=False)
    return page


def _add_api(handlers: Handlers, limits: Limits) -> None:
    """`/segment`: the same without the page."""
    with gr.Row(visible=False):
        inputs = [gr.File(label="photo"), gr.Textbox("", label="model"), gr.Textbox("", label="view")]
        for label, value in (("score", None), ("mask", 0.5), ("overlap", 0.8)):
            inputs.append(gr.Number(value, label=label))
        gr.Button().click(
            handlers.segment,
            inputs,
            [gr.JSON(label="result"), gr.File(label="files", file_count="multiple")],
            api_name="segment",
            api_description="A photo → its segments and the files overlay.jpg, COCO json, label png.",
            concurrency_id="model",
            concurrency_limit=limits.requests,
        )
