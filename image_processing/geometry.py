"""Where an image lies in the model's inputs, and so where the outputs lie in the image (paper Sec. 4.1).

Sizes are (height, width) in pixels. One function, `placement`, gives every size both ways: the processor resizes, pads
and cuts by it, post-processing inverts it.

    original ──resize──▶ resized ──pad right and bottom──▶ one input            (panoptic, instance)
    original ──resize──▶ resized ──cut along the longer side──▶ several inputs  (semantic)
"""

import math
from dataclasses import dataclass
from numbers import Integral

Size = tuple[int, int]  # (height, width), pixels
LONGEST_SIDE = 32768
"""Largest side of an enlarged image (pixels), 64 windows of 512: a picture of 2000 × 2 would get 512,000."""


@dataclass(frozen=True)
class Placement:
    """How one image was placed: all sizes (height, width)."""

    original: Size
    resized: Size
    input_size: Size
    """Size of one model input: the padded image, or one window."""
    windows: tuple[Size, ...]
    """Top-left corner of each input in the resized image; padded images have the one at (0, 0)."""

    @property
    def offsets(self) -> list[tuple[int, int]]:
        """(start, end) of each window along the side they slide on, as transformers' `patch_offsets` has them."""
        along_height = self.resized[0] > self.input_size[0]
        axis = 0 if along_height else 1
        return [(corner[axis], corner[axis] + self.input_size[axis]) for corner in self.windows]


def input_size_of(size, windowed: bool) -> Size:
    """Model input size (height, width) of a processor's `size`: an int, (height, width), or a dict in one of
    transformers' spellings. `{"shortest_edge": a, "longest_edge": b}` is a window of a × a, or a padded a × b.

    Raises:
        ValueError: for a spelling that names no input size and for sides below 1.
    """
    if isinstance(size, int):
        sides = (size, size)
    elif isinstance(size, (tuple, list)):
        sides = tuple(size) if len(size) == 2 else tuple(size) * 2
    else:
        size = {edge: side for edge, side in dict(size).items() if side is not None}
        if size.keys() == {"height", "width"}:
            sides = (size["height"], size["width"])
        elif size.keys() == {"max_height", "max_width"}:
            sides = (size["max_height"], size["max_width"])
        elif size and size.keys() <= {"shortest_edge", "longest_edge"}:
            short = size.get("shortest_edge", size.get("longest_edge"))
            sides = (short, short if windowed else size.get("longest_edge", short))
        else:
            raise ValueError(
                f"size {size} names no input size; use an int, {{'height', 'width'}} or "
                "{'shortest_edge', 'longest_edge'}"
            )
    if not all(isinstance(side, Integral) and 1 <= side <= LONGEST_SIDE for side in sides):
        raise ValueError(f"size is {sides}; it must be whole pixels from 1 to {LONGEST_SIDE}")
    return int(sides[0]), int(sides[1])


def placement(
    height: int, width: int, size, *, windowed: bool = False, pad: bool = True, resize: bool = True
) -> Placement:
    """Original size → `Placement`, with the authors' rounding (Python's `round`: half to even).

    Args:
        size: the processor's `size` (see `input_size_of`).
        windowed: scale so that the image covers the input and slide windows along the side that sticks out;
            otherwise scale so that it fits in and pad.
        pad: `False` leaves the resized image as it is (one input of its size); only without windows.
        resize: `False` keeps the original size.

    Raises:
        ValueError: for images that cannot be placed: empty, or unfit without resizing.
    """
    if min(height, width) < 1:
        raise ValueError(f"image of {height} × {width} pixels is empty")
    target = input_size_of(size, windowed)
    scales = (target[0] / height, target[1] / width)
    scale = max(scales) if windowed else min(scales)
    if not resize:
        scale = 1.0
    # a 3000 × 200 photo at 64 pixels still has a side of 4, a 5000 × 2 one would have 0
    resized = (max(1, round(height * scale)), max(1, round(width * scale)))
    if not windowed:
        if not pad:
            return Placement((height, width), resized, resized, ((0, 0),))
        if resized[0] > target[0] or resized[1] > target[1]:  # only without resizing
            raise ValueError(f"image of {height} × {width} does not fit the input size {target}; set do_resize=True")
        return Placement((height, width), resized, target, ((0, 0),))
    sticks_out = [resized[0] > target[0], resized[1] > target[1]]
    if resized[0] < target[0] or resized[1] < target[1] or all(sticks_out):  # only without resizing
        raise ValueError(f"image of {height} × {width} has no side of the windows' {target}; set do_resize=True")
    axis = 0 if sticks_out[0] else 1
    starts = window_starts(resized[axis], target[axis])
    corners = tuple((start, 0) if axis == 0 else (0, start) for start in starts)
    return Placement((height, width), resized, target, corners)


def window_starts(length: int, window: int) -> list[int]:
    """Starts of the fewest windows that cover `length` pixels, spread evenly (authors: int(j·(S − o)))."""
    count = math.ceil(length / window)
    overlap = (count * window - length) / (count - 1) if count > 1 else 0.0
    starts = [int(j * (window - overlap)) for j in range(count - 1)]
    return [*starts, max(0, length - window)]  # j = n − 1; in floats it can be one short, and a row left uncovered


def require_possible(place: Placement) -> None:
    """`ValueError` for a picture so narrow that its enlargement would fill the memory."""
    (height, width), resized = place.original, place.resized
    if max(resized) > max(LONGEST_SIDE, height, width):
        raise ValueError(
            f"image of {height} × {width} is too narrow for windows of {place.input_size[0]} × {place.input_size[1]}: "
            f"it would be resized to {resized[0]} × {resized[1]}, the limit is {LONGEST_SIDE} pixels a side"
        )
