"""`eomt compare`: runs of the Trainer, finished and not, in a table and a picture."""

import json

import pytest
from PIL import Image

from eomt.cli import main
from tests.training.runs import resumable


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A finished run as `eomt train` leaves it, one that stopped at a checkpoint, and a folder with neither."""
    folder = tmp_path_factory.mktemp("runs")
    for name, rate, quality in (("fast", 2e-4, 0.25), ("slow", 1e-4, 0.5)):
        trainer = resumable(folder / name, max_steps=4, learning_rate=rate, logging_steps=1)
        trainer.train()
        log = [*trainer.state.log_history, {"step": 2, "eval_pq": quality / 2}, {"step": 4, "eval_pq": quality}]
        trainer.state.log_history = sorted(log, key=lambda row: row["step"])
        trainer.state.save_to_json(str(folder / name / "trainer_state.json"))
        options = {"task": "panoptic", "learning_rate": rate, "seed": 0}
        (folder / name / "options.json").write_text(json.dumps(options))
    (folder / "slow/trainer_state.json").rename(folder / "slow/checkpoint-4/trainer_state.json")
    (folder / "notes").mkdir()
    return folder


def test_table_and_picture(runs, tmp_path, capsys):
    folders = [str(path) for path in sorted(runs.iterdir())]
    assert main(["compare", *folders, "--plot", str(tmp_path / "curves.png")]) == 0
    header, _, first, second, last = capsys.readouterr().out.splitlines()
    assert header.split() == ["run", "best", "at", "step", "last", "loss", "steps", "time", "learning_rate"]
    assert first.split()[:5] == ["slow", "PQ", "50.0", "4", "50.0"]
    assert second.split()[:5] == ["fast", "PQ", "25.0", "4", "25.0"]
    assert first.split()[-1] == "0.0001"
    assert second.split()[-1] == "0.0002"
    assert last == f"curves: {tmp_path / 'curves.png'}"
    with Image.open(tmp_path / "curves.png") as picture:
        assert len(picture.convert("RGB").getcolors(2**24)) > 20
    assert main(["compare", *folders, "--plot", str(tmp_path / "curves.png")]) == 2
    assert "exists; choose another name, or replace it with --force" in capsys.readouterr().err


def test_what_is_no_run(runs, tmp_path, capsys):
    (tmp_path / "trainer_state.json").write_text("[1]")
    for folder, message in (
        (runs / "notes", "holds a run (trainer_state.json, or checkpoints with one)"),
        (runs / "missing", "there is no folder"),
        (tmp_path, "is not a state that the Trainer wrote"),
    ):
        assert main(["compare", str(folder)]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert main(["compare", str(runs / "fast"), "--plot", "curves.txt"]) == 2
    assert "choose .png, .pdf or .svg" in capsys.readouterr().err
