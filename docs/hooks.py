"""What `mkdocs build` needs of the project: the package in one folder, and the commands' own help."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("configuration", "image_processing", "modeling_eomt", "training")
HELP = re.compile(r"<!-- help: (\w+) -->")


def on_startup(**kwargs):
    """Copy the sources to `build/docs-source/eomt`, as a wheel has them: here four sub-packages lie beside `eomt/`."""
    package = ROOT / "build/docs-source/eomt"
    shutil.rmtree(package, ignore_errors=True)
    caches = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "eomt", package, ignore=caches)
    for name in FOLDERS:
        shutil.copytree(ROOT / name, package / name, ignore=caches)


def on_page_markdown(markdown, **kwargs):
    """`<!-- help: train -->` → what `eomt train --help` prints."""
    return HELP.sub(lambda match: f"```text\n{help_of(match[1])}```", markdown)


def help_of(command: str) -> str:
    environment = os.environ | {"COLUMNS": "100", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "eomt", command, "--help"], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout
