"""LoRA, the average of the weights, the best weights, early stopping and a time budget, on a tiny model."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file

from eomt import EoMTForUniversalSegmentation
from eomt.training import EoMTTrainer
from eomt.training.callbacks.averaging import AveragingCallback
from eomt.training.lora import is_lora, merged_state_dict
from tests.training.tiny import SIZE, Samples, tiny_arguments, tiny_model


def trainer_of(folder, model=None, evaluated=(), **options) -> EoMTTrainer:
    """A trainer whose evaluations give PQ `evaluated`, one after the other."""
    model, args = model or tiny_model(), tiny_arguments(folder, **options)
    held_out = Samples(1) if args.eval_strategy != "no" else None
    trainer = EoMTTrainer(model, args, train_dataset=Samples(8), eval_dataset=held_out)
    scores = iter(evaluated)

    def evaluate(*args, **kwargs):
        metrics = {"eval_pq": next(scores)}
        trainer.log(metrics)
        trainer.callback_handler.on_evaluate(trainer.args, trainer.state, trainer.control, metrics)
        return metrics

    if evaluated:
        trainer.evaluate = evaluate
    return trainer


def test_lora_trains_differences_and_heads_and_saves_a_plain_model(tmp_path):
    pytest.importorskip("peft")
    trainer = trainer_of(tmp_path, lora=2, learning_rate=1e-2)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    changed = {name for name, p in trainer.model.named_parameters() if not torch.equal(p, before[name])}
    backbone = ("embeddings.", "layers.", "layernorm.")
    assert changed == {n for n in before if is_lora(n) or not n.startswith(backbone)}
    assert sum(is_lora(name) for name in changed) == 2 * 3 * 6  # A and B of three blocks' six matrices
    rates = {g["name"]: g["lr"] for g in trainer.optimizer.param_groups}
    assert len(set(rates.values())) == 1  # no decay from block to block: all of it is new
    trainer.save_model(tmp_path / "model")
    plain = EoMTForUniversalSegmentation.from_pretrained(tmp_path / "model").eval()
    assert set(plain.state_dict()) == set(tiny_model().state_dict())
    pixels = torch.rand(1, 3, SIZE, SIZE)
    with torch.no_grad():
        expected = trainer.model.eval()(pixels).masks_queries_logits
        torch.testing.assert_close(plain(pixels).masks_queries_logits, expected, rtol=1e-4, atol=1e-4)
    state = merged_state_dict(trainer.model)
    assert not torch.equal(state["layers.0.mlp.fc1.weight"], before["layers.0.mlp.fc1.base_layer.weight"])


def test_average_follows_the_weights(tmp_path):
    trainer = trainer_of(tmp_path, ema=0.5, max_steps=3, learning_rate=1e-2)
    seen = []
    real = AveragingCallback.on_step_end

    def noted(self, args, state, control, **kwargs):
        seen.append(trainer.model.query.weight.detach().clone())
        return real(self, args, state, control, **kwargs)

    start = trainer.model.query.weight.detach().clone()
    trainer.averaging.on_step_end = noted.__get__(trainer.averaging)
    trainer.train()
    expected = start
    for step, weight in enumerate(seen, 1):
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * weight
    torch.testing.assert_close(trainer.model.query.weight.detach(), expected)
    assert not torch.equal(expected, seen[-1])


@pytest.mark.parametrize("options", [{"ema": 0.9}, {"lora": 2}])
def test_a_resumed_run_is_as_one_that_was_never_interrupted(tmp_path, options):
    if "lora" in options:
        pytest.importorskip("peft")
    options |= {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "learning_rate": 1e-2}
    whole = trainer_of(tmp_path / "whole", **options)
    whole.train()
    checkpoint = tmp_path / "whole" / "checkpoint-2"
    resumed = trainer_of(tmp_path / "resumed", **options)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    for trainer in (whole, resumed):
        trainer.save_model(trainer.args.output_dir)
    files = [tmp_path / name / "model.safetensors" for name in ("whole", "resumed")]
    first, second = map(load_file, files)
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=1e-5, atol=1e-6, msg=name)
    if "ema" in options:
        (checkpoint / "average.safetensors").unlink()
        with pytest.raises(ValueError, match=r"no average\.safetensors"):
            trainer_of(tmp_path / "third", **options).train(resume_from_checkpoint=str(checkpoint))


def test_evaluation_sees_the_average(tmp_path):
    trainer = trainer_of(tmp_path, ema=0.9, max_steps=2, learning_rate=1e-2, eval_strategy="steps", eval_steps=2)
    seen = {}

    class Note(type(trainer.averaging).__mro__[1]):
        def on_evaluate(self, args, state, control, **kwargs):
            seen["weight"] = trainer.model.query.weight.detach().clone()

    trainer.add_callback(Note())
    trainer.train()
    assert torch.equal(seen["weight"], trainer.averaging.average["query.weight"])


def test_best_weights_are_kept_beside_the_last(tmp_path):
    trainer = trainer_of(
        tmp_path, evaluated=[0.2, 0.5, 0.5, 0.1], max_steps=4, eval_strategy="steps", eval_steps=1, save_best=True
    )
    trainer.train()
    assert json.loads((tmp_path / "best" / "results.json").read_text())["eval_pq"] == 0.5
    best = EoMTForUniversalSegmentation.from_pretrained(tmp_path / "best")
    assert not torch.equal(best.query.weight, trainer.model.query.weight)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".best")] == []


def test_best_weights_are_saved_as_they_were_evaluated(tmp_path):
    options = {"eval_strategy": "steps", "eval_steps": 1, "save_best": True, "masking": "annealed", "logging_steps": 1}
    trainer = trainer_of(tmp_path, evaluated=[0.5, 0.1, 0.1, 0.1, 0.1, 0.1], max_steps=6, **options)
    trainer.train()
    assert trainer.state.log_history[0]["attn_mask_prob_1"] == 1  # masked in training when the best was saved
    best = EoMTForUniversalSegmentation.from_pretrained(tmp_path / "best")
    assert not best.attn_mask_probs.any()


@pytest.mark.parametrize(
    ("masking", "stops_at"),
    [
        ("never", 4),  # best at 1; 2, 3, 4 are no better
        ("annealed", 8),  # masks are annealed away at step 5 of 6·… = 5 sixths of the run: 6, 7, 8 count
    ],
)
def test_early_stopping_waits_for_the_masks(tmp_path, masking, stops_at):
    trainer = trainer_of(
        tmp_path,
        evaluated=[0.5] + [0.1] * 20,
        max_steps=12,
        masking=masking,
        eval_strategy="steps",
        eval_steps=1,
        early_stopping=3,
        annealing_start_steps=[1, 3] if masking == "annealed" else None,
        annealing_end_steps=[3, 5] if masking == "annealed" else None,
    )
    trainer.train()
    assert trainer.state.global_step == stops_at
    assert not (tmp_path / "best").exists()


def test_time_budget_lays_the_run_out_for_the_steps_that_fit(tmp_path, capsys, monkeypatch):
    import eomt.training.time_budget as budget

    monkeypatch.setattr(budget, "_seconds_a_step", lambda trainer: 10.0)
    options = {"max_steps": -1, "time_budget": 2.0, "save_strategy": "steps", "save_steps": 5}
    trainer = trainer_of(tmp_path, **options)
    trainer.train()
    assert trainer.state.global_step == trainer.state.max_steps == 11  # 120 s, 10.5 s a step
    assert "11 steps fit into 2 minutes" in capsys.readouterr().out
    assert trainer.lr_scheduler.get_last_lr()[0] == 0
    monkeypatch.setattr(budget, "_seconds_a_step", lambda trainer: 1.0)  # a quieter machine: still the same run
    resumed = trainer_of(tmp_path, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert resumed.state.max_steps == 11
    monkeypatch.setattr(budget, "_seconds_a_step", lambda trainer: 60.0)
    with pytest.raises(ValueError, match="time_budget is 2 minutes; ten steps"):
        trainer_of(tmp_path / "short", **options).train()


class Selectable(Samples):
    def select(self, places):
        return Selectable(len(places))


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize(
    ("eval_steps", "images", "steps"),  # an image takes 1 s; a step 20 s, of 420 s
    [
        (0.1, (10, 19), 16),  # ten evaluations of 10 s
        (1, (10, 19), 14),  # 30 s a step
        (5, (10, 19), 19),  # 22 s a step
        (0.1, (1, 2), 20),
    ],
)
def test_time_budget_takes_every_evaluation_off(tmp_path, monkeypatch, processes, eval_steps, images, steps):
    import eomt.training.time_budget as budget

    trainer = trainer_of(tmp_path, time_budget=7.0, eval_strategy="steps", eval_steps=eval_steps)
    trainer.eval_dataset = Selectable(images[processes - 1])
    clock = [0.0]

    def stream(dataset, intermediate):
        clock[0] += math.ceil(len(dataset) / processes)

    monkeypatch.setattr(budget, "_seconds_a_step", lambda trainer: 20.0)
    monkeypatch.setattr(budget, "MARGIN", 1.0)
    monkeypatch.setattr(budget.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(trainer, "_stream", stream)
    monkeypatch.setattr(type(trainer.args), "world_size", processes)
    assert budget.steps_that_fit(trainer, 7.0) == steps


@pytest.mark.parametrize("by", ["fsdp", "deepspeed"])
@pytest.mark.parametrize(("options", "instead"), [({"ema": 0.9}, "leave ema out"), ({"lora": 2}, "freeze_backbone")])
def test_sharded_weights_are_neither_averaged_nor_merged(tmp_path, monkeypatch, by, options, instead):
    real = EoMTTrainer.create_accelerator_and_postprocess

    def sharded(self):
        real(self)
        setattr(self, f"is_{by}_enabled", True)

    monkeypatch.setattr(EoMTTrainer, "create_accelerator_and_postprocess", sharded)
    with pytest.raises(ValueError, match=f"(?i){next(iter(options))} does not work with {by}; .*{instead}"):
        trainer_of(tmp_path, **options)


def test_timing_steps_learns_nothing(tmp_path):
    from eomt.training.time_budget import _seconds_a_step

    trainer = trainer_of(tmp_path)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    assert _seconds_a_step(trainer) > 0
    trainer.model.set_attn_mask_probs(before["attn_mask_probs"].tolist())
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())
    assert all(p.grad is None for p in trainer.model.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ema": 1.0}, "ema is 1.0"),
        ({"lora": 0}, "lora is 0"),
        ({"lora": 4, "freeze_backbone": True}, "lora and freeze_backbone"),
        ({"time_budget": -1.0}, "time_budget is -1.0"),
        ({"time_budget": 1.0, "eval_strategy": "epoch"}, "time_budget and eval_strategy epoch"),
        ({"early_stopping": 2}, "eval_strategy is no"),
    ],
)
def test_values_that_cannot_be(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        tiny_arguments(tmp_path, **options)
