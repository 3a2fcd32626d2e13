"""The inference loop and `eomt.segment`: any source and batch size, engines, errors of single images."""

from threading import Barrier
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import EomtForUniversalSegmentation

import eomt
from eomt import EoMTImageProcessor
from eomt.image_processing.inference import infer
from tests.models import tiny_model

TASKS = ("panoptic", "instance", "semantic")


def photos():
    rng = np.random.default_rng(0)
    sizes = [(50, 90), (64, 64), (130, 40), (30, 200)]
    return [Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]


def same(found, expected):
    for key, value in expected.items():
        assert torch.equal(found[key], value) if isinstance(value, torch.Tensor) else found[key] == value


@pytest.mark.parametrize("task", TASKS)
def test_every_source_and_batch_size_has_the_same_results(task, tmp_path):
    """From images, files and tensors. The segmentation has the size of the image."""
    model, processor = tiny_model(task=task).eval(), EoMTImageProcessor(task=task, size=64)
    pictures, files, tensors = photos(), [], []
    for i, picture in enumerate(pictures):
        files.append(tmp_path / f"{i}.png")
        picture.save(files[-1])
        tensors.append(torch.from_numpy(np.array(picture)).permute(2, 0, 1))
    expected = [found.prediction for found in infer(model, processor, pictures)]
    for source in (files, tensors):
        for found, picture, prediction in zip(infer(model, processor, source), pictures, expected, strict=True):
            assert found.size == (picture.height, picture.width)
            same(found.prediction, prediction)
    if task != "instance":
        assert all(p["segmentation"].shape == (i.height, i.width) for p, i in zip(expected, pictures))
    together = infer(model, processor, files, batch_size=3, num_workers=1)
    assert [found.item for found in together] == files


def test_an_engine_computes_several_images_at_once():
    """In order, with the same results. An error is reported at its place."""
    model, processor = tiny_model(task="semantic").eval(), EoMTImageProcessor(task="semantic", size=64)
    pictures = [*photos(), photos()[0]]
    two_calls, events = Barrier(2, timeout=60), []

    class Exported(SimpleNamespace):
        def __call__(self, pixel_values, patch_offsets=None):
            if len(pixel_values) == 7:  # the windows of the longest image
                raise MemoryError("too large")
            two_calls.wait()
            return model(pixel_values, patch_offsets=patch_offsets)

    exported = Exported(config=model.config, device="cpu", dtype=torch.float32, num_requests=2)
    found = []
    for one in infer(exported, processor, pictures, on_error=lambda item, reason: events.append((item, reason))):
        found.append(one)
        events.append(one.item)
    assert events == [*pictures[:3], (pictures[3], "too large"), pictures[4]]
    expected = infer(model, processor, [*pictures[:3], pictures[4]])
    for ours, theirs in zip(found, expected, strict=True):
        same(ours.prediction, theirs.prediction)
    exported.num_requests = 1
    with pytest.raises(MemoryError, match="too large"):
        list(infer(exported, processor, pictures[3:4]))


def test_the_error_of_an_image_is_reported_or_raised(tmp_path):
    model, processor = tiny_model().eval(), EoMTImageProcessor(size=64)
    (tmp_path / "text.jpg").write_text("no image")
    sources, failed = [photos()[0], str(tmp_path / "text.jpg"), photos()[1]], []
    found = list(infer(model, processor, sources, batch_size=3, on_error=lambda *failure: failed.append(failure)))
    assert [one.item for one in found] == [sources[0], sources[2]]
    assert [item for item, _ in failed] == [sources[1]]
    assert "text.jpg" in failed[0][1]
    with pytest.raises(ValueError, match=r"text\.jpg"):
        list(infer(model, processor, sources))


def test_segment_accepts_floats_and_another_task(tmp_path):
    for task in ("panoptic", "semantic"):
        tiny_model(task=task).save_pretrained(tmp_path / task)
        EoMTImageProcessor(task=task, size=64).save_pretrained(tmp_path / task)
    picture = photos()[0]
    pixels = np.asarray(picture)
    expected = eomt.segment(picture, tmp_path / "panoptic", threshold=0.0)
    for source in (pixels, pixels.astype(np.float32) / 255, torch.from_numpy(pixels / 255).permute(2, 0, 1)):
        found = eomt.segment(source, tmp_path / "panoptic", threshold=0.0)
        assert np.array_equal(found.image, picture)
        assert np.array_equal(found.masks, expected.masks)
    picture.getexif()[0x0112] = 6  # on its side
    assert eomt.segment(picture, tmp_path / "panoptic").image.size == picture.size[::-1]
    assert eomt.segment(picture, tmp_path / "semantic", task="panoptic").task == "panoptic"
    model = tiny_model(task="semantic").eval()
    with pytest.raises(ValueError, match=r"'semantic'.*'panoptic'"):
        eomt.segment(picture, model, processor=EoMTImageProcessor(task="semantic", size=64), task="panoptic")


def test_segment_accepts_transformers_own_model(tmp_path):
    """It has no `set_attn_mask_probs`. Its training mode is restored. Other masks than its own are refused."""
    model = tiny_model(task="panoptic", masked_inference=False)
    model.set_attn_mask_probs([0.0] * model.config.num_blocks)
    model.save_pretrained(tmp_path)
    built_in = EomtForUniversalSegmentation.from_pretrained(tmp_path).train()
    processor = EoMTImageProcessor(task="panoptic", size=64)
    found, expected = (eomt.segment(photos()[0], m, processor=processor, threshold=0.0) for m in (built_in, model))
    assert np.array_equal(found.masks, expected.masks)
    for masked in (True, False):
        built_in.attn_mask_probs.fill_(not masked)
        with pytest.raises(ValueError, match=str(masked)):
            eomt.segment(photos()[0], built_in, processor=processor, masked=masked)
        eomt.segment(photos()[0], built_in, processor=processor, masked=not masked)
    assert built_in.training
