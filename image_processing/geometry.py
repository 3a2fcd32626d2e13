"""The placement of an image in the inputs of the model, and of the outputs in the image (paper Sec. 4.1).

Sizes are (height, width) in pixels. `placement` computes them for both directions: the processor resizes, pads and cuts
an image, and post-processing inverts that.

    original ──resize──▶ resized ──pad right and bottom──▶ one input            (panoptic, instance)
    original ──resize──▶ resized ──cut along the longer side──▶ several inputs  (semantic)
"""

import math
from dataclasses import dataclass
from numbers import Integral

Size = tuple[int, int]  # (height, width), pixels
LONGEST_SIDE = 32768  # pixels of an enlarged image, 64 windows of 512: one of 2000 × 2 would grow to 512,000


@dataclass(frozen=True)
class Placement:
    """The placement of one image."""

    original: Size
    resized: Size
    input_size: Size
    """Size of one model input: the padded image, or one window."""
    windows: tuple[Size, ...]
    """Top-left corner of each input in the resized image; a padded image has one input at (0, 0)."""

    @property
    def offsets(self) -> list[tuple[int, int]]:
        """(start, end) of each window along the side that is cut, as in transformers' `patch_offsets`."""
        along_height = self.resized[0] > self.input_size[0]
        axis = 0 if along_height else 1
        return [(corner[axis], corner[axis] + self.input_size[axis]) for corner in self.windows]


def input_size_of(size, windowed: bool) -> Size:
    """Size of a model input for the `size` of a processor: an int, (height, width), or one of transformers' dicts, of
    which `{"shortest_edge": a, "longest_edge": b}` is a window of a × a, or a padded input of a × b.

    Raises:
        ValueError: for an unknown form and for sides that are not integers from 1 to `LONGEST_SIDE`.
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
        raise ValueError(f"size is {sides}; give integers from 1 to {LONGEST_SIDE}")
    return int(sides[0]), int(sides[1])


def placement(
    height: int, width: int, size, *, windowed: bool = False, pad: bool = True, resize: bool = True
) -> Placement:
    """Place an image, with the authors' rounding (Python's `round`: half to even).

    Args:
        size: the processor's `size` (see `input_size_of`).
        windowed: scale the image to cover the input, and cut windows along its longer side. Otherwise scale it to fit
            into the input, and pad.
        pad: False makes the resized image the input; only without windows.
        resize: False keeps the original size.

    Raises:
        ValueError: for an empty image, or one that does not fit without resizing.
    """
    if min(height, width) < 1:
        raise ValueError(f"image of {height} × {width} pixels is empty")
    target = input_size_of(size, windowed)
    scales = (target[0] / height, target[1] / width)
    scale = max(scales) if windowed else min(scales)
    if not resize:
        scale = 1.0
    # at 64 pixels, an image of 3000 × 200 has a short side of 4; one of 5000 × 2 would have 0
    resized = (max(1, round(height * scale)), max(1, round(width * scale)))
    if not windowed:
        if not pad:
            return Placement((height, width), resized, resized, ((0, 0),))
        if resized[0] > target[0] or resized[1] > target[1]:  # only without resizing
            raise ValueError(f"image of {height} × {width} does not fit the input size {target}; set do_resize=True")
        return Placement((height, width), resized, target, ((0, 0),))
    sticks_out = [resized[0] > target[0], resized[1] > target[1]]
    if resized[0] < target[0] or resized[1] < target[1] or all(sticks_out):  # only without resizing
        raise ValueError(f"image of {height} × {width} does not fit windows of {target}; set do_resize=True")
    axis = 0 if sticks_out[0] else 1
    starts = window_starts(resized[axis], target[axis])
    corners = tuple((start, 0) if axis == 0 else (0, start) for start in starts)
    return Placement((height, width), resized, target, corners)


def window_starts(length: int, window: int) -> list[int]:
    """Starts of the fewest windows that cover `length` pixels, evenly spaced (authors: int(j·(S − o)))."""
    count = math.ceil(length / window)
    overlap = (count * window - length) / (count - 1) if count > 1 else 0.0
    starts = [int(j * (window - overlap)) for j in range(count - 1)]
    return [*starts, max(0, length - window)]  # j = n − 1 in integers: floats can be one short and miss a row


def require_possible(place: Placement) -> None:
    """Raise `ValueError` for an image so narrow that its enlargement would fill the memory."""
    (height, width), resized = place.original, place.resized
    if max(resized) > max(LONGEST_SIDE, height, width):
        raise ValueError(
            f"image of {height} × {width} is too narrow for windows of {place.input_size[0]} × {place.input_size[1]}: "
            f"it would be resized to {resized[0]} × {resized[1]}; the limit is {LONGEST_SIDE} pixels per side"
        )
