"""`pipeline("image-segmentation")`: the task of the model, batches, types, every kind of image."""

from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForUniversalSegmentation, ImageSegmentationPipeline, pipeline

from eomt import EoMTForUniversalSegmentation, EoMTImageProcessor
from eomt.pipeline import EoMTImageSegmentationPipeline
from tests.models import turned_png

TASKS = ["panoptic", "instance", "semantic"]
EVERYTHING = {
    "panoptic": {"threshold": 0.3, "overlap_mask_area_threshold": 0.0},
    "instance": {"threshold": 0.3},
    "semantic": {},
}


def segmenter(directory, **kwargs):
    return pipeline("image-segmentation", model=str(directory), **kwargs)


def photo(height=50, width=90, seed=0):
    noise = np.random.default_rng(seed).integers(0, 256, (max(1, height // 8), max(1, width // 8), 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def same(a, b):
    assert [s["label"] for s in a] == [s["label"] for s in b]
    for x, y in zip(a, b):
        assert np.mean(np.asarray(x["mask"]) != np.asarray(y["mask"])) <= 2e-3  # batched products round differently
        assert (x["score"] is None) == (y["score"] is None)


@pytest.mark.parametrize("task", TASKS)
def test_the_task_of_the_model_is_the_default(models, task):
    segment = segmenter(models[task])
    assert type(segment) is ImageSegmentationPipeline
    assert type(segment.model) is EoMTForUniversalSegmentation
    assert type(segment.image_processor) is EoMTImageProcessor
    found = segment(photo(), **EVERYTHING[task])
    assert len(found) > 1
    assert all(s["mask"].size == (90, 50) for s in found)
    masks = np.stack([np.asarray(s["mask"]) > 0 for s in found])
    assert masks.sum(0).max() == 1  # segments of transformers' pipeline do not overlap
    assert masks.any((1, 2)).all()
    if task == "semantic":
        assert masks.sum(0).min() == 1
    explicit = segment(photo(), subtask=task, **EVERYTHING[task])
    same(found, explicit)


@pytest.mark.parametrize("task", TASKS)
def test_batches_have_the_results_of_single_images(models, task):
    """With more images than masked blocks, images of one and of several windows, and an incomplete last batch."""
    images = [photo(*size, seed=i) for i, size in enumerate([(50, 90), (64, 64), (130, 40), (30, 200), (64, 65)])]
    segment = segmenter(models[task])
    alone = [segment(image, **EVERYTHING[task]) for image in images]
    for batch_size in (2, 4):
        for one, found in zip(alone, segment(images, batch_size=batch_size, **EVERYTHING[task]), strict=True):
            same(one, found)


@pytest.mark.parametrize(
    ("task", "dtype"), [("panoptic", torch.bfloat16), ("instance", torch.float16), ("semantic", torch.bfloat16)]
)
def test_models_in_half_precision_run(models, task, dtype):
    segment = segmenter(models[task], dtype=dtype)
    assert segment.model.dtype == dtype
    for found in segment([photo(), photo(64, 64), photo(80, 20)], batch_size=2, **EVERYTHING[task]):
        assert all(isinstance(s["mask"], Image.Image) for s in found)
        assert found


@pytest.fixture(scope="module", params=[None, EoMTImageSegmentationPipeline], ids=["stock", "ours"])
def segmenters(request, models):
    return {task: segmenter(models[task], pipeline_class=request.param) for task in TASKS}


@pytest.mark.parametrize(("make", "size"), [
    (lambda: photo().convert("RGBA"), (90, 50)),
    (lambda: Image.open(BytesIO(turned_png(photo()))), (50, 90)),
    (lambda: photo(3000, 200), (200, 3000)),
    (lambda: photo(1, 1), (1, 1)),
], ids=["rgba", "exif", "3000x200", "1x1"])  # fmt: skip
def test_every_kind_of_image_runs(segmenters, make, size):
    for task, segment in segmenters.items():
        found = segment(make(), **EVERYTHING[task])
        assert found
        for s in found:
            assert s["mask"].size == size
            assert s["label"] in segment.model.config.label2id


def test_overlapping_instances_are_complete(models, tmp_path):
    segment = segmenter(models["instance"], pipeline_class=EoMTImageSegmentationPipeline)
    found = segment(photo(), threshold=0.3)
    masks = np.stack([np.asarray(s["mask"]) > 0 for s in found])
    assert masks.sum(0).max() > 1
    assert [s["score"] for s in found] == sorted((s["score"] for s in found), reverse=True)
    flat = segmenter(models["instance"])(photo(), threshold=0.3)  # transformers' pipeline: the higher score wins
    best = np.asarray(flat[0]["mask"]) > 0
    assert np.array_equal(best, masks[0])
    photo().save(tmp_path / "a.png")
    same(segment(str(tmp_path / "a.png"), threshold=0.3), found)
    assert min(s["score"] for s in segment(photo())) >= 0.5


def test_images_of_16_bits_are_scaled(models):
    segment = segmenter(models["instance"], pipeline_class=EoMTImageSegmentationPipeline)
    gray = photo().convert("L")
    deep = Image.fromarray(np.asarray(gray).astype(np.uint16) * 257)
    expected = segment(gray, threshold=0.3)
    assert expected
    same(segment(deep, threshold=0.3), expected)


def test_transformers_default_processor_does_not_crash(models, tmp_path):
    """It neither pads nor cuts. In plain transformers the pipeline fails on images that are not square."""
    from transformers.models.eomt.image_processing_eomt import EomtImageProcessor as BuiltIn

    model = AutoModelForUniversalSegmentation.from_pretrained(models["panoptic"])
    model.save_pretrained(tmp_path)
    BuiltIn(size={"shortest_edge": 64, "longest_edge": 64}).save_pretrained(tmp_path)
    assert AutoImageProcessor.from_pretrained(tmp_path).do_pad
    assert segmenter(tmp_path)(photo(), **EVERYTHING["panoptic"])
