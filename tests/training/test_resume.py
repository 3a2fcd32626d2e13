"""Resume after kill -9 in a step, in each stage of a save, and in the deletion of an old checkpoint: bitwise equal."""

import json
import multiprocessing
import shutil
import signal
import subprocess
import sys

import pytest
import torch

from eomt.modeling_eomt import EoMTForUniversalSegmentation
from eomt.training import EoMTTrainer
from eomt.training.checkpoints import last_complete_checkpoint, missing_file
from tests.training.runs import KILLS, LONG, InStep, losses, resumable
from tests.training.tiny import Samples, tiny_arguments, tiny_model

FAILING = """
from multiprocessing import get_context
from torch.utils.data import DataLoader
from eomt.training.data.samples import SignalSafeDataset

def run():
    batches = iter(DataLoader(SignalSafeDataset(list(range(64))), num_workers=2, multiprocessing_context="fork"))
    next(batches)
    raise SystemExit(3)

"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed")
    subprocess.run([sys.executable, "-m", "tests.training.runs", "kill", str(folder)], check=True, timeout=300)
    return folder


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    trainer = resumable(tmp_path_factory.mktemp("uninterrupted"), save_strategy="no")
    trainer.train()
    return losses(trainer)


@pytest.mark.parametrize("when", KILLS)
def test_a_killed_run_resumes_bitwise(killed, uninterrupted, when):
    folder = killed / str(KILLS.index(when))
    (folder / ".saving" / "checkpoint-3").mkdir(parents=True, exist_ok=True)  # killed while another step was saved
    step = 2 if when in ("before a save", "half an optimizer", "before the rename") else 4
    assert last_complete_checkpoint(folder) == str(folder / f"checkpoint-{step}")
    trainer = resumable(folder)
    trainer.train(resume_from_checkpoint=True)
    assert losses(trainer) == uninterrupted
    assert [path.name for path in folder.glob("*checkpoint*")] == ["checkpoint-6"]
    assert not (folder / ".saving").exists()


def test_a_run_interrupted_with_its_workers_resumes_bitwise(killed, tmp_path):
    cut = killed / "group"
    assert [path.name for path in cut.glob("checkpoint-*")] == ["checkpoint-3"]
    resumed = resumable(cut, **LONG)
    resumed.train(resume_from_checkpoint=True)
    uninterrupted = resumable(tmp_path / "uninterrupted", **LONG)
    uninterrupted.train()
    assert losses(resumed) == losses(uninterrupted)


def test_workers_end_with_a_run_that_fails():
    """The traceback of an error keeps the iterator, so that Python's exit alone ends its workers."""
    child = 'SignalSafeDataset([]); child = get_context("fork").Process(target=run); child.start(); child.join()'
    for job in ("run()", f"{child}; exit(child.exitcode)"):
        assert subprocess.run([sys.executable, "-c", FAILING + job], timeout=300).returncode == 3


def test_workers_of_an_evaluation_of_the_loss_outlive_signals(tmp_path):
    """A signal to all processes of a job would otherwise end the run before its checkpoint."""
    args = tiny_arguments(tmp_path, dataloader_num_workers=2, per_device_eval_batch_size=1)
    trainer = EoMTTrainer(tiny_model(), args, eval_dataset=Samples(20))
    real, batches = trainer.prediction_step, []

    def signalled(*inputs, **options):
        batches.append(inputs)
        for worker in multiprocessing.active_children() if len(batches) == 4 else ():
            worker.terminate()
        return real(*inputs, **options)

    trainer.prediction_step = signalled
    assert trainer.evaluate()["eval_loss"] > 0
    assert len(batches) == 20


def test_workers_do_not_change_a_run(tmp_path, uninterrupted):
    trainer = resumable(tmp_path, save_strategy="no", dataloader_num_workers=2)
    trainer.train()
    assert losses(trainer) == uninterrupted


def test_incomplete_checkpoints_are_skipped(tmp_path):
    assert last_complete_checkpoint(tmp_path) is None
    trainer = resumable(tmp_path / "run", max_steps=2)
    trainer.train()
    good = tmp_path / "run" / "checkpoint-2"
    assert missing_file(good) is None
    for step, file, content in [
        (4, "trainer_state.json", b'{"global_st'),
        (5, "trainer_state.json", None),
        (6, "model.safetensors", (good / "model.safetensors").read_bytes()[:-100]),
        (7, "model.safetensors", None),
        (8, "optimizer.pt", (good / "optimizer.pt").read_bytes()[:500]),
        (9, "scheduler.pt", None),
    ]:
        bad = tmp_path / "run" / f"checkpoint-{step}"
        shutil.copytree(good, bad)
        if content is None:
            (bad / file).unlink()
        else:
            (bad / file).write_bytes(content)
        assert missing_file(bad) == file
    assert last_complete_checkpoint(tmp_path / "run") == str(good)


def test_a_run_with_incomplete_checkpoints_only_is_not_overwritten(tmp_path):
    resumable(tmp_path, max_steps=4, save_only_model=True, save_total_limit=None).train()
    with pytest.raises(ValueError, match=r"optimizer\.pt"):
        resumable(tmp_path).train(resume_from_checkpoint=True)
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-4"}


class WorseAndWorse(EoMTTrainer):
    """Its best checkpoint is the first one, of step 2."""

    def __init__(self, folder, limit: int):
        options = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2}
        options |= {"load_best_model_at_end": True, "metric_for_best_model": "loss", "save_total_limit": limit}
        args = tiny_arguments(folder, max_steps=12, **options)
        super().__init__(tiny_model(), args, train_dataset=Samples(), eval_dataset=Samples(2))

    def evaluate(self, *args, **kwargs):
        return {"eval_loss": float(self.state.global_step)}


def test_the_best_checkpoint_has_its_final_path_and_is_loaded_unmasked(tmp_path):
    """Also after the folder of the finished run was moved."""
    trainer = WorseAndWorse(tmp_path / "run", limit=2)
    trainer.train()
    assert trainer.state.best_model_checkpoint == str(tmp_path / "run" / "checkpoint-2")
    assert {path.name for path in (tmp_path / "run").glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-12"}
    moved = WorseAndWorse((tmp_path / "run").rename(tmp_path / "moved"), limit=2)
    moved.train(resume_from_checkpoint=True)
    best = str(tmp_path / "moved" / "checkpoint-2")
    assert moved.state.best_model_checkpoint == best
    loaded = EoMTForUniversalSegmentation.from_pretrained(best)
    assert loaded.attn_mask_probs.tolist() == [1, 1]  # before annealing
    for model in (trainer.model, moved.model):
        assert model.attn_mask_probs.tolist() == [0, 0]  # as in evaluation
        assert torch.equal(model.query.weight, loaded.query.weight)


def test_an_interrupted_run_keeps_its_last_checkpoint_beside_the_best(tmp_path):
    trainer = WorseAndWorse(tmp_path, limit=1)
    trainer.add_callback(InStep(4, lambda: signal.raise_signal(signal.SIGTERM)))
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-5"}


def test_the_first_log_of_a_resumed_run_covers_all_of_its_steps(tmp_path):
    """A checkpoint between two logs holds the sums since the last one."""
    options = {"max_steps": 10, "logging_steps": 4}
    resumable(tmp_path / "uninterrupted", **options, save_steps=3, save_total_limit=None).train()
    shutil.copytree(tmp_path / "uninterrupted", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "checkpoint-9")
    for step, name in ((6, "cut"), (9, "uninterrupted")):
        state = json.loads((tmp_path / name / f"checkpoint-{step}" / "trainer_state.json").read_text())
        assert max(row["step"] for row in state["log_history"]) < step
    shutil.rmtree(tmp_path / "cut" / "checkpoint-10", ignore_errors=True)
    resumed = resumable(tmp_path / "cut", **options, save_strategy="no")
    resumed.train(resume_from_checkpoint=True)
    state = json.loads((tmp_path / "uninterrupted" / "checkpoint-9" / "trainer_state.json").read_text())
    expected = {row["step"]: row["loss"] for row in state["log_history"] if "loss" in row}
    assert set(expected) == {4, 8}
    assert {step: loss for step, (loss, *_) in losses(resumed).items()} == expected


@pytest.mark.parametrize("options", [{}, {"ema": 0.9}])
def test_a_finished_run_is_not_trained_further(tmp_path, options):
    """Five steps end in the middle of an epoch of four batches."""
    options |= {"max_steps": 5, "save_steps": 0.5, "logging_steps": 1}
    first = resumable(tmp_path, **options)
    first.train()
    second = resumable(tmp_path, **options)
    second.train(resume_from_checkpoint=True)
    assert second.state.global_step == 5
    for name, value in first.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name]), name
    assert losses(second) == losses(first)
