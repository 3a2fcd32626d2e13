"""The collator: uint8 images are normalized, float images unchanged; samples of the processor are collated."""

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as V2

from eomt.image_processing import EoMTImageProcessor
from eomt.training import EoMTDataCollator


def sample(n: int = 2, seed: int = 0) -> dict:
    generator = torch.Generator().manual_seed(seed)
    return {
        "pixel_values": torch.randint(0, 256, (3, 16, 24), generator=generator, dtype=torch.uint8),
        "mask_labels": torch.rand(n, 16, 24, generator=generator) > 0.5,
        "class_labels": torch.arange(n),
        "file_name": f"{seed}.jpg",
    }


def test_uint8_pixels_are_scaled_and_normalized_and_targets_stay_lists():
    samples = [sample(2, 0), sample(0, 1)]
    batch = EoMTDataCollator(keep_file_names=True)(samples)
    expected = torch.stack(
        [V2.normalize(s["pixel_values"] / 255, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]) for s in samples]
    )
    torch.testing.assert_close(batch["pixel_values"], expected, atol=1e-6, rtol=0)
    assert [m.shape[0] for m in batch["mask_labels"]] == [2, 0]
    assert torch.equal(batch["mask_labels"][0], samples[0]["mask_labels"])
    assert [c.dtype for c in batch["class_labels"]] == [torch.int64] * 2
    assert batch["file_name"] == ["0.jpg", "1.jpg"]
    assert "file_name" not in EoMTDataCollator()(samples)


def test_float_pixels_are_not_changed():
    pixels = torch.randn(3, 16, 24)
    assert torch.equal(EoMTDataCollator()([sample() | {"pixel_values": pixels}])["pixel_values"][0], pixels)


@pytest.mark.parametrize("tensors", ["pt", None])
def test_samples_of_the_processor_are_collated(tensors):
    """Samples of one image, with the processor's batch dimension, make the processor's batch of all images."""
    processor = EoMTImageProcessor(task="panoptic", size=32)
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, (20, 30, 3), dtype=np.uint8) for _ in range(3)]
    maps = [rng.integers(1, 4, (20, 30)) for _ in range(3)]
    info = [[{"id": int(i), "label_id": int(i) - 1} for i in np.unique(m)] for m in maps]
    together = processor(images, segmentation_maps=maps, segments_info=info, return_tensors="pt")
    each = [
        processor(i, segmentation_maps=m, segments_info=[s], return_tensors=tensors)
        for i, m, s in zip(images, maps, info)
    ]
    batch = EoMTDataCollator()([dict(e) for e in each])
    assert torch.equal(batch["pixel_values"], together["pixel_values"])
    for key in ("mask_labels", "class_labels"):
        assert len(batch[key]) == 3
        assert all(torch.equal(a, b) for a, b in zip(batch[key], together[key], strict=True))
    unbatched = [{k: e[k][0] for k in ("pixel_values", "mask_labels", "class_labels")} for e in each]
    assert torch.equal(EoMTDataCollator()(unbatched)["pixel_values"], batch["pixel_values"])


def test_incomplete_targets_are_refused():
    with pytest.raises(ValueError, match="0 class_labels"):
        EoMTDataCollator()([{k: v for k, v in sample().items() if k != "class_labels"}])


@pytest.mark.parametrize("settings", [
    {"image_mean": 0.5, "image_std": 0.25}, {"image_mean": [0.5] * 3, "image_std": [0.25] * 3}, {"do_normalize": False},
    {"do_rescale": False}, {"rescale_factor": 1 / 127.5}, {"do_rescale": False, "do_normalize": False},
])  # fmt: skip
def test_the_normalization_is_the_processors(settings):
    processor = EoMTImageProcessor(task="panoptic", size=16, **settings)
    pixels = sample()["pixel_values"][:, :, :16]
    expected = processor(pixels, return_tensors="pt")["pixel_values"][0].float()
    batch = EoMTDataCollator.from_processor(processor)([{"pixel_values": pixels}])
    assert set(batch) == {"pixel_values"}  # inference: no targets
    torch.testing.assert_close(batch["pixel_values"][0], expected, atol=1e-5, rtol=1e-5)
