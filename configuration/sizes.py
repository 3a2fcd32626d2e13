"""Sizes of images and patches, in pixels: a side, or (height, width)."""


def as_pair(size) -> tuple[int, int]:
    """(height, width) from a side or (height, width)."""
    return (size, size) if isinstance(size, int) else tuple(size)


def parse_size(*texts: str) -> int | tuple[int, int]:
    """Parse "640", "480x640", or "480", "640" to a side or (height, width) in pixels."""
    try:
        sides = [int(side) for text in texts for side in str(text).lower().replace("×", "x").split("x")]
    except ValueError:
        sides = []
    if len(sides) not in (1, 2) or min(sides) < 1:
        raise ValueError(f"{' '.join(map(str, texts))!r} is not a size; give a side in pixels, or HEIGHTxWIDTH")
    return sides[0] if len(sides) == 1 else tuple(sides)
