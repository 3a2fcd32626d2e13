"""What a run says of itself on the terminal: an estimate after its first steps, one line a log."""

import importlib
import sys
from types import SimpleNamespace

from eomt.training.callbacks import estimate
from eomt.training.callbacks.estimate import EstimateCallback, describe
from eomt.training.callbacks.progress import describe as line_of


def test_importable_without_the_resource_module_as_on_windows(monkeypatch):
    monkeypatch.setitem(sys.modules, "resource", None)
    importlib.reload(estimate)


def test_one_estimate_after_six_steps(capsys):
    callback, state = EstimateCallback(), SimpleNamespace(max_steps=30, global_step=0, is_world_process_zero=True)
    said = []
    for state.global_step in range(1, 10):
        callback.on_step_begin(None, state, None)
        callback.on_step_end(None, state, None)
        said.append(capsys.readouterr().out)
    assert [bool(text) for text in said] == [False] * 5 + [True] + [False] * 3
    assert "1 min for 24 more without evaluations" in said[5]
    assert "GiB so far" in said[5]


def test_minutes_and_hours():
    assert describe(3.04, 400, 3 << 30) == (
        "estimate   3 s a step, 20 min for 400 more without evaluations; 3.0 GiB so far"
    )
    assert "2.5 hours for 3000 more" in describe(3.0, 3000, 1)


def test_a_frozen_backbone_has_no_rate():
    logs = {"loss": 2.0, "learning_rate": 1e-4, "grad_norm": 1.0}
    assert "lr 1.00e-04  masks" in line_of(logs)
    assert "lr 1.00e-04, first block 2.00e-05" in line_of(logs | {"learning_rate_first_block": 2e-5})
