"""LoRA, the average of the weights, the best checkpoint and early stopping."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from eomt import EoMTForUniversalSegmentation, EoMTImageProcessor
from eomt.training import EoMTTrainer, MaskAnnealingCallback
from eomt.training.callbacks import AveragingCallback
from eomt.training.lora import is_lora, merged_state_dict
from tests.training.tiny import SIZE, Samples, tiny_arguments, tiny_model


def trainer_of(folder, model=None, evaluated=(), **options) -> EoMTTrainer:
    """A trainer. Its evaluations have the PQs `evaluated`, one after the other."""
    named = {"metric_for_best_model": "pq"} if evaluated else {}
    model, args = model or tiny_model(), tiny_arguments(folder, **named, **options)
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


class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == self.step


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
    assert len(set(rates.values())) == 1  # no decay from block to block
    trainer.save_model(tmp_path / "model")
    plain = EoMTForUniversalSegmentation.from_pretrained(tmp_path / "model").eval()
    assert set(plain.state_dict()) == set(tiny_model().state_dict())
    pixels = torch.rand(1, 3, SIZE, SIZE)
    with torch.no_grad():
        expected = trainer.model.eval()(pixels).masks_queries_logits
        torch.testing.assert_close(plain(pixels).masks_queries_logits, expected, rtol=1e-4, atol=1e-4)
    state = merged_state_dict(trainer.model)
    assert not torch.equal(state["layers.0.mlp.fc1.weight"], before["layers.0.mlp.fc1.base_layer.weight"])


def test_lora_trains_every_block_with_reentrant_checkpointing(tmp_path):
    pytest.importorskip("peft")
    kwargs = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}
    trainer = trainer_of(tmp_path, lora=2, learning_rate=1e-2, head_warmup_steps=0, max_steps=1, **kwargs)
    trainer.train()
    differences = {n: p for n, p in trainer.model.named_parameters() if "lora_B" in n}
    assert len(differences) == 3 * 6
    assert all(difference.any() for difference in differences.values())


def test_the_average_follows_the_weights(tmp_path):
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
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, options):
    if "lora" in options:
        pytest.importorskip("peft")
    options |= {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "learning_rate": 1e-2}
    uninterrupted = trainer_of(tmp_path / "uninterrupted", **options)
    uninterrupted.train()
    resumed = trainer_of(tmp_path / "resumed", **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "uninterrupted" / "checkpoint-2"))
    states = []
    for trainer in (uninterrupted, resumed):
        trainer.save_model(trainer.args.output_dir)
        states.append(load_file(f"{trainer.args.output_dir}/model.safetensors"))
    for name in states[0]:
        torch.testing.assert_close(states[0][name], states[1][name], rtol=1e-5, atol=1e-6, msg=name)


def test_the_average_is_evaluated(tmp_path):
    trainer = trainer_of(tmp_path, ema=0.9, max_steps=2, learning_rate=1e-2, eval_strategy="steps", eval_steps=2)
    seen = []

    class Record(TrainerCallback):
        def on_evaluate(self, args, state, control, **kwargs):
            seen.append(trainer.model.query.weight.detach().clone())

    trainer.add_callback(Record())
    trainer.train()
    assert torch.equal(seen[-1], trainer.averaging.average["query.weight"])


@pytest.mark.parametrize("save_only_model", [False, True])
def test_the_best_average_becomes_the_model(tmp_path, save_only_model):
    """Without masks, as it was evaluated."""
    options = {"eval_strategy": "steps", "eval_steps": 1, "early_stopping": 9, "ema": 0.5, "learning_rate": 1e-2}
    scores = [0.2, 0.5, 0.5, 0.1]
    trainer = trainer_of(tmp_path, evaluated=scores, max_steps=4, save_only_model=save_only_model, **options)
    trainer.train()
    average = load_file(tmp_path / "checkpoint-2" / "average.safetensors")["query.weight"]
    weights = load_file(tmp_path / "checkpoint-2" / "model.safetensors")["query.weight"]
    assert torch.equal(average, trainer.model.query.weight)
    assert not torch.equal(average, weights)
    assert not trainer.model.attn_mask_probs.any()


def test_the_average_of_half_precision_weights_moves(tmp_path):
    """In bfloat16 a thousandth of the difference would be rounded to zero."""
    model = tiny_model()
    model.query.weight.data = model.query.weight.data.bfloat16()
    average = AveragingCallback(0.999)
    state = SimpleNamespace(global_step=0)
    average.on_train_begin(None, state, None, model=model)
    model.query.weight.data.fill_(1.0)
    average.average["query.weight"].fill_(0.25)
    for state.global_step in range(10_000, 11_000):
        average.on_step_end(None, state, None)
    expected = 1 - 0.75 * 0.999**1000
    assert average.average["query.weight"].mean().item() == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(("masking", "stops_at"), [
    ("never", 4),  # best at 1; 2, 3, 4 are not better
    ("annealed", 8),  # annealing ends at step 5: 6, 7, 8 count
])  # fmt: skip
def test_early_stopping_waits_for_the_end_of_annealing(tmp_path, masking, stops_at):
    options = {"eval_strategy": "steps", "eval_steps": 1, "early_stopping": 3, "masking": masking}
    trainer = trainer_of(tmp_path, evaluated=[0.5] + [0.1] * 20, max_steps=12, **options)
    if masking == "annealed":
        trainer.add_callback(MaskAnnealingCallback([1, 3], [3, 5]))
    trainer.train()
    assert trainer.state.global_step == stops_at
    best = load_file(tmp_path / "checkpoint-1" / "model.safetensors")
    assert torch.equal(best["query.weight"], trainer.model.query.weight)


def test_early_stopping_counts_evaluations_before_a_resume(tmp_path):
    options = {"masking": "never", "eval_strategy": "steps", "eval_steps": 1, "early_stopping": 3, "max_steps": 9}
    cut = trainer_of(tmp_path, evaluated=[0.5, 0.1, 0.1], **options)
    cut.add_callback(StopAt(3))
    cut.train()
    resumed = trainer_of(tmp_path, evaluated=[0.1] * 9, **options)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 4


def test_a_run_that_stopped_early_is_not_trained_further(tmp_path):
    options = {"masking": "never", "eval_strategy": "steps", "eval_steps": 1, "early_stopping": 2, "max_steps": 9}
    trainer_of(tmp_path, evaluated=[0.5, 0.1, 0.1], **options).train()
    resumed = trainer_of(tmp_path, evaluated=[0.9] * 9, **options)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 3
    best = load_file(tmp_path / "checkpoint-1" / "model.safetensors")
    assert torch.equal(best["query.weight"], resumed.model.query.weight)


def test_early_stopping_does_not_count_evaluations_without_a_result(tmp_path):
    """NaN: no image had ground truth or predictions."""
    options = {"masking": "never", "eval_strategy": "steps", "eval_steps": 1, "early_stopping": 2, "max_steps": 9}
    trainer = trainer_of(tmp_path, evaluated=[math.nan, 0.5, 0.1, math.nan, 0.1, 0.1], **options)
    trainer.train()
    assert trainer.state.global_step == 5


def test_an_evaluation_without_objects_has_no_result(tmp_path):
    """AP is −1 there, which is higher than no result."""
    nothing = {name: np.zeros(0) for name in ("labels", "iscrowd", "area")} | {"masks": []}
    image = torch.zeros(3, SIZE, SIZE, dtype=torch.uint8)
    sample = {"image": image, "reference": nothing, "image_id": 0, "file_name": "empty.png"}
    trainer = EoMTTrainer(
        tiny_model(),
        tiny_arguments(tmp_path, task="instance"),
        eval_dataset=[sample],
        processing_class=EoMTImageProcessor(task="instance", size=SIZE),
    )
    assert math.isnan(trainer.evaluate()["eval_ap"])


def test_the_metric_for_the_best_checkpoint(tmp_path):
    """The loss for training samples; for several sets it must be given."""
    options = {"eval_strategy": "steps", "eval_steps": 1, "early_stopping": 1, "max_steps": 2}
    args = tiny_arguments(tmp_path, **options)
    trainer = EoMTTrainer(tiny_model(), args, train_dataset=Samples(), eval_dataset=Samples(1))
    assert (trainer.args.metric_for_best_model, trainer.args.greater_is_better) == ("loss", False)
    sets = {"near": Samples(1), "far": Samples(1)}
    with pytest.raises(ValueError, match="near, far"):
        EoMTTrainer(tiny_model(), tiny_arguments(tmp_path, **options), train_dataset=Samples(), eval_dataset=sets)
    named = tiny_arguments(tmp_path, **options, metric_for_best_model="near_loss")
    trainer = EoMTTrainer(tiny_model(), named, train_dataset=Samples(), eval_dataset=sets)
    trainer.train()
    assert trainer.state.best_metric == min(
        row["eval_near_loss"] for row in trainer.state.log_history if "eval_near_loss" in row
    )


@pytest.mark.parametrize("by", ["fsdp", "deepspeed"])
@pytest.mark.parametrize("options", [{"ema": 0.9}, {"lora": 2}])
def test_average_and_lora_are_refused_with_sharded_weights(tmp_path, monkeypatch, by, options):
    real = EoMTTrainer.create_accelerator_and_postprocess

    def sharded(self):
        real(self)
        setattr(self, f"is_{by}_enabled", True)

    monkeypatch.setattr(EoMTTrainer, "create_accelerator_and_postprocess", sharded)
    with pytest.raises(ValueError, match=f"(?i){next(iter(options))} .* {by}"):
        trainer_of(tmp_path, **options)
