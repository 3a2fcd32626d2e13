"""Mask annealing: steps and probabilities, in the stock Trainer, too."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import Trainer, TrainingArguments

from eomt.training import EoMTDataCollator, MaskAnnealingCallback, annealing_steps, mask_annealing_probability
from tests.models import GOLDEN
from tests.training.tiny import Samples, tiny_model


def test_one_block_is_annealed_in_the_middle():
    assert annealing_steps(600, 1) == ([250], [350])


@given(st.integers(1, 10**6), st.integers(1, 40))
def test_annealing_steps_are_ordered_and_end_before_the_last_step(total, blocks):
    starts, ends = annealing_steps(total, blocks)
    assert starts == sorted(starts)
    assert len(starts) == len(ends) == blocks
    assert all(isinstance(step, int) for step in starts + ends)
    assert all(0 <= start <= end < total for start, end in zip(starts, ends))
    if blocks > 1 and total > 30:  # within rounding of the formula
        for i, (start, end) in enumerate(zip(starts, ends)):
            assert start == pytest.approx(total / 6 + i * (total / 2) / (blocks - 1), abs=3)
            assert end == pytest.approx(start + total / 6, abs=1)


def test_probabilities_equal_the_authors():
    for case in json.loads((GOLDEN / "annealing.json").read_text()):
        for step, expected in case["prob_at_step"].items():
            found = mask_annealing_probability(int(step), case["start"], case["end"], case["power"])
            assert found == pytest.approx(expected, abs=1e-12), (case, step)


def run(tmp_path, callback, resume=None, **arguments):
    """A run of the stock Trainer, and the probabilities of each training batch."""
    model, seen = tiny_model(), []
    model.register_forward_pre_hook(lambda module, inputs: seen.append(module.attn_mask_probs.tolist()))
    options = {"per_device_train_batch_size": 2, "logging_steps": 3, "report_to": "none", "disable_tqdm": True}
    options |= {"max_steps": 12, "use_cpu": True, "remove_unused_columns": False} | arguments
    args = TrainingArguments(tmp_path, **options)
    trainer = Trainer(model, args, EoMTDataCollator(), train_dataset=Samples(8), callbacks=[callback])
    trainer.train(resume_from_checkpoint=resume)
    return trainer, seen


def expected(steps):
    pairs = list(zip(*annealing_steps(12, 2)))
    probabilities = [[mask_annealing_probability(t, start, end) for start, end in pairs] for t in steps]
    return torch.tensor(probabilities).tolist()  # in the model's float32


def test_batch_t_of_the_stock_trainer_has_the_probabilities_of_step_t(tmp_path):
    trainer, seen = run(tmp_path, MaskAnnealingCallback(), save_strategy="no")
    assert seen == expected(range(12))
    assert any(0 < p < 1 for probs in seen for p in probs)
    assert trainer.model.attn_mask_probs.tolist() == [0.0, 0.0]
    logs = [log for log in trainer.state.log_history if "loss" in log]
    logged = torch.tensor([[log["attn_mask_prob_0"], log["attn_mask_prob_1"]] for log in logs]).tolist()
    assert logged == expected([3, 6, 9, 12])


def test_accumulated_batches_have_the_probabilities_of_their_step(tmp_path):
    _, seen = run(tmp_path, MaskAnnealingCallback(), save_strategy="no", gradient_accumulation_steps=2)
    assert seen == [probs for probs in expected(range(12)) for _ in range(2)]


def test_resume_continues_the_schedule(tmp_path):
    run(tmp_path, MaskAnnealingCallback(), save_steps=5)
    _, seen = run(tmp_path, MaskAnnealingCallback(), resume=str(tmp_path / "checkpoint-5"))
    assert seen == expected(range(5, 12))


def test_steps_that_end_before_they_start_are_refused():
    with pytest.raises(ValueError, match=r"4 .* 2"):
        MaskAnnealingCallback([0, 4], [4, 2])
