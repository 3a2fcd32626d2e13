"""Parts of Markdown files that scripts write, between prose that they leave alone."""

from pathlib import Path

from eomt.training.files import write_text


def fill_parts(file: Path, **parts: str) -> None:
    """Replace the text between `<!-- name -->` and `<!-- /name -->`, for each name.

    Raises:
        ValueError: if the file has no such marks.
    """
    text = file.read_text(encoding="utf-8")
    for name, part in parts.items():
        start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        before, found, rest = text.partition(start)
        if not found or end not in rest:
            raise ValueError(f"{file} has no marks {start.strip()} and {end}")
        text = f"{before}{start}\n{part}\n\n{rest[rest.index(end) :]}"
    write_text(file, text)
