"""The picture of a run is drawn once for what the log holds."""

from types import SimpleNamespace

from eomt.training.callbacks import curves


def test_an_evaluation_and_the_save_after_it_are_one_picture(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(curves, "plot_curves", lambda log_history, path: drawn.append((len(log_history), path)))
    callback, args = curves.CurvesCallback(), SimpleNamespace(output_dir=str(tmp_path))
    state = SimpleNamespace(is_world_process_zero=True, log_history=[{"step": 1, "loss": 2.0}])
    callback.on_evaluate(args, state, None)
    callback.on_save(args, state, None)
    state.log_history.append({"step": 2, "loss": 1.0})
    callback.on_train_end(args, state, None)
    assert drawn == [(1, tmp_path / "curves.png"), (2, tmp_path / "curves.png")]
    state.is_world_process_zero = False
    state.log_history.append({"step": 3, "loss": 1.0})
    callback.on_save(args, state, None)
    assert len(drawn) == 2
