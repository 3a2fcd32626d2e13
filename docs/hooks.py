"""What `mkdocs build` needs of the project: the package in one folder, its pages, and the commands' own help."""

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


def on_config(config):
    """Leave pages out of the navigation that a script has not written yet: docs/results.md and docs/ladder.md."""
    config["nav"] = _written(config["nav"], Path(config["docs_dir"]))
    return config


def _written(nav, docs: Path):
    if isinstance(nav, list):
        return [kept for entry in nav if (kept := _written(entry, docs))]
    if isinstance(nav, dict):
        return {title: kept for title, entry in nav.items() if (kept := _written(entry, docs))}
    return nav if (docs / nav).exists() else None


def on_page_markdown(markdown, **kwargs):
    """`<!-- help: train -->` → what `eomt train --help` prints."""
    return HELP.sub(lambda match: f"```text\n{help_of(match[1])}```", markdown)


def help_of(command: str) -> str:
    environment = os.environ | {"COLUMNS": "100", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "eomt", command, "--help"], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout
