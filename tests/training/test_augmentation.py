"""Augmentation: the authors' distributions, one geometry for image and target, nearest resizing of targets."""

import numpy as np
import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as V2

from eomt.configuration.labels import LabelSpace
from eomt.training import augmentation
from eomt.training.augmentation import Geometry, color_jitter, ids_to_positions, positions_to_masks
from eomt.training.data import TrainTransform, load_data, make_shapes
from eomt.training.data.samples import TRIES

DRAWS = 2000


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def uniformly(values, low, high):
    """Whether values fit U(low, high): Kolmogorov-Smirnov distance below its limit at 0.1 %."""
    values = np.sort((np.asarray(values) - low) / (high - low))
    grid = np.arange(1, len(values) + 1) / len(values)
    return np.abs(values - grid).max() < 1.95 / len(values) ** 0.5


def test_flip_scale_and_crop_have_the_papers_distributions():
    height, width, size = 480, 640, (640, 640)
    draws = [Geometry.draw((height, width), size, (0.1, 2.0)) for _ in range(DRAWS)]
    assert abs(np.mean([g.flip for g in draws]) - 0.5) < 3.3 * 0.5 / DRAWS**0.5
    assert uniformly([g.resized[1] / width for g in draws], 0.1, 2.0)  # min(640/480, 640/640) · s = s
    for g in draws[:200]:
        ratio = g.resized[1] / width
        assert g.resized[0] in (int(height * ratio), int(height * (ratio + 1 / width)))
        for offset, side, window in zip(g.offset, g.resized, size, strict=True):
            assert 0 <= offset <= max(0, side - window)
    wide = [g for g in draws if g.resized[1] > 900]
    assert uniformly([g.offset[1] / (g.resized[1] - 640) for g in wide], 0, 1 + 1 / 260)


def test_scales_refer_to_the_longer_side():
    for _ in range(50):
        g = Geometry.draw((1024, 2048), (1024, 1024), (0.5, 2.0))
        assert (256, 512) <= g.resized <= (1024, 2048)  # Cityscapes in the authors' code
    assert Geometry.draw((1, 3000), (64, 64), (0.1, 0.1)).resized == (1, 6)  # at least one pixel


def test_color_jitter_has_the_papers_distribution(monkeypatch):
    calls: list[list] = []
    for name in ("brightness", "contrast", "saturation", "hue"):
        monkeypatch.setattr(
            augmentation.V2,
            f"adjust_{name}",
            lambda image, factor, name=name: calls[-1].append((name, factor)) or image,
        )
    image = torch.zeros(3, 2, 2, dtype=torch.uint8)
    for _ in range(DRAWS):
        calls.append([])
        color_jitter(image)
    limits = {"brightness": (1 - 32 / 255, 1 + 32 / 255), "contrast": (0.5, 1.5), "saturation": (0.5, 1.5)}
    limits["hue"] = (-0.05, 0.05)
    for name, (low, high) in limits.items():
        factors = [factor for call in calls for n, factor in call if n == name]
        assert abs(len(factors) / DRAWS - 0.5) < 3.3 * 0.5 / DRAWS**0.5
        assert uniformly(factors, low, high)
    orders = ["".join(n[0] for n, _ in call) for call in calls]
    assert all(o == "" or "b" not in o[1:] for o in orders)  # brightness comes first
    assert not any("hs" in o or "hcs" in o or "sch" in o for o in orders)  # hue follows saturation directly
    first = [o.index("c") < o.index("s") for o in orders if "c" in o and "s" in o]
    assert abs(np.mean(first) - 0.5) < 3.3 * 0.5 / len(first) ** 0.5


@pytest.mark.parametrize("size", [(48, 48), (32, 80)])
def test_targets_equal_torchvisions(size):
    """Every pixel equals torchvision's flip, nearest resize, padding and crop of the map, for many scales."""
    for _ in range(60):
        source = tuple(torch.randint(5, 150, (2,)).tolist())
        g = Geometry.draw(source, size, (0.1, 2.0))
        ids = torch.randint(0, 2**24, source).int()
        whole = V2.horizontal_flip(ids) if g.flip else ids
        whole = V2.resize(whole[None].float(), list(g.resized), InterpolationMode.NEAREST)  # exact up to 2^24
        padding = [max(0, s - r) for s, r in zip(size, g.resized, strict=True)]
        whole = V2.crop(V2.pad(whole, [0, 0, padding[1], padding[0]], fill=-1), *g.offset, *size)[0]
        assert torch.equal(g.target(ids, -1), whole.int())
        stack = torch.stack([ids % 2 == 0, ids % 3 == 0])
        assert torch.equal(g.target(stack, False), torch.stack([whole % 2 == 0, whole % 3 == 0]) & (whole >= 0))


def test_image_and_target_have_the_same_geometry():
    """An image of its own id map still equals it afterwards, except at outlines."""
    ids = torch.zeros(60, 90, dtype=torch.int32)
    ids[20:50, 30:80] = 200
    for _ in range(50):
        g = Geometry.draw((60, 90), (64, 64), (0.5, 2.0))
        image, target = g.image(ids.to(torch.uint8).expand(3, -1, -1)), g.target(ids, 0)
        assert image.dtype == torch.uint8
        wrong = (image[0].int() - target).abs() > 100
        assert wrong.float().mean() < 0.05


def test_fit_pads_right_and_bottom_with_black():
    image = torch.full((3, 30, 60), 255, dtype=torch.uint8)
    g = Geometry.fit((30, 60), (40, 40))
    assert g.resized == (20, 40)
    assert (g.image(image)[:, :20] == 255).all()
    assert (g.image(image)[:, 20:] == 0).all()
    assert (g.target(torch.ones(30, 60), -1)[20:] == -1).all()


def test_more_than_255_segments():
    ids = np.arange(1000).reshape(20, 50)
    masks, kept = positions_to_masks(ids_to_positions(ids, list(range(0, 1000, 2))), 500)
    assert kept.tolist() == list(range(500))
    assert masks[400].nonzero().tolist() == [[16, 0]]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    folder = make_shapes(tmp_path_factory.mktemp("shapes"), train=4, val=1)
    return load_data(folder, task="panoptic")


def test_samples_are_random_and_repeat_with_the_seed(shapes):
    dataset, space = shapes
    train = dataset.with_transform(TrainTransform(space, task="panoptic", size=48, color_jitter=True))
    first, second = train[0], train[0]
    assert not torch.equal(first["pixel_values"], second["pixel_values"])
    torch.manual_seed(0)
    repeated = train[0]
    assert all(torch.equal(first[k], repeated[k]) for k in ("pixel_values", "mask_labels", "class_labels"))


def test_an_empty_crop_is_drawn_again_a_limited_number_of_times(shapes, monkeypatch):
    dataset, space = shapes
    transform = TrainTransform(space, task="panoptic", size=48)
    draws = []
    draw, target = Geometry.draw, Geometry.target
    empty = torch.zeros(48, 48, dtype=torch.uint8)

    def counted(*args):
        draws.append(draw(*args))
        return draws[-1]

    monkeypatch.setattr(Geometry, "draw", counted)
    monkeypatch.setattr(Geometry, "target", lambda self, *a: empty if len(draws) < 4 else target(self, *a))
    assert len(transform.row(dataset[0])["mask_labels"]) > 0
    assert len(draws) == 4
    draws.clear()
    monkeypatch.setattr(Geometry, "target", lambda self, *a: empty)
    sample = transform.row(dataset[0])
    assert len(draws) == TRIES
    assert sample["mask_labels"].shape == (0, 48, 48)
    assert sample["class_labels"].shape == (0,)


def test_an_image_without_segments_is_drawn_once(tmp_path, monkeypatch):
    dataset, space = load_data(make_shapes(tmp_path, train=1, val=1), task="panoptic")
    row = dataset[0] | {"segments": [], "annotation": ""}
    draws = []
    draw = Geometry.draw
    monkeypatch.setattr(Geometry, "draw", lambda *a: draws.append(a) or draw(*a))
    assert TrainTransform(space, task="panoptic", size=48).row(row)["mask_labels"].shape == (0, 48, 48)
    assert len(draws) == 1


@pytest.mark.parametrize("scale_range", [(0.0, 1.0), (2.0, 1.0), (1.0,)])
def test_wrong_scale_ranges_are_refused(scale_range):
    with pytest.raises(ValueError, match=r"scale_range|unpack"):
        TrainTransform(LabelSpace("x", ["a"]), task="semantic", size=16, scale_range=scale_range)


class Turn:
    """A quarter turn in albumentations' interface that empties the first mask."""

    def __init__(self):
        self.seeds = []

    def set_random_seed(self, seed):
        self.seeds.append(seed)

    def __call__(self, image, masks):
        assert image.flags.c_contiguous
        assert {(mask.dtype, mask.shape) for mask in masks} == {(np.dtype(np.uint8), image.shape[:2])}
        masks = [np.rot90(mask) for mask in masks]
        return {"image": np.rot90(image), "masks": [np.zeros_like(masks[0]), *masks[1:]]}


@pytest.mark.parametrize("task", ["panoptic", "instance"])
def test_further_augmentation_of_the_crop(tmp_path, task):
    dataset, labels = load_data(make_shapes(tmp_path, train=3, val=1), task=task, split="train")
    turn = Turn()
    options = {"task": task, "size": (48, 64), "scale_range": (0.8, 1.2)}
    for row in dataset:
        torch.manual_seed(1)
        crop = TrainTransform(labels, **options).row(row)
        torch.manual_seed(1)
        turned = TrainTransform(labels, **options, after=turn).row(row)
        assert turned["pixel_values"].dtype == torch.uint8
        assert turned["mask_labels"].dtype == torch.bool
        assert torch.equal(turned["pixel_values"], crop["pixel_values"].rot90(1, (1, 2)))
        assert torch.equal(turned["mask_labels"], crop["mask_labels"][1:].rot90(1, (1, 2)))
        assert torch.equal(turned["class_labels"], crop["class_labels"][1:])
    assert len(turn.seeds) == 3


def test_further_augmentation_of_a_crop_without_segments(tmp_path):
    dataset, labels = load_data(make_shapes(tmp_path, train=1, val=1), task="instance", split="train")
    turn = lambda image, masks: {"image": np.rot90(image), "masks": masks}  # noqa: E731
    crop = TrainTransform(labels, task="instance", size=(48, 64), after=turn).row(dataset[0] | {"segments": []})
    assert crop["mask_labels"].shape == (0, 64, 48)
    assert crop["pixel_values"].shape == (3, 64, 48)
