"""The README's code runs as it stands, on a demo of a few steps; its commands and files exist."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from eomt.cli import COMMANDS, main

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def folder(demo_folder):
    """Where `eomt demo` has run with a handful of images."""
    return demo_folder.parents[1]


def test_the_demo_writes_what_it_says(folder):
    demo = folder / "runs/demo"
    for name in ("model/config.json", "model/model.safetensors", "model/preprocessor_config.json", "report.json"):
        assert (demo / name).is_file(), name
    pictures = sorted(demo.glob("prediction-*.png"))
    assert len(pictures) == 4
    assert Image.open(pictures[0]).size[1] > 320
    assert (demo / "curves.png").is_file()


@pytest.mark.parametrize("index", range(3), ids=["pipeline", "auto classes", "fine-tuning"])
def test_code_blocks_run(folder, index):
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 3
    done = subprocess.run([sys.executable, "-c", blocks[index]], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Error" not in done.stderr


def test_commands_and_files_exist():
    assert set(re.findall(r"^\| `eomt (\w+)`", README, re.MULTILINE)) == set(COMMANDS)
    targets = set(re.findall(r"^(\w+)(?: \w+)?: \.venv", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"\bmake (\w+)", README)) <= targets | {"demo", "test", "bench"}
    for link in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert (ROOT / link).exists(), link
    for name in re.findall(r"^(\w+)/ ", README.split("## The files")[1], re.MULTILINE):
        assert (ROOT / name).is_dir(), name


def test_the_table_of_engines_is_an_excerpt():
    excerpt = re.search(r"<!-- benchmarks -->\n(.*?)<!-- /benchmarks -->", README, re.DOTALL)[1].splitlines()
    page = (ROOT / "docs/benchmarks.md").read_text(encoding="utf-8").splitlines()
    assert len(excerpt) > 4
    assert [line for line in excerpt if line not in page] == []


def test_unknown_command_and_bad_input_are_one_line(capsys):
    assert main(["segment"]) == 2
    assert "there is no command 'segment'; choose from demo" in capsys.readouterr().err
    assert main(["demo", "--steps", "0"]) == 2
    assert capsys.readouterr().err == "eomt demo: --steps 0: give at least 1\n"
