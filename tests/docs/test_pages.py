"""All code in docs/ and the README's Python run, page by page, in a folder where `eomt demo` has run. Every page is in
the navigation, and every link has a target."""

import importlib.util
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image
from transformers.utils.logging import disable_progress_bar

from eomt.cli import app, main
from tests.docs import workspace

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
PAGES = sorted(DOCS.rglob("*.md"))
BLOCK = re.compile(r"^```(python|sh)\n(.*?)^```", re.MULTILINE | re.DOTALL)
TESTED_ELSEWHERE = {
    "deployment.md": "tests/eomt/test_deployment.py, test_serve.py",  # engines and a server
}
NEEDS_MORE = (
    *("--backbone ", "--recipe "),  # a download
    *("serve", "torchrun", "accelerate", "--device cuda"),  # a browser, several devices
    *("COCO", "ADE20K", "CITYSCAPES", "BRAVO", "MODEL", "OUT"),  # data of the reader
)
"""A command with one of these words is only parsed."""


def blocks(page: Path) -> list[tuple[str, str]]:
    return BLOCK.findall(page.read_text(encoding="utf-8"))


SLOW = {"fine-tuning.md", "evaluation.md", "ladder.md", "pmt.md"}  # several trainings, many evaluations, exports
RUNNING = [
    pytest.param(page, id=str(page.relative_to(DOCS)), marks=[pytest.mark.slow] if page.name in SLOW else [])
    for page in PAGES
    if blocks(page) and page.name not in TESTED_ELSEWHERE
]


@pytest.fixture(scope="module")
def folder(demo_folder, tmp_path_factory):
    return workspace.build(tmp_path_factory.mktemp("docs"), demo_folder)


def test_the_demo_writes_the_files_of_the_readme(demo_folder):
    for name in ("model/config.json", "model/model.safetensors", "model/preprocessor_config.json", "report.json"):
        assert (demo_folder / name).is_file(), name
    pictures = sorted(demo_folder.glob("prediction-*.png"))
    assert len(pictures) == 4
    assert Image.open(pictures[0]).size[1] > 320
    assert (demo_folder / "curves.png").is_file()


def test_the_code_of_the_readme_runs(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    code = [text for language, text in blocks(README) if language == "python"]
    assert len(code) == 3
    for number, text in enumerate(code, 1):
        exec(compile(text, f"README.md, block {number}", "exec"), {"__name__": "__main__"})
    assert "Error" not in capsys.readouterr().err


@pytest.mark.parametrize("page", RUNNING)
def test_the_code_of_a_page_runs(page, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    disable_progress_bar()
    names = {"__name__": "__main__"}
    for number, (language, text) in enumerate(blocks(page), 1):
        if language == "python":
            exec(compile(text, f"{page.name}, block {number}", "exec"), names)
            continue
        for line in text.replace("\\\n", " ").splitlines():
            command = shlex.split(line, comments=True)
            if command:
                run(command)
                assert "Error" not in capsys.readouterr().err, line


def run(command: list[str]) -> None:
    """Run a line of a shell block, or check it as far as a test can."""
    text = " ".join(command)
    if "eomt" in command[:1] or "--no-python" in command or "--no_python" in command:
        argv = command[command.index("eomt") + 1 :]
        if any(word in text for word in NEEDS_MORE):
            parse(argv)
        else:
            assert main(argv) == 0, text
    elif command[:2] == ["python", "-m"]:
        if command[2].startswith("eomt.") and not any(word in text for word in NEEDS_MORE):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(sys, "argv", command[2:])
                runpy.run_module(command[2], run_name="__main__")
        else:
            assert importlib.util.find_spec(command[2]), text
    elif command[0] == "make":
        assert re.search(rf"^{command[1]}: ", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE), text
    else:
        assert command[:2] == ["pip", "install"], f"{text}: say how this command is tested"
        extras = re.findall(r"\[(.*?)\]", text)
        known = re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
        assert {name for extra in extras for name in extra.split(",")} <= {*known}, text


def parse(argv: list[str]) -> None:
    """The command's own parser takes these arguments."""
    argv = [option.replace("…", "--data=x") for option in argv]
    app.parse_args(argv, exit_on_error=False, print_error=False)


def test_the_commands_of_the_readme_exist():
    text = README.read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `eomt (\w+)`", text, re.MULTILINE)) == {
        name for name in app if not name.startswith("-")
    }
    targets = set(re.findall(r"^(\w+)(?: \w+)?: \.venv", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"\bmake (\w+)", text)) <= targets | {"demo", "test", "bench"}
    assert len(text.splitlines()) <= 150


def test_the_table_of_engines_in_the_readme_is_an_excerpt():
    text = README.read_text(encoding="utf-8")
    excerpt = re.search(r"<!-- benchmarks -->\n(.*?)<!-- /benchmarks -->", text, re.DOTALL)[1].splitlines()
    page = (DOCS / "benchmarks.md").read_text(encoding="utf-8").splitlines()
    assert len(excerpt) > 4
    assert [line for line in excerpt if line not in page] == []


def navigation(entries) -> list[str]:
    if isinstance(entries, str):
        return [entries]
    values = entries.values() if isinstance(entries, dict) else entries
    return [page for entry in values for page in navigation(entry)]


def test_every_page_is_in_the_navigation():
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    listed = navigation(site["nav"])
    notebooks = DOCS.rglob("*.ipynb")
    assert sorted(listed) == sorted(str(page.relative_to(DOCS)) for page in (*PAGES, *notebooks))
    assert len(PAGES) <= 14


@pytest.mark.parametrize("page", [README, *PAGES], ids=lambda page: page.name)
def test_links_have_targets(page):
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\((?!https?:)([^)#]*)#?[^)]*\)", text):
        assert not target or (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.slow
def test_the_site_builds_without_warnings(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    reference = (tmp_path / "site/reference/index.html").read_text(encoding="utf-8")
    assert "from_pretrained_backbone" in reference
