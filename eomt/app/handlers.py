"""What the page and the API call. Bad input is answered with one line, never with a stack of calls."""

import tempfile
from pathlib import Path

import gradio as gr

from ..image_processing.inference import FAILS_ALONE, error_line
from ..inference.image_files import IMAGE_SUFFIXES
from ..visualization import class_colors
from .downloads import write_files
from .predictor import Predictor, Thresholds, default_score, segments
from .views import figure, message, named_segments, problem

NONE = "none"
EMPTY = '<p class="eomt-empty">Add photos to see their segments here.</p>'


class Handlers:
    """Args: `folder`: files to download are written below it."""

    def __init__(self, predictor: Predictor, folder: Path):
        self.predictor, self.folder = predictor, folder

    def list_photos(self, files: list[str] | None):
        """Uploaded files → the list to choose from, its first selected; hidden for one."""
        named = [(Path(path).name, i) for i, path in enumerate(files or [])]
        choices = [choice for choice in named if choice[0].lower().endswith(IMAGE_SUFFIXES)] or named
        first = choices[0][1] if choices else None
        return gr.Dropdown(choices=choices, value=first, visible=len(choices) > 1, label=f"Photo (of {len(choices)})")

    def fit_model(self, name: str, view: str):
        """A model was chosen → its views, and the sliders as `fit_view` has them; what it has too stays chosen."""
        views = self.predictor.model(name).views
        if view in views:
            return gr.Radio(views), gr.Slider(), gr.Slider(), gr.Slider()
        return gr.Radio(views, value=views[0]), *self.fit_view(views[0])

    def fit_view(self, view: str):
        """A view was chosen → the sliders that act on it, the score at its default."""
        score = default_score(view)
        return (
            gr.Slider(visible=score is not None, **({"value": score} if score is not None else {})),
            gr.Slider(visible=score is not None),
            gr.Slider(visible=view == "panoptic"),
        )

    def draw(self, files, index, name, other, view, score, mask, overlap):
        """→ the views as HTML; an empty list of files, as those made before belong to an earlier view."""
        no_files = gr.File(value=None, visible=False)
        if not files or index is None:
            return EMPTY, no_files
        path, thresholds = files[int(index)], Thresholds(score=score, mask=mask, overlap=overlap)
        found, failed = {}, {}
        names = [model for model in dict.fromkeys((name, other)) if model != NONE]
        for model in names:
            try:
                served, photo = self.predictor.model(model), self.predictor.photo(path, model)
                size = (photo.shown.height, photo.shown.width)
                id2label = dict(served.load().config.id2label)
                found[model] = (photo.shown, segments(served, photo, view, thresholds, size), id2label)
            except FAILS_ALONE as error:
                failed[model] = error_line(error)
        if len(set(failed.values())) == 1 and not found:  # the photo's fault
            return message(next(iter(failed.values()))), no_files
        colors = class_colors(
            s.label for _, result, labels in found.values() for s in named_segments(view, result, labels)
        )
        figures = []
        for model in names:
            if model in failed:
                figures.append(problem(model, failed[model]))
            else:
                image, result, labels = found[model]
                figures.append(figure(model, view, result, image, labels, colors))
        return f'<div class="eomt-views">{"".join(figures)}</div>', no_files

    def make_files(self, files, index, name, other, view, score, mask, overlap):
        """→ the files of the first model's view, a line for the page."""
        if not files or index is None:
            return None, message("add a photo first")
        try:
            thresholds = Thresholds(score=score, mask=mask, overlap=overlap)
            return gr.File(self._write(files[int(index)], name, view, thresholds)[1], visible=True), ""
        except FAILS_ALONE as error:
            return None, message(error_line(error))

    def segment(self, photo, model="", view="", score=None, mask=0.5, overlap=0.8):
        """The API: a photo → {"view", "segments": [{"label", "score"}, …]}, and the files."""
        try:
            if not photo:
                raise ValueError("give a photo")
            served = self.predictor.model(model)
            given = {"score": score, "mask": mask, "overlap": overlap}
            thresholds = Thresholds(**{name: value for name, value in given.items() if value is not None})
            view = view or served.task
            found, files = self._write(photo, served.name, view, thresholds)
        except FAILS_ALONE as error:
            raise gr.Error(error_line(error), print_exception=False) from None
        listed = named_segments(view, found, dict(served.load().config.id2label))
        result = {"view": view, "segments": [{"label": segment.name, "score": segment.score} for segment in listed]}
        return result, files

    def _write(self, path: str, name: str, view: str, thresholds: Thresholds) -> tuple[dict, list[str]]:
        served, photo = self.predictor.model(name), self.predictor.photo(path, name)
        found = segments(served, photo, view, thresholds)
        target = Path(tempfile.mkdtemp(dir=self.folder))
        written = write_files(target, Path(path).name, view, found, photo.image, served.load().config)
        return found, [str(file) for file in written]
