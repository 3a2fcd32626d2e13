"""Tiles: a known scene is restored from perfect predictions of its tiles; rasters; errors."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as rle
from scipy import ndimage

from eomt import EoMTImageProcessor
from eomt.image_processing.inference import infer
from eomt.image_processing.rasters import Raster, open_raster
from eomt.loading import load_for_inference
from eomt.tiling import infer_tiles
from eomt.tiling.instances import InstanceJoin
from eomt.tiling.panoptic import PanopticJoin
from eomt.tiling.semantic import SemanticJoin
from eomt.tiling.tiles import cut, within_span
from eomt.training.metrics import PanopticQuality
from tests.eomt.test_segment import same
from tests.models import save_confident, tiny_model
from tests.pairs import ENVIRONMENT

SIZE, SIDE = (300, 410), 96
STUFF = 3  # labels from here


def scene(count: int = 60, seed: int = 0) -> tuple[np.ndarray, dict[int, int]]:
    """Ids (H, W) and their labels: two stuff regions and discs, one of them larger than a tile."""
    rng, (y, x) = np.random.default_rng(seed), np.mgrid[: SIZE[0], : SIZE[1]]
    ids, labels = (y + 20 * np.sin(x / 30) > 150).astype(int), {0: STUFF, 1: STUFF + 1}
    for i in range(2, count + 2):
        radius = 80 if i == 2 else rng.integers(3, 14)
        ids[(y - rng.integers(SIZE[0])) ** 2 + (x - rng.integers(SIZE[1])) ** 2 < radius**2] = i
        labels[i] = int(rng.integers(STUFF))
    for i in range(2, count + 2):  # keep one connected part of each
        parts, n = ndimage.label(ids == i)
        for part in range(2, n + 1):
            ids[parts == part] = 0
    return ids, {i: labels[i] for i in np.unique(ids).tolist()}


def perfect(ids: np.ndarray, labels: dict[int, int]) -> dict:
    """The prediction of a perfect model for a part of the scene, with segments in random order."""
    present = np.random.default_rng(ids.size).permutation(np.unique(ids)).tolist()
    segmentation = np.zeros(ids.shape, np.int32)
    segments = []
    for k, i in enumerate(present):
        segmentation[ids == i] = k
        segments.append({"id": k, "label_id": labels[i], "score": 0.9, "was_fused": labels[i] >= STUFF})
    return {"segmentation": torch.from_numpy(segmentation), "segments_info": segments}


def quality(prediction: dict, ids: np.ndarray, labels: dict[int, int]) -> float:
    metric = PanopticQuality(num_labels=STUFF + 2, stuff_label_ids=[STUFF, STUFF + 1])
    info = [{"id": i, "label_id": c, "iscrowd": 0} for i, c in labels.items()]
    metric.add(prediction=prediction, reference={"segmentation": ids, "segments_info": info})
    return metric.compute()["pq"]


def test_rasters_on_the_disk_have_the_segments_of_images_in_memory(tmp_path):
    """Tiles are read from the file, and the reduced image part by part."""
    folder = save_confident(tmp_path / "model")
    model, processor = load_for_inference(folder, "cpu")
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (150, 210, 3)).astype(np.uint8))
    picture.save(tmp_path / "a.tif")
    raster = open_raster(tmp_path / "a.tif")
    assert isinstance(raster, Raster)
    found, expected = (infer_tiles(model, processor, image, tile=64) for image in (raster, picture))
    assert expected["segments_info"]
    same(found, expected)


@pytest.mark.parametrize(
    ("size", "side", "overlap"), [(SIZE, 96, 0.25), ((640, 100), 640, 0.25), ((97, 96), 96, 0.5), ((50, 1000), 64, 0.0)]
)
def test_cores_of_tiles_cover_the_image_once(size, side, overlap):
    covered = np.zeros(size, int)
    for tile in cut(size, side, overlap):
        assert max(tile.shape) <= side
        covered[tile.core_rows, tile.core_columns] += 1
        assert tile.rows.start <= tile.core_rows.start < tile.core_rows.stop <= tile.rows.stop
        assert tile.columns.start <= tile.core_columns.start < tile.core_columns.stop <= tile.columns.stop
    assert (covered == 1).all()


@pytest.mark.parametrize("with_reduced_image", [False, True])
def test_a_panoptic_scene_is_restored_from_tiles(with_reduced_image):
    """A prediction for the image at a third of the resolution does not change that."""
    ids, labels = scene()
    join = PanopticJoin(SIZE, SIDE)
    if with_reduced_image:
        join.add_whole((100, 137), perfect(ids[1::3, 1::3][:, :137], labels))
    for tile in cut(SIZE, SIDE, 0.25):
        join.add(tile, perfect(ids[tile.rows, tile.columns], labels))
    found = join.result()
    assert [s["id"] for s in found["segments_info"]] == list(range(len(labels)))
    assert quality(found, ids, labels) == 1.0


def test_panoptic_objects_that_tiles_miss_or_cut():
    """An object in the overlap of two tiles is complete although one of them misses it. An object larger than a tile
    comes from the reduced image, unless the tiles contradict it."""
    ids = np.zeros(SIZE, int)
    labels = {0: STUFF, 1: 0, 2: 1}
    tiles = cut(SIZE, SIDE, 0.25)
    seam = tiles[0].core_columns.stop
    ids[30:50, seam - 6 : seam + 6] = 1  # in the overlap of tiles 0 and 1
    ids[150:290, 150:300] = 2  # larger than a tile
    for contradicted in (False, True):
        join = PanopticJoin(SIZE, SIDE)
        join.add_whole(SIZE, perfect(ids, labels))
        for number, tile in enumerate(tiles):
            part = ids[tile.rows, tile.columns].copy()
            if number == 1:
                part[part == 1] = 0
            large = part == 2
            part[large] = 0
            prediction = perfect(part, labels)
            if not contradicted:
                prediction["segmentation"][torch.from_numpy(large)] = -1
            join.add(tile, prediction)
        found = join.result()
        expected = np.where(ids == 2, 0, ids) if contradicted else ids
        assert quality(found, expected, {i: labels[i] for i in np.unique(expected).tolist()}) == 1.0


def instances(ids, labels) -> dict:
    things = [i for i in np.unique(ids).tolist() if labels[i] < STUFF]
    masks = [rle.encode(np.asfortranarray((ids == i).astype(np.uint8))) for i in things]
    scores = torch.linspace(0.9, 0.5, len(things), dtype=torch.float64)
    return {"size": ids.shape, "masks": masks, "labels": torch.tensor([labels[i] for i in things]), "scores": scores}


@pytest.mark.parametrize("with_reduced_image", [False, True])
def test_instances_of_a_scene_are_restored_from_tiles(with_reduced_image):
    ids, labels = scene(seed=4)
    join = InstanceJoin(SIZE, SIDE)
    if with_reduced_image:
        join.add_whole(SIZE, instances(ids, labels))
    for tile in cut(SIZE, SIDE, 0.25):
        join.add(tile, instances(ids[tile.rows, tile.columns], labels))
    found = join.result()
    assert found["scores"].tolist() == sorted(found["scores"].tolist(), reverse=True)
    expected = {(labels[i], (ids == i).tobytes()) for i in labels if labels[i] < STUFF}
    result = {(int(c), rle.decode(m).astype(bool).tobytes()) for c, m in zip(found["labels"], found["masks"])}
    assert result == expected


def test_a_semantic_map_is_that_of_the_nearest_tile():
    ids, _ = scene(seed=5)
    join, confidence = SemanticJoin(SIZE, SIDE), torch.rand(SIZE)
    for number, tile in enumerate(cut(SIZE, SIDE, 0.25)):
        segmentation = torch.full(tile.shape, number)  # wrong outside of the core
        core = within_span(tile.core_rows, tile.rows), within_span(tile.core_columns, tile.columns)
        segmentation[core] = torch.from_numpy(ids)[tile.core_rows, tile.core_columns]
        join.add(tile, {"segmentation": segmentation, "confidence": confidence[tile.rows, tile.columns]})
    found = join.result()
    assert found["segmentation"].dtype == torch.int32
    assert np.array_equal(found["segmentation"], ids)
    assert torch.equal(found["confidence"], confidence)


@pytest.mark.slow  # 475 tiles
def test_a_large_semantic_raster_within_4_gb(tmp_path):
    save_confident(tmp_path / "model", task="semantic", num_labels=150)
    Image.new("RGB", (12_000, 9_000)).save(tmp_path / "raster.png", compress_level=1)
    script = "import resource, sys; from eomt.cli import main; done = main(sys.argv[1:]); "
    script += "print(done, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    options = ["--model", "model", "--output", "out", "--tile", "640", "--max-pixels", "200000000", "--device", "cpu"]
    command = [sys.executable, "-c", script, "predict", "raster.png", *options]
    run = subprocess.run(command, cwd=tmp_path, env=os.environ | ENVIRONMENT, stdout=subprocess.PIPE)
    code, kilobytes = map(int, run.stdout.split()[-2:])
    assert code == 0
    assert kilobytes < 4e6


@pytest.mark.parametrize("task", ["panoptic", "instance", "semantic"])
def test_one_tile_has_the_result_of_the_image(task):
    model, processor = tiny_model(task=task).eval(), EoMTImageProcessor(task=task, size=64)
    noise = np.random.default_rng(0).integers(0, 256, (60, 50, 3), dtype=np.uint8)
    picture = Image.fromarray(noise)
    same(infer_tiles(model, processor, picture, tile=64), next(infer(model, processor, [picture])).prediction)
    calls = []
    tiled = infer_tiles(model, processor, picture, tile=32, batch_size=4, on_tile=lambda: calls.append(1))
    reduced = 0 if task == "semantic" else 1
    assert len(calls) == reduced + len(cut((60, 50), 32, 0.25))
    assert (tiled["size"] if task == "instance" else tiled["segmentation"].shape) == (60, 50)


def test_unusable_tiles_are_refused():
    model, picture = tiny_model(), Image.new("RGB", (100, 100))
    processor = EoMTImageProcessor(task="panoptic", size=64)
    for options, value in (({"tile": 8}, "8"), ({"tile": 64, "overlap": 0.9}, r"0\.9")):
        with pytest.raises(ValueError, match=value):
            infer_tiles(model, processor, picture, **options)
