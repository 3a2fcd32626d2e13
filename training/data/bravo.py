"""The BRAVO benchmark (valeoai/bravo_challenge): Cityscapes' 19 classes under bad weather, and objects of no class.

    bravo_ACDC/{fog,rain,night,snow}/test/GOPR…/X_rgb_anon.png         X_gt_labelTrainIds.png   X_gt_invIds.png
    bravo_{synrain,synflare,outofcontext}/CITY/X_leftImg8bit.png       X_gt_labelTrainIds.png   X_gt_invIds.png
    bravo_synobjs/OBJECT/X.png                                         X_gt.png                 X_mask.png
    bravo_SMIYC/RoadAnomaly21/images/X.jpg                     X_labels_semantic_fake.png   X_labels_semantic.png
    (any of them)                                                      X_samples.bin

The archives' own layout, extracted into one folder; ground truth (and bravo_SAMPLING.tar) over the images, or in a
folder of its own beside them. Predictions have the image's name, `_pred.png` (8 bit, train ids), `_conf.png` (16 bit).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from torch.utils.data import Dataset

from ...configuration.labels import IGNORE_INDEX
from ...inference.image_files import IMAGE_SUFFIXES
from .files import Tree, read_bytes
from .images import open_image, read_classes, read_image

SAMPLES = 100_000
"""Pixels of an image that the out-of-distribution score is taken over, at most."""
_CITYSCAPES = ("_leftImg8bit", "_gt_labelTrainIds.png", "_gt_invIds.png")


@dataclass(frozen=True)
class Subset:
    """One of BRAVO's subsets: where its files are and what they are called."""

    name: str
    folder: str
    image: str
    "What follows an image's name in it, before the suffix."
    labels: str
    invalid: str
    semantic: bool = True
    "Whether it has labels of the 19 classes."
    objects: bool = False
    "Whether it counts for the detection of objects of no class."


SUBSETS = (
    *(
        Subset(f"ACDC{weather}", f"bravo_ACDC/{weather}", "_rgb_anon", *_CITYSCAPES[1:])
        for weather in ("fog", "rain", "night", "snow")
    ),
    Subset("synrain", "bravo_synrain", *_CITYSCAPES),
    Subset("synobjs", "bravo_synobjs", "", "_gt.png", "_mask.png", objects=True),
    Subset("synflare", "bravo_synflare", *_CITYSCAPES),
    Subset("outofcontext", "bravo_outofcontext", *_CITYSCAPES),
    Subset(
        "SMIYC", "bravo_SMIYC", "", "_labels_semantic_fake.png", "_labels_semantic.png", semantic=False, objects=True
    ),
)


class Bravo(Dataset):
    """Images of BRAVO → {"image" uint8 (3, H, W), "subset", "name", "file_name", "image_id", "reference"}.

    `name`: the image's path from `bravo_…/` on, without suffix. reference: {"segmentation" (H, W) train ids and 255,
    "invalid" (H, W), "pixels" flat indices} for `OutOfDistribution`.

    Args:
        path: the folder.
        subsets: names of `SUBSETS`; all by default.

    Raises:
        ValueError: for a subset that is unknown or missing, and an image without ground truth.
    """

    def __init__(self, path: str | Path, subsets: Sequence[str] | None = None):
        self.path = Path(path)
        known = {subset.name: subset for subset in SUBSETS}
        unknown = [name for name in subsets or () if name not in known]
        if unknown:
            raise ValueError(f"BRAVO has no subset {unknown[0]!r}; choose from {', '.join(known)}")
        self.subsets = [known[name] for name in subsets] if subsets else list(SUBSETS)
        self.files = _from_bravo(Tree(path))
        self.rows = []
        missing = []
        for subset in self.subsets:
            rows = self._subset_rows(subset)
            missing += [] if rows else [f"{subset.name} ({subset.folder}/)"]
            self.rows += rows
        if missing:
            raise ValueError(
                f"{path}: of BRAVO's subsets there is no {', '.join(missing)}; extract its archive there, or name the "
                "others with --subsets"
            )

    def _subset_rows(self, subset: Subset) -> list[tuple[Subset, str, str]]:
        """(subset, image, name without what follows it) of each image."""
        rows, parts = [], (subset.labels, subset.invalid, "_pred.png", "_conf.png")
        for file in sorted(self.files):
            path = PurePosixPath(file)
            if not file.startswith(f"{subset.folder}/") or path.suffix.lower() not in IMAGE_SUFFIXES:
                continue
            if file.endswith(parts) or not path.stem.endswith(subset.image):
                continue
            base = str(path.with_suffix("")).removesuffix(subset.image)
            absent = [base + suffix for suffix in (subset.labels, subset.invalid) if base + suffix not in self.files]
            if absent:
                raise ValueError(f"{self.path}: {file} has no ground truth {absent[0]}; extract it there")
            rows.append((subset, file, base))
        return rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        subset, file, base = self.rows[index]
        name = str(PurePosixPath(file).with_suffix(""))
        labels = read_classes(self.files[base + subset.labels], base + subset.labels)
        if not subset.semantic:  # only whether a pixel counts
            labels = np.where(labels == IGNORE_INDEX, IGNORE_INDEX, 0)
        invalid = read_classes(self.files[base + subset.invalid], base + subset.invalid)
        samples = self.files.get(f"{base}_samples.bin")
        pixels = read_samples(samples, f"{base}_samples.bin") if samples else draw_samples(labels)
        return {
            "image": read_image(self.files[file], file),
            "subset": subset.name,
            "name": name,
            "image_id": name,
            "file_name": file,
            "reference": {"segmentation": labels, "invalid": invalid, "pixels": pixels},
        }


def draw_samples(labels: np.ndarray) -> np.ndarray:
    """Train ids (H, W) → the flat indices the challenge draws: all that count, at most 100,000, always the same.

    Its tool's rule and seed; the official bravo_SAMPLING.tar, where it is extracted, comes first.
    """
    counted = np.flatnonzero(labels != IGNORE_INDEX)
    if len(counted) <= SAMPLES:
        return counted
    return np.sort(np.random.RandomState(1).choice(counted, SAMPLES, replace=False))


def read_samples(location: str, name: str) -> np.ndarray:
    """A file of bravo_SAMPLING.tar → flat indices, ascending.

    Zstandard over: number of indices and the first one in 3 bytes each, little-endian, then the differences in a byte,
    or from 256 on a zero and 3 bytes.
    """
    try:
        import zstandard
    except ImportError:
        raise ValueError(f"{name} is compressed by Zstandard; pip install zstandard to read it") from None
    try:
        data = zstandard.ZstdDecompressor().decompress(read_bytes(location), max_output_size=1 << 24)
    except zstandard.ZstdError as error:
        raise ValueError(f"{name} is damaged ({error}); extract bravo_SAMPLING.tar again") from None
    count, steps, at = int.from_bytes(data[:3], "little"), [int.from_bytes(data[3:6], "little")], 6
    while at < len(data):
        wide = data[at] == 0
        steps.append(int.from_bytes(data[at + 1 : at + 4], "little") if wide else data[at])
        at += 4 if wide else 1
    if len(steps) != count:
        raise ValueError(f"{name} holds {len(steps)} indices and says {count}; extract bravo_SAMPLING.tar again")
    return np.cumsum(steps)


class BravoPredictions:
    """A folder of the challenge's raw files: name of an image of `Bravo` → its prediction."""

    def __init__(self, folder: str | Path):
        self.folder, self.files = folder, _from_bravo(Tree(folder))

    def read(self, name: str) -> dict[str, np.ndarray]:
        """{"segmentation" (H, W) train ids, "confidence" (H, W) uint16}.

        Raises:
            ValueError: when one of the two pngs is missing or not of the challenge's format.
        """
        found = {}
        for key, suffix, kind in (("segmentation", "_pred.png", np.uint8), ("confidence", "_conf.png", np.uint16)):
            file = name + suffix
            if file not in self.files:
                raise ValueError(f"{self.folder}: there is no {file}")
            found[key] = np.asarray(open_image(self.files[file], file))
            if found[key].ndim != 2 or found[key].dtype != kind:
                bits = 8 * np.dtype(kind).itemsize
                raise ValueError(
                    f"{file} is of {found[key].dtype} {found[key].shape}; BRAVO wants {bits} bits, one channel"
                )
        return found


def _from_bravo(tree: Tree) -> dict[str, str]:
    """{path from `bravo_…/` on: location} of all files below such folders."""
    found = {}
    folders = {subset.folder.partition("/")[0] for subset in SUBSETS}
    for name in tree.names:
        parts = PurePosixPath(name).parts
        start = next((i for i, part in enumerate(parts) if part in folders), None)
        if start is not None:
            found["/".join(parts[start:])] = tree.locate(name)
    return found
