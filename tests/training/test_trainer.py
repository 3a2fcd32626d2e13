"""`EoMTTrainer` on a tiny model: schedule, logs, accumulation, failures, files."""

import signal

import pytest
import torch

from eomt.configuration import EoMTConfig
from eomt.image_processing import EoMTImageProcessor
from eomt.modeling_eomt import EoMTForUniversalSegmentation
from eomt.training import (
    EoMTTrainer,
    MaskAnnealingCallback,
    annealing_steps,
    layerwise_lr_groups,
    mask_annealing_probability,
)
from eomt.training.optimizer import is_lora, is_pretrained
from tests.training.runs import fixed_points
from tests.training.tiny import SIZE, Broken, Samples, tiny_arguments, tiny_model

TINY_DINOV3 = {"image_size": SIZE, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_blocks": 1}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    args = tiny_arguments(folder, max_steps=12, save_strategy="steps", save_steps=6, learning_rate=1e-3)
    trainer = EoMTTrainer(tiny_model(), args, train_dataset=Samples(), eval_dataset=Samples(4))
    before = {name: value.clone() for name, value in trainer.model.named_parameters()}
    trainer.train()
    trainer.evaluate()
    trainer.create_model_card()
    return trainer, before, folder


def logs_of(trainer):
    return [row for row in trainer.state.log_history if "loss" in row]


def test_logs_have_every_part_rate_and_probability(run):
    trainer, _, _ = run
    logs = logs_of(trainer)
    parts = [f"loss_{part}{block}" for part in ("mask", "dice", "cross_entropy") for block in ("", "_0", "_1")]
    for row in logs:
        assert row["loss"] == pytest.approx(sum(row[part] for part in parts), rel=1e-5)
    # step t (from 0) has the rate of t: the heads warm up in step 0, the backbone in step 1
    for t, row in enumerate(logs):
        head = 0 if t == 0 else 1e-3 * (1 - (t - 1) / 11) ** 0.9
        block = 0 if t <= 1 else 1e-3 * (1 - (t - 2) / 10) ** 0.9
        assert row["learning_rate"] == pytest.approx(head)
        assert row["learning_rate_last_block"] == pytest.approx(block)
        assert row["learning_rate_first_block"] == pytest.approx(block * 0.8**2)
        expected = [mask_annealing_probability(t + 1, s, e) for s, e in zip(*annealing_steps(12, 2))]
        assert [row["attn_mask_prob_0"], row["attn_mask_prob_1"]] == pytest.approx(expected)
    assert trainer.model.attn_mask_probs.tolist() == [0, 0]
    steps = [row["step"] for row in trainer.state.log_history if "attn_mask_prob_0" in row]
    assert steps == list(range(1, 13))  # not in the entries of the evaluation and the summary


def test_every_parameter_learns_and_decays(run):
    trainer, before, _ = run
    for name, value in trainer.model.named_parameters():
        assert not torch.equal(value, before[name]), name
    assert {group["weight_decay"] for group in trainer.optimizer.param_groups} == {0.05}


def test_checkpoints_and_card_are_written(run):
    trainer, _, folder = run
    assert {path.name for path in folder.iterdir()} == {"checkpoint-6", "checkpoint-12", "README.md"}
    loaded = EoMTForUniversalSegmentation.from_pretrained(folder / "checkpoint-12")
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name
    card = (folder / "README.md").read_text(encoding="utf-8")
    final = next(row for row in reversed(trainer.state.log_history) if "eval_loss" in row)
    assert f"| loss | {final['eval_loss']:.4g} |" in card
    assert "annealed; 2–4, 8–10" in card


def test_evaluation_is_unmasked_and_restores_the_masks(tmp_path):
    trainer = EoMTTrainer(tiny_model(), tiny_arguments(tmp_path), train_dataset=Samples(), eval_dataset=Samples(2))
    trainer.model.set_attn_mask_probs([1.0, 0.5])
    seen = []
    trainer.model.register_forward_pre_hook(lambda module, args: seen.append(module.attn_mask_probs.tolist()))
    trainer.evaluate()
    assert seen == [[0.0, 0.0]] * len(seen)
    assert seen
    assert trainer.model.attn_mask_probs.tolist() == [1.0, 0.5]


@pytest.mark.parametrize(
    ("masking", "training", "left", "predictions"),
    [("always", [1, 1], [1, 1], 3), ("switched-off", [1, 1], [0, 0], 3), ("never", [0, 0], [0, 0], 1)],
)
def test_masking_modes_decide_masks_and_predictions(tmp_path, masking, training, left, predictions):
    args = tiny_arguments(tmp_path, max_steps=3, masking=masking)
    trainer = EoMTTrainer(tiny_model(), args, train_dataset=Samples())
    seen = []
    trainer.model.register_forward_pre_hook(lambda module, args: seen.append(module.attn_mask_probs.tolist()))
    trainer.train()
    assert seen == [training] * 3
    assert trainer.model.attn_mask_probs.tolist() == left
    assert sum(key.startswith("loss_mask") for key in logs_of(trainer)[0]) == predictions
    trainer.save_model(tmp_path / "saved")
    loaded = EoMTForUniversalSegmentation.from_pretrained(tmp_path / "saved")
    assert loaded.config.masked_inference == loaded.infers_with_masks == (masking == "always")


@pytest.mark.parametrize("added_later", [False, True])
def test_an_annealing_callback_replaces_the_default(tmp_path, added_later):
    own, args = MaskAnnealingCallback([0, 1], [2, 3], power=1.0), tiny_arguments(tmp_path, max_steps=3)
    callbacks = [] if added_later else [own]
    trainer = EoMTTrainer(tiny_model(), args, train_dataset=Samples(), callbacks=callbacks)
    if added_later:
        trainer.add_callback(own)
    seen = []
    trainer.model.register_forward_pre_hook(lambda module, args: seen.append(module.attn_mask_probs.tolist()))
    trainer.train()
    assert seen == [[1.0, 1.0], [0.5, 1.0], [0.0, 0.5]]
    assert [row["step"] for row in trainer.state.log_history if "attn_mask_prob_0" in row] == [1, 2, 3]
    logged = [[row["attn_mask_prob_0"], row["attn_mask_prob_1"]] for row in logs_of(trainer)]
    assert logged == [[0.5, 1.0], [0.0, 0.5], [0.0, 0.0]]


def test_accumulated_batches_equal_one_batch(tmp_path, monkeypatch):
    """Batches have different numbers of targets, so a mean over the accumulated batches would differ."""
    monkeypatch.setattr(torch, "rand", fixed_points)
    results = []
    for device, accumulation in [(4, 1), (1, 4)]:
        options = {"per_device_train_batch_size": device, "gradient_accumulation_steps": accumulation}
        options |= {"masking": "always", "head_warmup_steps": 0, "backbone_warmup_steps": 0}
        args = tiny_arguments(tmp_path, max_steps=2, **options)
        trainer = EoMTTrainer(tiny_model(), args, train_dataset=Samples(noise=0))
        trainer.train()
        results.append((logs_of(trainer), [p.detach() for p in trainer.model.parameters()]))
    (full, full_weights), (parts, parts_weights) = results
    for one, other in zip(full, parts):
        for key in one:
            if key.startswith(("loss", "grad_norm")):
                assert one[key] == pytest.approx(other[key], rel=1e-4), key
    for one, other in zip(full_weights, parts_weights):
        assert torch.allclose(one, other, atol=2e-5)


def test_a_loss_that_is_not_finite_stops_the_run_with_step_and_files(tmp_path):
    args = tiny_arguments(tmp_path, max_steps=8, per_device_train_batch_size=1, num_train_epochs=1)
    trainer = EoMTTrainer(tiny_model(), args, train_dataset=Broken(8, broken=[5]))
    with pytest.raises(ValueError, match=r"nan .*\d .*image5\.png"):
        trainer.train()


@pytest.mark.parametrize("numbers", [[signal.SIGINT], [signal.SIGTERM, signal.SIGTERM]])
def test_an_interrupted_run_saves_and_resumes(tmp_path, numbers):
    """SIGTERM comes twice: from Slurm and from torchrun."""

    def options(folder):
        return tiny_arguments(tmp_path / folder, max_steps=8)

    class Interrupting(Samples):
        accesses = 0

        def __getitem__(self, index):
            self.accesses += 1
            if self.accesses == 8:
                for number in numbers:
                    signal.raise_signal(number)
            return super().__getitem__(index)

    signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored in background jobs of a script
    uninterrupted = EoMTTrainer(tiny_model(), options("uninterrupted"), train_dataset=Samples())
    uninterrupted.train()
    first = EoMTTrainer(tiny_model(), options("cut"), train_dataset=Interrupting())
    with pytest.raises(KeyboardInterrupt):
        first.train()
    step = first.state.global_step
    assert 1 < step < 8
    assert (tmp_path / "cut" / f"checkpoint-{step}").is_dir()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    second = EoMTTrainer(tiny_model(), options("cut"), train_dataset=Samples())
    second.train(resume_from_checkpoint=True)
    assert [row["loss"] for row in logs_of(second)] == [row["loss"] for row in logs_of(uninterrupted)]


def test_a_frozen_backbone_does_not_change(tmp_path):
    model = tiny_model()
    args = tiny_arguments(tmp_path, max_steps=2, freeze_backbone=True, head_warmup_steps=0)
    trainer = EoMTTrainer(model, args, train_dataset=Samples())
    before = {name: value.clone() for name, value in model.named_parameters()}
    trainer.train()
    changed = {name.split(".")[0] for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert changed == {"query", "class_predictor", "mask_head", "upscale_block"}
    assert "learning_rate_last_block" not in logs_of(trainer)[0]


def test_one_overflow_in_fp16_is_skipped_and_many_end_the_run(tmp_path):
    """The scaler of fp16 runs on the CPU here; images of NaN stand for overflows."""
    for broken, steps in (([5], 8), (range(3, 40), 40)):
        args = tiny_arguments(tmp_path, max_steps=steps, per_device_train_batch_size=1, logging_steps=4)
        trainer = EoMTTrainer(tiny_model(), args, train_dataset=Broken(steps, broken))
        trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
        if len(broken) > 1:
            with pytest.raises(ValueError, match="nan"):
                trainer.train()
            continue
        trainer.train()
        assert all(parameter.isfinite().all() for parameter in trainer.model.parameters())
        losses = [row["loss"] for row in logs_of(trainer)]
        assert len(losses) == 2
        assert max(losses) < 1.25 * min(losses)  # the mean is over the steps that were not skipped


def test_position_augmentation_is_off_by_default(tmp_path):
    for asked in (False, True):
        torch.manual_seed(0)
        config = EoMTConfig.for_backbone("vit_small_patch16_dinov3", **TINY_DINOV3, pos_embed_rescale=2.0)
        model = EoMTForUniversalSegmentation(config)
        EoMTTrainer(model, tiny_arguments(tmp_path, rope_augmentation=asked), train_dataset=Samples())
        assert model.config.pos_embed_rescale == (2.0 if asked else None)


class Streamed(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter(Samples())


@pytest.mark.parametrize(("given", "options", "word"), [
    ({"compute_loss_func": lambda outputs, labels, num_items_in_batch=None: outputs["loss"]}, {}, "compute_loss_func"),
    ({"compute_metrics": lambda prediction: {}}, {}, "compute_metrics"),
    ({"train_dataset": Streamed()}, {}, "Streamed"),
    ({"train_dataset": Samples(0)}, {}, "image"),
    ({"model": None, "model_init": lambda: tiny_model()}, {}, "model_init"),
    ({}, {"dataloader_drop_last": True, "per_device_train_batch_size": 16}, "dataloader_drop_last"),
    ({}, {"remove_unused_columns": True}, "remove_unused_columns"),
])  # fmt: skip
def test_arguments_without_effect_are_refused(tmp_path, given, options, word):
    args = tiny_arguments(tmp_path, **options)
    given = {"model": tiny_model(), "train_dataset": Samples()} | given
    with pytest.raises(ValueError, match=word):
        EoMTTrainer(args=args, **given).train()


def test_an_optimizer_can_be_given(tmp_path):
    model = tiny_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    args = tiny_arguments(tmp_path, max_steps=2, head_warmup_steps=0)
    trainer = EoMTTrainer(model, args, train_dataset=Samples(), optimizers=(optimizer, None))
    trainer.train()
    assert trainer.optimizer.optimizer is optimizer
    assert [row["learning_rate"] for row in logs_of(trainer)] == pytest.approx([1e-3, 1e-3 * 0.5**0.9])


def test_a_model_wrapped_by_peft_has_the_same_groups(tmp_path):
    """The same frozen backbone, too."""
    peft = pytest.importorskip("peft")
    plain = {g["name"]: (g["lr"], g["is_backbone"]) for g in layerwise_lr_groups(tiny_model(), 1e-3)}
    config = peft.LoraConfig(target_modules=["q_proj"], bias="all", modules_to_save=["class_predictor"], r=2)
    wrapped = peft.get_peft_model(tiny_model(), config)
    for group in layerwise_lr_groups(wrapped, 1e-3):
        if not is_lora(group["name"]) and "modules_to_save" not in group["name"]:
            assert (group["lr"], group["is_backbone"]) == plain[group["name"].replace(".base_layer", "")]
    trainer = EoMTTrainer(wrapped, tiny_arguments(tmp_path, max_steps=1, freeze_backbone=True), train_dataset=Samples())
    trained = {name for name, parameter in wrapped.named_parameters() if parameter.requires_grad}
    assert trained
    assert all(is_lora(name) or not is_pretrained(name) for name in trained)
    assert "base_model.model.query.weight" not in trained  # peft froze it
    trainer.train()


def test_the_processor_gets_the_task_of_the_model(tmp_path):
    processor = EoMTImageProcessor(task="panoptic", size=SIZE, stuff_label_ids=[1])
    args = tiny_arguments(tmp_path, task="semantic")
    trainer = EoMTTrainer(tiny_model(), args, train_dataset=Samples(), processing_class=processor)
    trainer.save_model(tmp_path / "saved")
    saved = EoMTImageProcessor.from_pretrained(tmp_path / "saved")
    assert trainer.model.config.task == saved.task == "semantic"
    assert (saved.do_split_image, saved.do_pad) == (True, False)


def test_a_diverged_run_warns(tmp_path, caplog):
    trainer = EoMTTrainer(tiny_model(), tiny_arguments(tmp_path), train_dataset=Samples())
    trainer.state.log_history = [{"step": 1, "loss": 20.0}, {"step": 2, "loss": 5e10}]
    with caplog.at_level("WARNING"):
        trainer.callback_handler.on_train_begin(trainer.args, trainer.state, trainer.control)
        trainer.callback_handler.on_train_end(trainer.args, trainer.state, trainer.control)
    assert any("5e+10" in message for message in caplog.messages)


def test_evaluation_without_data_is_refused(tmp_path):
    trainer = EoMTTrainer(tiny_model(), tiny_arguments(tmp_path), train_dataset=Samples())
    with pytest.raises(ValueError, match="eval_dataset"):
        trainer.evaluate()


def test_the_last_incomplete_step_of_an_epoch_is_dropped(tmp_path):
    options = {"max_steps": -1, "num_train_epochs": 2, "gradient_accumulation_steps": 3, "dataloader_drop_last": True}
    args = tiny_arguments(tmp_path, **options)
    trainer = EoMTTrainer(tiny_model(), args, train_dataset=Samples(10))  # 5 batches of 2, 3 of them in a step
    trainer.train()
    assert trainer.state.global_step == 2
