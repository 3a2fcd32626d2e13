"""Tables for the terminal."""

from collections.abc import Sequence


def text_table(rows: Sequence[Sequence[str]], align_right: bool = False) -> str:
    """Rows of cells, the header first → aligned text with a line under the header.

    Args:
        align_right: of all columns but the first.
    """
    widths = [max(map(len, column)) for column in zip(*rows)]
    justify = [str.ljust, *[str.rjust if align_right else str.ljust] * (len(widths) - 1)]
    lines = ["  ".join(write(*cell) for write, *cell in zip(justify, row, widths)).rstrip() for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)
