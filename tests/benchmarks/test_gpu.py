"""`benchmarks.gpu` with tiny models on a CPU: every row is measured once, and written to the page."""

import json
import shutil
import time
from pathlib import Path

import pytest

from benchmarks import gpu
from benchmarks.gpu import BUILT_IN, OURS
from eomt.cli import main
from eomt.training.data.shapes import make_shapes
from tests.training.tiny import TINY_RUN

PAGE = Path(__file__).parents[2] / "docs" / "gpu.md"


def table(page: Path, name: str) -> list[list[str]]:
    """The cells of each row between the marks of a table."""
    text = page.read_text(encoding="utf-8").partition(f"<!-- {name} -->")[2].partition(f"<!-- /{name} -->")[0]
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


@pytest.mark.slow
def test_every_row_is_measured_once(tmp_path, monkeypatch):
    page, file = tmp_path / "gpu.md", tmp_path / "out" / "rows.json"
    shutil.copy(PAGE, page)
    command = ["--tiny", "--device", "cpu", "--output", str(tmp_path / "out"), "--page", str(page)]
    gpu.main([*command, "--minutes", "0"])
    assert not file.exists()
    with monkeypatch.context() as patch:
        patch.setattr(gpu.Bench, "mask2former", lambda bench: 1 / 0)
        gpu.main(command)
    failed = [row for row in json.loads(file.read_text())["rows"].values() if "median" not in row]
    assert failed == [{"error": "division by zero"}]  # the next call measures it
    gpu.main(command)
    measured = json.loads(file.read_text())["rows"]
    assert all(row["median"] > 0 for row in measured.values())
    assert {key.rpartition(", ")[2] for key in measured} == {OURS, BUILT_IN}

    speed = {name: (ours, theirs, printed) for name, ours, theirs, printed in table(page, "speed")}
    assert [name[:3] for name in speed][:6] == ["(0)", "(1)", "(2)", "(3)", "(4)", "(5)"]
    assert speed["EoMT, ViT-L, 1280²"][2] == "30"
    assert speed["Mask2Former, Swin-L, 800²"][0] == "–"
    for part, rows in (("throughput", 1), ("training", 1), ("post-processing", 3)):
        assert len(table(page, part)) == rows
        assert not any("–" in cells[1:3] for cells in table(page, part))

    written = page.read_text(encoding="utf-8")
    gpu.main(command)
    assert page.read_text(encoding="utf-8") == written
    other = json.loads(file.read_text())
    other["setting"]["device"] = "another"
    file.write_text(json.dumps(other))
    with pytest.raises(ValueError, match="another"):
        gpu.main(command)


def test_a_training_run_is_resumed_and_written(tmp_path, monkeypatch):
    make_shapes(tmp_path / "data", train=4, val=2)
    small = f"{TINY_RUN} --image-size 64 --total-batch-size 2 --use-cpu --max-steps 4 "
    small += "--save-strategy steps --save-steps 2"
    monkeypatch.setattr(gpu, "eomt", lambda command: main([*command, *small.split()]))
    run = gpu.training_run(str(tmp_path / "data"), "scratch", tmp_path / "run")
    assert run["steps"] == 4
    assert gpu.page_parts([], {"setting": {}, "rows": {}, "run": run})["run"].startswith("4 steps, ")
    shutil.rmtree(tmp_path / "run" / "checkpoint-4")
    resumed = gpu.training_run(str(tmp_path / "data"), "scratch", tmp_path / "run")
    assert resumed["seconds"] > 0
    assert resumed["results"]["eval_pq"] == run["results"]["eval_pq"]


def test_a_row_has_a_time_limit():
    started = time.monotonic()
    with pytest.raises(TimeoutError), gpu.time_limit(0.2):
        time.sleep(20)
    assert time.monotonic() - started < 10
    with gpu.time_limit(20):
        pass
