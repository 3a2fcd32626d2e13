"""Geometry: equal to the authors' numbers, and outputs at the place of their inputs."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from eomt.image_processing.geometry import input_size_of, placement, window_starts
from eomt.image_processing.resampling import Resampler, first_best
from tests.models import GOLDEN

CASES = json.loads((GOLDEN / "preprocess.json").read_text())["cases"]
sides = st.integers(1, 400)


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c['height']}x{c['width']}")
def test_sizes_and_windows_equal_the_authors(case):
    size = (case["height"], case["width"])
    assert placement(*size, 64).resized == tuple(case["resized_padded"])
    windowed = placement(*size, 64, windowed=True)
    assert windowed.resized == tuple(case["resized_window"])
    assert [[0, *offset] for offset in windowed.offsets] == case["windows"]


def test_examples_of_the_paper():
    assert placement(1024, 2048, 1024, windowed=True).offsets == [(0, 1024), (1024, 2048)]
    ade = placement(512, 683, 512, windowed=True)
    assert ade.offsets == [(0, 512), (171, 683)]
    assert placement(683, 512, 512, windowed=True).windows == ((0, 0), (171, 0))


@pytest.mark.parametrize(("size", "windowed", "expected"), [
    (640, False, (640, 640)),
    ({"height": 32, "width": 48}, False, (32, 48)),
    ({"height": 32, "width": 48}, True, (32, 48)),
    ({"shortest_edge": 512, "longest_edge": None}, True, (512, 512)),
    ({"shortest_edge": 64, "longest_edge": 96}, False, (64, 96)),
    ({"shortest_edge": 64, "longest_edge": 96}, True, (64, 64)),
    ({"longest_edge": 96}, False, (96, 96)),
    ({"max_height": 30, "max_width": 40}, False, (30, 40)),
])  # fmt: skip
def test_every_form_of_size(size, windowed, expected):
    assert input_size_of(size, windowed) == expected


@pytest.mark.parametrize("size", [{"min_pixels": 3, "max_pixels": 9}, {}, 0, {"height": -1, "width": 4}, {"height": 4}])
def test_impossible_sizes_are_refused(size):
    with pytest.raises(ValueError, match="size"):
        input_size_of(size, False)


@settings(max_examples=300, deadline=None)
@given(h=st.integers(1, 4000), w=st.integers(1, 4000), s_h=st.integers(1, 700), s_w=st.integers(1, 700))
def test_padded_image_fits_and_touches_a_side(h, w, s_h, s_w):
    place = placement(h, w, {"height": s_h, "width": s_w})
    assert all(1 <= r <= s for r, s in zip(place.resized, (s_h, s_w)))
    assert place.resized[0] == s_h or place.resized[1] == s_w
    assert place.windows == ((0, 0),)
    assert place.input_size == (s_h, s_w)


@settings(max_examples=300, deadline=None)
@given(h=st.integers(1, 4000), w=st.integers(1, 4000), s_h=st.integers(1, 700), s_w=st.integers(1, 700))
def test_windows_cover_the_image_and_stay_inside(h, w, s_h, s_w):
    if max(h / w, w / h) > 60:
        return  # thousands of windows
    place = placement(h, w, {"height": s_h, "width": s_w}, windowed=True)
    covered = torch.zeros(place.resized, dtype=torch.int8)
    for top, left in place.windows:
        part = covered[top : top + s_h, left : left + s_w]
        assert part.shape == (s_h, s_w)
        part += 1
    assert covered.min() >= 1
    axis = 0 if place.resized[0] > s_h else 1
    assert len(place.windows) == math.ceil(place.resized[axis] / (s_h, s_w)[axis])


@given(length=st.integers(1, 5000), window=st.integers(1, 1024))
def test_window_starts_equal_the_authors(length, window):
    n = math.ceil(length / window)
    overlap = (n * window - length) / (n - 1) if n * window > length and n > 1 else 0
    authors = [int(j * (window - overlap)) for j in range(n)]
    starts = window_starts(length, window)
    assert starts[:-1] == authors[:-1]
    assert starts[-1] == max(0, length - window)
    assert starts[-1] - authors[-1] in (0, 1)  # theirs can be one short by rounding: 513 pixels in windows of 18


def test_images_that_do_not_fit_are_refused_without_resizing():
    assert placement(30, 40, 64, resize=False).resized == (30, 40)
    with pytest.raises(ValueError, match="100 × 40"):
        placement(100, 40, 64, resize=False)
    with pytest.raises(ValueError, match="100 × 80"):
        placement(100, 80, 64, windowed=True, resize=False)


@settings(max_examples=40, deadline=None)
@given(
    h=sides, w=sides, s_h=st.integers(8, 96), s_w=st.integers(8, 96), grid=st.integers(2, 24), side=st.integers(5, 300)
)
def test_tiles_equal_the_authors_two_resizes(h, w, s_h, s_w, grid, side):
    place = placement(h, w, {"height": s_h, "width": s_w})
    logits = torch.randn(3, grid, grid + 1, generator=torch.Generator().manual_seed(h * w))
    at_input = F.interpolate(logits[None], size=(s_h, s_w), mode="bilinear")
    cropped = at_input[..., : place.resized[0], : place.resized[1]]
    expected = F.interpolate(cropped, size=(h, w), mode="bilinear")[0]
    resampler = Resampler.to_image((grid, grid + 1), place)
    result = torch.full_like(expected, torch.nan)
    for tile in resampler.tiles(side):
        result[:, tile.rows, tile.columns] = tile.upsample(tile.block(logits))
    torch.testing.assert_close(result, expected, atol=1e-4, rtol=0)


@given(seed=st.integers(0, 10_000), planes=st.integers(1, 6))
def test_first_best_equals_argmax(seed, planes):
    x = torch.randint(0, 3, (planes, 5, 7), generator=torch.Generator().manual_seed(seed)).float()  # many ties
    best, index = first_best(x)
    assert torch.equal(best, x.amax(0))
    first = (x == x.amax(0)).int().argmax(0)
    assert torch.equal(index, first)
