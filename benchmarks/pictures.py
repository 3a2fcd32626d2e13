"""Pictures of the pages that show images: of a model, of geometry, and sheets out of run folders.

    python -m benchmarks.pictures blocks RUN PHOTO OUTPUT.jpg        predictions before each masked block, and the last
    python -m benchmarks.pictures sample RUN DATA INDEX OUTPUT.jpg   photo, ground truth, prediction of a held-out image
    python -m benchmarks.pictures geometry PHOTO OUTPUT.jpg          padding beside windows
    python -m benchmarks.pictures sheet PICTURE [PICTURE …] OUTPUT.jpg    pictures of runs below each other

Every picture is at most 200 kB and as wide as a README.
"""

import argparse
import io
from pathlib import Path

import torch
from PIL import Image, ImageDraw

from eomt.auto import register
from eomt.configuration.labels import LabelSpace
from eomt.image_processing import placement
from eomt.inference.segment import open_source, segment
from eomt.inference.writing import write_atomic
from eomt.training.data import EvaluationTransform, load_data
from eomt.visualization import class_colors, draw_prediction, side_by_side
from eomt.visualization.sheets import make_font

from .own_data import draw

WIDTH, MOST_BYTES = 1200, 190_000
BARELY = 1e-9
"""A probability of being masked that makes a model predict before a block without masking anything there."""


def to_width(picture: Image.Image, width: int) -> Image.Image:
    return picture.resize((width, round(picture.height * width / picture.width)), Image.Resampling.LANCZOS)


def stack(pictures: list[Image.Image]) -> Image.Image:
    """Pictures of one width → one below the other."""
    whole = Image.new("RGB", (pictures[0].width, sum(picture.height for picture in pictures)), "white")
    top = 0
    for picture in pictures:
        whole.paste(picture, (0, top))
        top += picture.height
    return whole


def save_small(picture: Image.Image, path: Path, most_bytes: int = MOST_BYTES) -> None:
    """As JPEG, reduced in size and quality until it is small."""
    picture = picture.convert("RGB")
    if picture.width > WIDTH:
        picture = to_width(picture, WIDTH)
    for quality in range(90, 20, -5):
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=quality, optimize=True)
        if buffer.tell() < most_bytes:
            break
    write_atomic(path, lambda part: part.write_bytes(buffer.getvalue()))
    print(f"{path}: {picture.width} × {picture.height}, {buffer.tell() // 1000} kB")


def blocks(run: str, photo: str, path: Path, threshold: float | None) -> None:
    """What a trained model predicts before each of its last blocks, and at the end."""
    from transformers import AutoImageProcessor, AutoModelForUniversalSegmentation

    model = AutoModelForUniversalSegmentation.from_pretrained(run).eval()
    processor = AutoImageProcessor.from_pretrained(run)
    model.set_attn_mask_probs([BARELY] * model.config.num_blocks)
    image = open_source(photo)
    rules = {} if threshold is None else {"threshold": threshold}
    with torch.inference_mode():
        (found,) = segment(model, processor, [image], task=processor.task, intermediate=True, **rules)
    first = model.config.num_hidden_layers - model.config.num_blocks
    titles = [f"before block {first + k + 1}" for k in range(model.config.num_blocks)]
    titled = zip([*titles, "the last prediction"], [*found.before_blocks, found.prediction])
    colors = class_colors(range(model.config.num_labels))
    panels = [
        (title, draw_prediction(image, prediction, model.config.id2label, colors=colors, names=False))
        for title, prediction in titled
    ]
    save_small(side_by_side([("photo", image), *panels], height=320), path)


def sample(run: str, data: str, index: int, path: Path) -> None:
    """Photo, ground truth and prediction of an image of the validation split."""
    from transformers import AutoImageProcessor, AutoModelForUniversalSegmentation

    model = AutoModelForUniversalSegmentation.from_pretrained(run).eval()
    processor = AutoImageProcessor.from_pretrained(run)
    dataset, space = load_data(data, task=processor.task, split="val", label_space=LabelSpace.from_config(model.config))
    one = dataset.with_transform(EvaluationTransform(space, task=processor.task))[index]
    with torch.inference_mode():
        (found,) = segment(model, processor, [one["image"]], task=processor.task)
    save_small(draw(one, found.prediction, space, processor.task, "prediction"), path)


def geometry(photo: str, path: Path, side: int = 320) -> None:
    """One photo as a padded input, and as windows."""
    image = open_source(photo)
    padded = placement(image.height, image.width, side)
    canvas = Image.new("RGB", padded.input_size[::-1])
    canvas.paste(image.resize(padded.resized[::-1], Image.Resampling.LANCZOS))
    cut = placement(image.height, image.width, side, windowed=True)
    whole = image.resize(cut.resized[::-1], Image.Resampling.LANCZOS)
    marked = whole.copy()
    draw = ImageDraw.Draw(marked)
    for (top, left), color, inset in zip(cut.windows, ("#e8743b", "#2b5fd0", "#2a9d6f"), (2, 6, 10)):
        corner = (left + cut.input_size[1] - 1 - inset, top + cut.input_size[0] - 1 - inset)
        draw.rectangle(((left + inset, top + inset), corner), outline=color, width=4)
    windows = [whole.crop((left, top, left + side, top + side)) for top, left in cut.windows]
    sheet = side_by_side(
        [
            (f"photo, {image.height} × {image.width}", image),
            (f"padded: one input of {side} × {side}", canvas),
            (f"semantic: {len(windows)} windows of {side} × {side}", marked),
        ],
        height=side,
    )
    save_small(sheet, path)


def sheet(pictures: list[Path], path: Path, titles: list[str] | None = None) -> None:
    """Pictures of one width below each other; a title above each where given."""
    font, rows = make_font(26), []
    for number, file in enumerate(pictures):
        part = to_width(Image.open(file).convert("RGB"), WIDTH)
        if titles:
            head = Image.new("RGB", (WIDTH, 44), "white")
            ImageDraw.Draw(head).text((14, 14), titles[number], "black", font)
            rows.append(head)
        rows.append(part)
    save_small(stack(rows), path)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pictures", description=__doc__.splitlines()[0])
    kinds = parser.add_subparsers(dest="kind", required=True)
    of_blocks = kinds.add_parser("blocks")
    of_blocks.add_argument("run")
    of_blocks.add_argument("photo")
    of_blocks.add_argument("output", type=Path)
    of_blocks.add_argument("--threshold", type=float, help="panoptic: class probability that a query needs")
    of_sample = kinds.add_parser("sample")
    of_sample.add_argument("run")
    of_sample.add_argument("data")
    of_sample.add_argument("index", type=int)
    of_sample.add_argument("output", type=Path)
    of_geometry = kinds.add_parser("geometry")
    of_geometry.add_argument("photo")
    of_geometry.add_argument("output", type=Path)
    of_sheet = kinds.add_parser("sheet")
    of_sheet.add_argument("pictures", nargs="+", type=Path)
    of_sheet.add_argument("output", type=Path)
    of_sheet.add_argument("--titles", nargs="+")
    options = parser.parse_args(argv)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    register()
    if options.kind == "blocks":
        blocks(options.run, options.photo, options.output, options.threshold)
    elif options.kind == "sample":
        sample(options.run, options.data, options.index, options.output)
    elif options.kind == "geometry":
        geometry(options.photo, options.output)
    else:
        if options.titles and len(options.titles) != len(options.pictures):
            parser.error(f"{len(options.titles)} titles for {len(options.pictures)} pictures")
        sheet(options.pictures, options.output, options.titles)


if __name__ == "__main__":
    main()
