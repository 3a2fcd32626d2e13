"""Segmentation maps to masks and labels: every kind of map, ignored pixels, and errors."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from eomt.configuration.labels import VOID
from eomt.image_processing import EoMTImageProcessor, placement
from eomt.image_processing.images import read_map, rgb_to_id
from eomt.image_processing.targets import label_ids, masks_and_labels, nearest_index, place_map


def targets(segmentation_map, size=8, image_size=None, task="panoptic", **kwargs):
    image = Image.new("RGB", (image_size or read_map(segmentation_map).shape)[::-1])
    processor = EoMTImageProcessor(task=task, size=size)
    return processor(image, segmentation_maps=segmentation_map, return_tensors="pt", **kwargs)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.uint16, np.int64, np.float32])
def test_label_maps_may_have_any_dtype(dtype):
    labels = np.array([[0, 1, 255, 3]] * 4, dtype)
    result = targets(labels, size=4)
    assert result["class_labels"][0].tolist() == [0, 1, 3]
    masks = result["mask_labels"][0]
    assert masks.dtype == torch.bool
    assert torch.equal(masks[:, 0], torch.eye(4, dtype=torch.bool)[[0, 1, 3]])  # 255 is in no mask


def test_ignore_index_does_not_shift_labels_and_reduction_does():
    labels = np.array([[0, 1, 2, 255]] * 4)
    assert targets(labels, ignore_index=0, num_labels=300)["class_labels"][0].tolist() == [1, 2, 255]
    assert targets(labels, do_reduce_labels=True)["class_labels"][0].tolist() == [0, 1]
    segments = [{"id": i, "label_id": i} for i in (1, 2)]
    assert targets(labels, ignore_index=255, segments_info=segments)["class_labels"][0].tolist() == [1, 2]


def test_instance_ids_may_have_any_size():
    ids = np.array([[0, 70_000, 300, 300]] * 4)
    result = targets(ids, size=4, instance_id_to_semantic_id={70_000: 2, 300: 5})
    assert result["class_labels"][0].tolist() == [5, 2]  # ascending ids, 0 is void
    two = EoMTImageProcessor(size=4)(
        [Image.new("RGB", (4, 4))] * 2,
        segmentation_maps=[ids, ids],
        instance_id_to_semantic_id=[{300: 1, 70_000: 1}, {300: 0, 70_000: 3}],
    )
    assert [c.tolist() for c in two["class_labels"]] == [[1, 1], [0, 3]]


@pytest.mark.parametrize("form", ["pil", "hwc", "chw", "ids"])
def test_coco_panoptic_png(form):
    ids = np.array([[0, 5, 300, 70_000]] * 4)
    rgb = np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)
    assert np.array_equal(rgb_to_id(rgb), ids)
    forms = {"pil": Image.fromarray(rgb), "hwc": rgb, "chw": torch.from_numpy(rgb).permute(2, 0, 1), "ids": ids}
    segments = [
        {"id": 70_000, "category_id": 1, "iscrowd": 0},
        {"id": 300, "category_id": 4, "iscrowd": 1},
        {"id": 5, "label_id": 2, "category_id": 99, "iscrowd": 0},
    ]
    result = targets(forms[form], size=4, segments_info=segments)
    assert result["class_labels"][0].tolist() == [2, 1]  # ascending ids; the crowd is dropped
    assert result["mask_labels"][0][0, 0].tolist() == [False, True, False, False]


def test_images_without_segments_have_empty_targets():
    for segments, segmentation_map in (([], np.zeros((5, 9), int)), (None, np.full((5, 9), 255))):
        result = targets(segmentation_map, size=8, segments_info=segments)
        assert result["mask_labels"][0].shape == (0, 8, 8)
        assert result["class_labels"][0].shape == (0,)
        assert result["class_labels"][0].dtype == torch.int64
    crowd = targets(np.full((5, 9), 7), segments_info=[{"id": 7, "category_id": 1, "iscrowd": 1}])
    assert crowd["mask_labels"][0].shape == (0, 8, 8)


def test_windows_have_their_own_targets():
    labels = np.zeros((8, 20), np.uint8)
    labels[:, 10:] = 1
    result = targets(labels, task="semantic")
    offsets = [o.tolist() for o in result["patch_offsets"]]
    assert offsets == [[0, 0, 8], [0, 6, 14], [0, 12, 20]]
    assert [c.tolist() for c in result["class_labels"]] == [[0], [0, 1], [1]]
    assert result["mask_labels"][1][0, 0].tolist() == [True] * 4 + [False] * 4


NINES = np.full((4, 4), 9)


@pytest.mark.parametrize(("segmentation_map", "options", "word"), [
    (np.zeros((4, 5), int), {}, "4 × 5"),
    (NINES, {"segments_info": [{"id": 3, "category_id": 0}]}, "id 9"),
    (NINES, {"segments_info": [{"id": 9, "category_id": 0}] * 2}, "id 9"),
    (NINES, {"segments_info": [{"id": 9}]}, "id 9"),
    (NINES, {"instance_id_to_semantic_id": {8: 1}}, "instance id 9"),
    (NINES, {"num_labels": 9}, "label 9"),
    (np.full((4, 4), -3), {}, "label -3"),
    (np.zeros((4, 4, 2), int), {}, r"\(4, 4, 2\)"),
    ([np.zeros((4, 4), int)] * 2, {}, "2 segmentation_maps"),
])  # fmt: skip
def test_errors_name_the_value(segmentation_map, options, word):
    with pytest.raises(ValueError, match=word):
        targets(segmentation_map, image_size=(4, 4), **options)


@given(source=st.integers(1, 300), target=st.integers(1, 300))
def test_nearest_index_equals_pillow(source, target):
    row = Image.fromarray(np.arange(source, dtype=np.int32)[None])
    expected = np.asarray(row.resize((target, 1), Image.Resampling.NEAREST))[0]
    ours = nearest_index(source, target).numpy()
    tie = ((2 * np.arange(target) + 1) * source) % (2 * target) == 0  # between two pixels; Pillow takes either
    assert np.array_equal(ours[~tie], expected[~tie])
    assert np.abs(ours - expected).max() <= 1


@settings(max_examples=50, deadline=None)
@given(
    h=st.integers(1, 90), w=st.integers(1, 90), size=st.integers(4, 40), windowed=st.booleans(), seed=st.integers(0, 99)
)
def test_masks_partition_the_placed_map(h, w, size, windowed, seed):
    if max(h / w, w / h) > 15:
        return
    ids = torch.randint(0, 5, (h, w), generator=torch.Generator().manual_seed(seed))
    place = placement(h, w, size, windowed=windowed)
    placed, labels = label_ids(ids, ignore_index=4)
    for part in place_map(placed, place):
        masks, classes = masks_and_labels(part, labels)
        assert part.shape == place.input_size
        assert torch.equal(masks.sum(0) == 1, part >= 0)
        assert masks.flatten(1).any(1).all()
        assert 4 not in classes.tolist()


def test_targets_from_numpy():
    """As for transformers' Mask2Former: maps, and an array with the class of each instance id."""
    image, ids = np.zeros((32, 32, 3), np.uint8), np.repeat(np.array([[1], [2]], np.uint16), 16, 0).repeat(32, 1)
    processor = EoMTImageProcessor(task="instance", size=32)
    by_array = processor([image], [ids], np.array([0, 4, 2]), return_tensors="pt")
    by_dict = processor([image], [ids], {np.int64(1): np.int64(4), 2: 2}, return_tensors="pt")
    for found in (by_array, by_dict):
        assert found["class_labels"][0].tolist() == [4, 2]
        assert np.array_equal(found["mask_labels"][0][1].numpy(), ids == 2)


def test_reduced_labels_ignore_the_background_of_instance_maps():
    """As in Mask2Former, id 0 is background for any class in the mapping."""
    ids = torch.tensor([[0, 0, 1], [0, 2, 2]])
    found, labels = label_ids(ids, instance_id_to_semantic_id={0: 3, 1: 1, 2: 2}, do_reduce_labels=True)
    assert labels == {1: 0, 2: 1}
    assert (found[ids == 0] == VOID).all()
