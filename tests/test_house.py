"""The folders: their imports, their sizes, the wheel, and no generic names in `sys.modules`."""

import ast
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import eomt

ROOT = Path(__file__).parent.parent
FOLDERS = ("configuration", "image_processing", "modeling_eomt", "training", "eomt")
BELOW = {  # a folder imports from itself and these only
    "configuration": (),
    "image_processing": ("configuration",),
    "modeling_eomt": ("configuration",),
    "training": ("configuration", "image_processing", "modeling_eomt"),
}
LEVELS = (  # of the modules of eomt/: each imports from the lines above its own, and from the rooms
    ("versions",),
    ("options", "results", "engines", "auto", "interop"),
    ("drawing", "loading", "tiling", "inference"),
    ("pipeline", "report", "check"),
    ("segmentation", "predict"),
    ("speed", "train", "convert", "serve", "demo"),
    ("evaluate",),
    ("export",),
    ("cli",),
    ("__main__",),
)
LEVEL = {module: level for level, modules in enumerate(LEVELS) for module in modules}
MAX_LINES = {
    "configuration": 1700,
    "image_processing": 2440,
    "modeling_eomt": 3970,
    "training": 6730,
    "eomt": 5420,
    "benchmarks": 2110,
    "tests": 14190,
}
NOT_IN_CONFIGURATION = {"torch", "torchvision", "numpy", "PIL", "datasets"}


def modules(folder):
    return sorted((ROOT / folder).rglob("*.py"))


def imports(path: Path, top_level_only: bool = False):
    """Absolute dotted names that a file imports. Relative ones are resolved in `eomt.<folder>`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    package = list(path.relative_to(ROOT).parent.parts)
    if package[0] != "eomt":
        package.insert(0, "eomt")
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *(node.module.split(".") if node.module else [])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("room", MAX_LINES)
def test_folders_keep_their_size(room):
    """A feature that is worth it raises a number here."""
    assert sum(len(path.read_text(encoding="utf-8").splitlines()) for path in modules(room)) <= MAX_LINES[room]


@pytest.mark.parametrize("room", BELOW)
def test_folders_import_downwards(room):
    for path in modules(room):
        for name in imports(path):
            top, _, rest = name.partition(".")
            assert top not in FOLDERS[:4], f"{path}: {name} would need a generic name in site-packages"
            if top == "eomt" and rest:
                assert rest.split(".")[0] in (room, *BELOW[room]), f"{path} imports {name}"


def test_modules_of_eomt_import_downwards():
    names = {path.relative_to(ROOT / "eomt").parts[0].removesuffix(".py") for path in modules("eomt")}
    assert names == {*LEVEL, "__init__"}
    for path in modules("eomt"):
        module = path.relative_to(ROOT / "eomt").parts[0].removesuffix(".py")
        for name in imports(path):
            parts = name.split(".")
            if module != "__init__" and parts[0] == "eomt" and len(parts) > 1 and parts[1] in {*LEVEL} - {module}:
                assert LEVEL[parts[1]] < LEVEL[module], f"{path} imports {name}"


@pytest.mark.parametrize("folder", FOLDERS)
def test_imports_inside_the_package_are_relative(folder):
    """Absolute in tests, benchmarks and docs, which are its users."""
    for path in modules(folder):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and not node.level:
                assert node.module.split(".")[0] != "eomt", f"{path}: from {node.module} import …"


def test_configuration_needs_no_torch():
    for path in modules("configuration"):
        for name in imports(path):
            assert name.split(".")[0] not in NOT_IN_CONFIGURATION, f"{path} imports {name}"


def test_the_oldest_transformers_is_pyprojects():
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    oldest = next(line for line in dependencies if line.startswith("transformers"))
    assert f'require_version("{oldest}"' in (ROOT / "eomt/versions.py").read_text(encoding="utf-8")


def test_importing_eomt_leaves_training_and_generic_names_alone():
    script = (
        "import sys, eomt; from transformers import AutoConfig; loaded = set(sys.modules); "
        "assert type(AutoConfig.for_model('eomt')) is eomt.EoMTConfig; "
        "assert not any(name.startswith(('eomt.training', 'eomt.inference')) for name in loaded); "
        f"assert not loaded & {set(FOLDERS[:4])!r}, loaded & {set(FOLDERS[:4])!r}; "
        "assert not loaded & {'datasets', 'pycocotools', 'matplotlib.pyplot', 'timm'}; "
        "assert eomt.pipeline.EoMTImageSegmentationPipeline, 'as the README prints it'"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("program", "started", "command"), [
    ("train.py", [], False), ("pytest", [], False), ("-m", ["-m", "pytest", "eomt"], False),
    ("-m", ["-u", "-m", "eomt", "train"], True), ("/usr/bin/eomt", [], True), ("eomt.exe", [], True),
])  # fmt: skip
def test_importing_eomt_registers_the_models(program, started, command, monkeypatch):
    """Except for the command itself, which registers after reading its arguments."""
    monkeypatch.setattr(sys, "argv", [program, "--help"])
    monkeypatch.setattr(sys, "orig_argv", ["python", *started])
    assert eomt._is_command() == command


def test_the_wheel_holds_the_tracked_files(tmp_path):
    """It is built from a copy of the tracked files, so that untracked ones do not hide a missing file."""
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for name in tracked:
        if (ROOT / name).is_file() and not name.startswith("tests/"):
            (tmp_path / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "source" / name).write_bytes((ROOT / name).read_bytes())
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(tmp_path)]
    subprocess.run([*build, str(tmp_path / "source")], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    files = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    expected = {
        name if name.startswith("eomt/") else f"eomt/{name}"
        for name in tracked
        if name.startswith(tuple(f"{folder}/" for folder in FOLDERS))
    }
    assert files == expected
