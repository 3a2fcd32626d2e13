"""The BRAVO benchmark (valeoai/bravo_challenge): the paper's Tables 8 and E, for a model or for prediction files.

python -m benchmarks.bravo --data BRAVO --model runs/cityscapes --save-predictions raw
python -m benchmarks.bravo --data BRAVO --predictions raw

    bravo_ACDC/{fog,rain,night,snow}/test/GOPR…/X_rgb_anon.png         X_gt_labelTrainIds.png   X_gt_invIds.png
    bravo_{synrain,synflare,outofcontext}/CITY/X_leftImg8bit.png       X_gt_labelTrainIds.png   X_gt_invIds.png
    bravo_synobjs/OBJECT/X.png                                         X_gt.png                 X_mask.png
    bravo_SMIYC/RoadAnomaly21/images/X.jpg                     X_labels_semantic_fake.png   X_labels_semantic.png
    (any of them)                                                      X_samples.bin

Extract all archives into one folder. Ground truth and bravo_SAMPLING.tar may also lie in folders of their own beside
the images. Predictions are the challenge's raw files: the name of the image with `_pred.png` (train ids, 8 bit) and
`_conf.png` (confidence, 16 bit). Every metric is over Cityscapes' 19 classes.

H, W image
"""

import argparse
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import harmonic_mean, mean

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from eomt.configuration.labels import IGNORE_INDEX, label_space
from eomt.configuration.recipes import REPORTED
from eomt.image_processing.inference import infer
from eomt.loading import load_for_inference
from eomt.training.files import write_atomic, write_json
from eomt.training.metrics import OutOfDistribution
from eomt.training.metrics.out_of_distribution import confidence_levels

CITYSCAPES = label_space("cityscapes_semantic")
SAMPLES = 100_000  # pixels of an image in the out-of-distribution score, at most


@dataclass(frozen=True)
class Subset:
    """The folder of a subset and the endings of its files."""

    name: str
    folder: str
    image: str  # without the suffix
    labels: str
    invalid: str


_TRUTH = ("_gt_labelTrainIds.png", "_gt_invIds.png")
SUBSETS = (
    Subset("ACDCfog", "bravo_ACDC/fog", "_rgb_anon", *_TRUTH),
    Subset("ACDCrain", "bravo_ACDC/rain", "_rgb_anon", *_TRUTH),
    Subset("ACDCnight", "bravo_ACDC/night", "_rgb_anon", *_TRUTH),
    Subset("ACDCsnow", "bravo_ACDC/snow", "_rgb_anon", *_TRUTH),
    Subset("synrain", "bravo_synrain", "_leftImg8bit", *_TRUTH),
    Subset("synobjs", "bravo_synobjs", "", "_gt.png", "_mask.png"),
    Subset("synflare", "bravo_synflare", "_leftImg8bit", *_TRUTH),
    Subset("outofcontext", "bravo_outofcontext", "_leftImg8bit", *_TRUTH),
    Subset("SMIYC", "bravo_SMIYC", "", "_labels_semantic_fake.png", "_labels_semantic.png"),
)
WITHOUT_CLASSES = ("SMIYC",)  # labels for valid pixels only, not for the 19 classes
WITH_OBJECTS = ("synobjs", "SMIYC")  # objects of none of the classes


@dataclass(frozen=True)
class BravoImage:
    """An image: its files, and its path from `bravo_…/` on without suffix as its name."""

    subset: Subset
    name: str
    file: Path
    labels: Path
    invalid: Path
    samples: Path | None

    def reference(self) -> dict[str, np.ndarray]:
        """For `OutOfDistribution`: {"segmentation" (H, W) train ids, "invalid" (H, W), "pixels" flat indices}."""
        labels = np.asarray(Image.open(self.labels)).astype(np.int32)
        if self.subset.name in WITHOUT_CLASSES:
            labels = np.where(labels == IGNORE_INDEX, IGNORE_INDEX, 0)
        pixels = read_samples(self.samples) if self.samples else draw_samples(labels)
        return {"segmentation": labels, "invalid": np.asarray(Image.open(self.invalid)), "pixels": pixels}


def find_images(folder: Path, subsets: Iterable[str] = ()) -> list[BravoImage]:
    """The images of the named subsets, by default of all.

    Raises:
        ValueError: for an unknown or missing subset, or an image without ground truth.
    """
    known = {subset.name: subset for subset in SUBSETS}
    unknown = set(subsets) - set(known)
    if unknown:
        raise ValueError(f"BRAVO has no subset {min(unknown)!r}; choose from {', '.join(known)}")
    files = files_from_bravo(folder)
    images = []
    for name in subsets or known:
        subset = known[name]
        found = subset_images(subset, files)
        if not found:
            raise ValueError(f"{folder} has no {subset.name} ({subset.folder}/); extract its archive there")
        images += found
    return images


def subset_images(subset: Subset, files: dict[str, Path]) -> list[BravoImage]:
    images = []
    not_images = (subset.labels, subset.invalid, "_pred.png", "_conf.png")
    for name in sorted(files):
        stem, _, suffix = name.rpartition(".")
        of_subset = name.startswith(f"{subset.folder}/") and suffix.lower() in ("png", "jpg")
        if not of_subset or name.endswith(not_images) or not stem.endswith(subset.image):
            continue
        base = stem.removesuffix(subset.image)
        labels, invalid = base + subset.labels, base + subset.invalid
        for file in (labels, invalid):
            if file not in files:
                raise ValueError(f"{name} has no ground truth {file}; extract it there")
        samples = files.get(f"{base}_samples.bin")
        images.append(BravoImage(subset, stem, files[name], files[labels], files[invalid], samples))
    return images


def files_from_bravo(folder: Path) -> dict[str, Path]:
    """{path from `bravo_…/` on: file} of all files in these folders."""
    folders = {subset.folder.partition("/")[0] for subset in SUBSETS}
    found = {}
    for file in Path(folder).rglob("*"):
        parts = file.relative_to(folder).parts
        start = next((i for i, part in enumerate(parts) if part in folders), None)
        if start is not None and file.is_file():
            found["/".join(parts[start:])] = file
    return found


def draw_samples(labels: np.ndarray) -> np.ndarray:
    """Train ids (H, W) → flat indices of the pixels in the score: all labeled ones, or 100,000 of them at random.

    The rule and the seed are those of the challenge's tool. The files of bravo_SAMPLING.tar are used instead if they
    are there.
    """
    counted = np.flatnonzero(labels != IGNORE_INDEX)
    if len(counted) <= SAMPLES:
        return counted
    return np.sort(np.random.RandomState(1).choice(counted, SAMPLES, replace=False))


def read_samples(file: Path) -> np.ndarray:
    """A file of bravo_SAMPLING.tar → flat indices, ascending.

    Compressed by Zstandard: the number of indices and the first index in 3 bytes each, little-endian, then the
    differences in one byte each, or in a zero and 3 bytes from 256 on.
    """
    import zstandard

    data = zstandard.ZstdDecompressor().decompress(file.read_bytes(), max_output_size=1 << 24)
    count = int.from_bytes(data[:3], "little")
    steps = [int.from_bytes(data[3:6], "little")]
    position = 6
    while position < len(data):
        if data[position] == 0:
            steps.append(int.from_bytes(data[position + 1 : position + 4], "little"))
            position += 4
        else:
            steps.append(data[position])
            position += 1
    if len(steps) != count:
        raise ValueError(
            f"{file} has {len(steps)} indices, but {count} in its header; extract bravo_SAMPLING.tar again"
        )
    return np.cumsum(steps)


def predict_images(model, processor, images: list[BravoImage]) -> Iterator[dict]:
    """{"segmentation" (H, W) train ids, "confidence" (H, W)} of each image.

    Raises:
        ValueError: if the model's classes are not Cityscapes' 19.
    """
    names = [model.config.id2label[label] for label in range(model.config.num_labels)]
    if sorted(names) != sorted(CITYSCAPES.names):
        raise ValueError(f"the model has {len(names)} classes; BRAVO is for models of Cityscapes' 19 classes")
    train_ids = np.array([CITYSCAPES.label2id[name] for name in names], np.uint8)
    for result in infer(model, processor, [image.file for image in images], task="semantic", confidence=True):
        segmentation = train_ids[np.asarray(result.prediction["segmentation"])]
        yield {"segmentation": segmentation, "confidence": result.prediction["confidence"]}


def read_predictions(folder: Path, images: list[BravoImage]) -> Iterator[dict]:
    """{"segmentation" (H, W) train ids, "confidence" (H, W) uint16} of each image, from the challenge's raw files.

    Raises:
        ValueError: for a missing file, or one of another format.
    """
    files = files_from_bravo(folder)
    for image in images:
        found = {}
        for key, suffix, dtype in (("segmentation", "_pred.png", np.uint8), ("confidence", "_conf.png", np.uint16)):
            file = image.name + suffix
            if file not in files:
                raise ValueError(f"{folder}: there is no {file}")
            found[key] = np.asarray(Image.open(files[file]))
            if found[key].ndim != 2 or found[key].dtype != dtype:
                raise ValueError(f"{file} is of {found[key].dtype}; BRAVO wants one channel of {dtype.__name__}")
        yield found


def bravo_scores(images: list[BravoImage], predictions: Iterable[dict]) -> dict:
    """Score the predictions of each subset.

    As in the paper, the mean IoU is averaged over the eight subsets with classes, the AUPRC over the two with objects
    of none. The paper does not name the mean, so both are computed.

    Returns:
        {"subsets": {name: {"mean_iou", "auprc", "images", "per_category_iou"}}, "mean_iou" and "auprc":
        {"arithmetic", "harmonic"}}: fractions in [0, 1], None for a subset without classes or objects.
    """
    metrics: dict[str, OutOfDistribution] = {}
    for image, prediction in zip(tqdm(images, "BRAVO", leave=False), predictions, strict=True):
        metric = metrics.setdefault(image.subset.name, OutOfDistribution(num_labels=CITYSCAPES.num_labels))
        metric.add(prediction=prediction, reference=image.reference() | {"file_name": image.name})
    found = {}
    for name, metric in metrics.items():
        result = metric.compute()
        has_classes = name not in WITHOUT_CLASSES
        found[name] = {
            "mean_iou": result["mean_iou"] if has_classes else None,
            "auprc": None if np.isnan(result["auprc"]) else result["auprc"],
            "images": sum(image.subset.name == name for image in images),
            "per_category_iou": result["per_category_iou"] if has_classes else None,
        }
    objects = [row["auprc"] for name, row in found.items() if name in WITH_OBJECTS]
    return {"subsets": found, "mean_iou": means(row["mean_iou"] for row in found.values()), "auprc": means(objects)}


def means(values: Iterable[float | None]) -> dict[str, float | None]:
    """Arithmetic and harmonic mean of the values that are not None."""
    values = [value for value in values if value is not None]
    if not values:
        return {"arithmetic": None, "harmonic": None}
    return {"arithmetic": mean(values), "harmonic": harmonic_mean(values)}


def save_predictions(folder: Path, images: list[BravoImage], predictions: Iterable[dict]) -> Iterator[dict]:
    """Write the challenge's two raw files for each prediction, and yield it.

    `_pred.png` has the train ids, `_conf.png` floor(65535 · confidence).
    """
    for image, prediction in zip(images, predictions):
        labels = np.asarray(prediction["segmentation"]).astype(np.uint8)
        levels = confidence_levels(prediction["confidence"]).astype(np.uint16)
        write_atomic(folder / f"{image.name}_pred.png", Image.fromarray(labels).save)
        write_atomic(folder / f"{image.name}_conf.png", Image.fromarray(levels).save)
        yield prediction


def bravo_report(result: dict) -> str:
    """The scores as text in percent, then the paper's rows."""

    def line(name: str, iou: float | None, auprc: float | None, images="") -> str:
        cells = ["–" if value is None else f"{100 * value:.2f}" for value in (iou, auprc)]
        return f"{name:<20}{cells[0]:>9}{cells[1]:>9}{images!s:>8}"

    lines = [f"{'':<20}{'mIoU':>9}{'AUPRC':>9}{'images':>8}"]
    lines += [line(name, row["mean_iou"], row["auprc"], row["images"]) for name, row in result["subsets"].items()]
    lines += [line(f"{way} mean", result["mean_iou"][way], result["auprc"][way]) for way in ("arithmetic", "harmonic")]
    for row in REPORTED:
        if row.dataset == "bravo" and "in-distribution" not in row.metric:
            lines.append(f"{row.value:9.2f}  {row.metric}, {row.table}: {row.method}, {row.backbone}")
    return "\n".join([*lines, "AUPRC is averaged over synobjs and SMIYC; the paper does not name its mean"])


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the extracted archives")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", help="a semantic model of Cityscapes' 19 classes")
    source.add_argument("--predictions", type=Path, help="folder of the challenge's raw files")
    parser.add_argument("--subsets", nargs="+", default=[], help="default: all nine")
    parser.add_argument("--save-predictions", type=Path, metavar="FOLDER", help="write the challenge's raw files")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="write metrics.json for benchmarks.reproduce")
    args = parser.parse_args(argv)
    images = find_images(args.data, args.subsets)
    if args.model:
        predictions = predict_images(*load_for_inference(args.model, task="semantic"), images)
    else:
        predictions = read_predictions(args.predictions, images)
    if args.save_predictions:
        predictions = save_predictions(args.save_predictions, images, predictions)
    result = bravo_scores(images, predictions)
    print(bravo_report(result))
    if args.output:
        write_json(args.output / "metrics.json", {"dataset": "bravo", "metrics": result}, indent=2)


if __name__ == "__main__":
    main()
