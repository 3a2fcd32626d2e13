"""`eomt train --check`: decode every image of a data set, count its segments, and draw augmented samples."""

from collections.abc import Iterable, Sequence
from hashlib import sha256
from operator import itemgetter
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from .configuration.labels import LabelSpace
from .drawing import class_colors, draw_segments
from .image_processing.bands import picture_of
from .image_processing.rle import rle_areas
from .training.data import TrainTransform
from .training.data.samples import decode
from .training.files import write_json

TILE, GAP, COLUMNS = 360, 8, 4  # of the contact sheet; side and gap in pixels
MAX_LISTED = 20  # problems in a report


def check_data(
    dataset,
    label_space: LabelSpace,
    transform: TrainTransform,
    folder: str | Path,
    *,
    samples: int = 16,
    num_workers: int = 0,
    seed: int = 0,
    seen: dict[str, str] | None = None,
) -> dict:
    """Decode every image of a data set and write `check.json` and `check.png`.

    Args:
        dataset: rows from `load_data`.
        transform: of the training, for the sheet.
        folder: for the two files; created if missing.
        samples: number of augmented samples on the sheet.
        seen: {digest: file name} of the images of other splits. The images of this split are added.

    Returns:
        {"images", "unreadable": [message, …], "repeated": [name of an image of another split, …], "without_segments",
        "height", "width" and "segments_per_image": {"min", "median", "max"}, "crowds", "classes": [{"label", "name",
        "images", "segments", "pixels": share}, …], "sheet": path}. Unreadable images are listed, not raised, so that
        one pass finds all of them.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    loader = DataLoader(
        dataset.with_transform(_Counted(label_space, transform.num_channels)),
        batch_size=None,
        num_workers=num_workers,
        collate_fn=itemgetter("found"),
    )
    found = list(tqdm(loader, desc="reading every image", leave=False))
    good = [i for i, image in enumerate(found) if "error" not in image]
    names = {found[i]["digest"]: found[i]["file_name"] for i in good}
    seen = {} if seen is None else seen
    report = {
        "images": len(dataset),
        "unreadable": [image["error"] for image in found if "error" in image],
        "repeated": sorted(name for digest, name in names.items() if digest in seen),
        **_statistics([found[i] for i in good], label_space),
    }
    seen |= names
    if good:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            order = torch.randperm(len(good)).tolist()
            drawn = dataset.with_transform(transform)
            chosen = [good[order[i % len(good)]] for i in range(samples)]  # small data sets repeat their images
            present = [c["label"] for c in report["classes"] if c["segments"]]
            sheet = contact_sheet((drawn[i] for i in chosen), samples, label_space, class_colors(present))
        sheet.save(folder / "check.png")
        report["sheet"] = str(folder / "check.png")
    write_json(folder / "check.json", report, indent=2)
    return report


def list_problems(problems: Sequence[str]) -> str:
    """One problem per line, at most 20, then the number of further ones."""
    more = [f"  and {len(problems) - MAX_LISTED} more"] if len(problems) > MAX_LISTED else []
    return "\n".join([f"  {problem}" for problem in problems[:MAX_LISTED]] + more)


def describe(report: dict) -> str:
    """Format a report of `check_data` as text: the counts, then a histogram of the classes."""
    lines = [f"{report['images']} images, {len(report['unreadable'])} unreadable"]
    if report["unreadable"]:
        lines.append(list_problems(report["unreadable"]))
    if report["repeated"]:
        lines.append(f"{len(report['repeated'])} images are also in another split, for example {report['repeated'][0]}")
    if "height" in report:
        height, width, count = report["height"], report["width"], report["segments_per_image"]
        lines += [
            f"height {height['min']} … {height['max']} (median {height['median']:g}), "
            f"width {width['min']} … {width['max']} (median {width['median']:g})",
            f"{count['min']} … {count['max']} segments per image (median {count['median']:g}), "
            f"{report['without_segments']} images without segments, {report['crowds']} crowds",
            f"{'class':<28}{'images':>8}{'segments':>10}{'pixels':>8}",
        ]
        most = max((c["pixels"] for c in report["classes"]), default=0) or 1
        for c in sorted(report["classes"], key=lambda c: -c["pixels"]):
            bar = "█" * round(20 * c["pixels"] / most)
            lines.append(f"{c['name'][:27]:<28}{c['images']:>8}{c['segments']:>10}{c['pixels']:>8.1%}  {bar}".rstrip())
    if "sheet" in report:
        lines.append(f"augmented samples with their masks: {report['sheet']}")
    return "\n".join(lines)


def contact_sheet(samples: Iterable[dict], count: int, label_space: LabelSpace, colors: dict) -> Image.Image:
    """One image with a tile for each sample of a `TrainTransform`: its pixels, masks and class names.

    Samples are drawn one at a time: the masks of a crowded image can take gigabytes.
    """
    columns = min(COLUMNS, count)
    rows = -(-count // columns)
    step = TILE + GAP
    sheet = Image.new("RGB", (columns * step + GAP, rows * step + GAP), "white")
    for i, sample in enumerate(samples):
        image = picture_of(sample["pixel_values"])
        info = [{"id": k, "label_id": label} for k, label in enumerate(sample["class_labels"].tolist())]
        masks = sample["mask_labels"].numpy()  # [n, S_h, S_w]
        tile = draw_segments(image, masks, info, label_space.id2label, colors=colors)
        tile.thumbnail((TILE, TILE))
        sheet.paste(tile, (GAP + i % columns * step, GAP + i // columns * step))
    return sheet


class _Counted:
    """A transform of rows to the size, segments and digest of each image, or its error."""

    def __init__(self, label_space: LabelSpace, num_channels: int):
        self.label_space, self.num_channels = label_space, num_channels

    def __call__(self, rows: dict[str, list]) -> dict[str, list]:
        return {"found": [self._row(dict(zip(rows, values))) for values in zip(*rows.values())]}

    def _row(self, row: dict) -> dict:
        try:
            sample = decode(row, self.label_space, self.num_channels)
        except ValueError as error:
            return {"error": str(error)}
        if sample.rles is None:
            ids, counts = np.unique(sample.ids, return_counts=True)
            pixels = dict(zip(ids.tolist(), counts.tolist()))
            areas = [pixels.get(s["id"], 0) for s in sample.segments]
        else:
            areas = rle_areas(sample.rles).tolist()
        segments = [(s["label_id"], bool(s["iscrowd"]), area) for s, area in zip(sample.segments, areas)]
        digest = sha256(sample.image.numpy().tobytes()).hexdigest()
        size = tuple(sample.image.shape[1:])
        return {"size": size, "segments": segments, "digest": digest, "file_name": row["file_name"]}


def _statistics(found: list[dict], label_space: LabelSpace) -> dict:
    """The part of the report about the readable images."""
    if not found:
        return {}
    images, segments, pixels = np.zeros((3, label_space.num_labels), np.int64)  # by class
    counts, crowds = [], 0
    for image in found:
        plain = [(label, area) for label, is_crowd, area in image["segments"] if not is_crowd]
        counts.append(len(plain))
        crowds += len(image["segments"]) - len(plain)
        for label, area in plain:
            segments[label] += 1
            pixels[label] += area
        images[list({label for label, _ in plain})] += 1
    heights, widths = np.array([image["size"] for image in found]).T
    share = pixels / (heights * widths).sum()
    return {
        "without_segments": counts.count(0),
        "height": _spread(heights),
        "width": _spread(widths),
        "segments_per_image": _spread(counts),
        "crowds": crowds,
        "classes": [
            {
                "label": label,
                "name": name,
                "images": int(images[label]),
                "segments": int(segments[label]),
                "pixels": float(share[label]),
            }
            for label, name in enumerate(label_space.names)
        ],
    }


def _spread(values) -> dict:
    return {"min": int(np.min(values)), "median": float(np.median(values)), "max": int(np.max(values))}
