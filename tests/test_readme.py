"""The README's commands and files exist; its code runs in tests/docs, with that of the pages."""

import re
from pathlib import Path

from eomt.cli import app

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_commands_and_files_exist():
    assert set(re.findall(r"^\| `eomt (\w+)`", README, re.MULTILINE)) == {
        name for name in app if not name.startswith("-")
    }
    targets = set(re.findall(r"^(\w+)(?: \w+)?: \.venv", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"\bmake (\w+)", README)) <= targets | {"demo", "test", "bench"}
    for link in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert (ROOT / link).exists(), link
    assert len(README.splitlines()) <= 150


def test_the_table_of_engines_is_an_excerpt():
    excerpt = re.search(r"<!-- benchmarks -->\n(.*?)<!-- /benchmarks -->", README, re.DOTALL)[1].splitlines()
    page = (ROOT / "docs/benchmarks.md").read_text(encoding="utf-8").splitlines()
    assert len(excerpt) > 4
    assert [line for line in excerpt if line not in page] == []
