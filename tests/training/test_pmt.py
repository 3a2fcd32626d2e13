"""PMT in the trainer and in `eomt train`: only the decoder is trained; cached features of the encoder."""

import json
import signal
import threading

import numpy as np
import pytest
import torch

from eomt import PMTForUniversalSegmentation
from eomt.cli import main
from eomt.training import EoMTTrainer
from eomt.training.data import make_shapes
from tests.predicting import write_photos
from tests.training.tiny import TINY_RUN, Samples, tiny_arguments, tiny_model, tiny_pmt


def test_the_trainer_changes_the_decoder_only(tmp_path):
    model = tiny_pmt()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trainer = EoMTTrainer(model, tiny_arguments(tmp_path, learning_rate=1e-3), train_dataset=Samples(8))
    trainer.train()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert not any(name.startswith("encoder.") for name in changed)
    trained = {name for name, parameter in model.named_parameters() if not name.startswith("encoder.")}
    assert trained <= changed
    groups = trainer.optimizer.param_groups
    assert {group["name"] for group in groups} == trained
    assert {group["initial_lr"] for group in groups} == {1e-3}
    assert [group["lr"] for group in groups] == pytest.approx([1e-9] * len(groups))  # the end of the cosine


@pytest.mark.parametrize("option", [{"freeze_backbone": True}, {"lora": 2}])
def test_options_for_the_backbone_are_refused(option, tmp_path):
    with pytest.raises(ValueError, match="frozen"):
        EoMTTrainer(tiny_pmt(), tiny_arguments(tmp_path, **option), train_dataset=Samples(8))


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return make_shapes(tmp_path_factory.mktemp("shapes"), train=4, val=2, size=(40, 60))


@pytest.fixture(scope="module")
def trained(shapes, tmp_path_factory):
    """The folder of a run of `eomt train --architecture pmt`, and its backbone."""
    root = tmp_path_factory.mktemp("pmt")
    backbone = tiny_pmt()
    backbone.save_pretrained(root / "backbone")
    command = f"train --architecture pmt --data {shapes} --backbone-weights {root / 'backbone'} {TINY_RUN} "
    command += "--backbone vit_small_patch14_reg4_dinov2 --image-size 32 --max-steps 2 --use-cpu"
    assert main([*command.split(), "--output", str(root / "run")]) == 0
    return root / "run", backbone.encoder


def test_the_command_trains_predicts_and_evaluates(trained, shapes, tmp_path):
    folder, backbone = trained
    model = PMTForUniversalSegmentation.from_pretrained(folder)
    for name, tensor in backbone.state_dict().items():
        assert torch.equal(model.encoder.state_dict()[name], tensor), name
    assert "frozen" in (folder / "README.md").read_text()
    assert main(f"evaluate {folder} --data {shapes} --workers 0 --json --device cpu".split()) == 0
    photos = write_photos(tmp_path / "photos")
    assert main(f"predict {photos} --model {folder} --output {tmp_path / 'out'} --workers 0 --device cpu".split()) == 0
    assert json.loads((folder / "results.json").read_text())["eval_pq"] >= 0


@pytest.mark.parametrize("options", [
    "--architecture pmt --backbone-weights scratch", "--architecture pmt --step 1",
    "--architecture eomt --recipe coco_panoptic_pmt_small_640_dinov3",
])  # fmt: skip
def test_contradictory_options_are_refused(options, shapes, tmp_path, capsys):
    command = f"train --data {shapes} --task panoptic --output {tmp_path / 'run'} --use-cpu {options}"
    assert main(command.split()) == 2
    assert "pmt" in capsys.readouterr().err


# --- cached features ------------------------------------------------------------------------------------------------


def cached_trainer(folder, cache, model=None, images=4, **options):
    options = {"max_steps": 4, "seed": 3, **options}
    args = tiny_arguments(folder, cache_features=cache and str(cache), cached_crops=2, **options)
    return EoMTTrainer(model or tiny_pmt(), args, train_dataset=Samples(images))


def test_cached_features_equal_the_encoders(tmp_path):
    trainer = cached_trainer(tmp_path / "run", tmp_path / "cache")
    calls = []
    trainer.model.encoder.layers[0].register_forward_hook(lambda *_: calls.append(1))
    (batch, *_) = trainer.get_train_dataloader()
    assert len(calls) == 2  # four images at once, for two crops
    levels = trainer.model.encoder(batch["pixel_values"], [0, 1, 2], (4, 4))
    torch.testing.assert_close(batch["encoder_levels"].float(), torch.stack(levels, 1), rtol=2e-3, atol=2e-3)
    calls.clear()
    trainer.train()
    assert not calls


def test_training_with_cached_features_has_the_same_loss(tmp_path):
    """The first epoch has crop 0, which is the crop of the first epoch without a cache."""
    losses = []
    for name, cache in (("without", None), ("written", tmp_path / "cache"), ("read", tmp_path / "cache")):
        trainer = cached_trainer(tmp_path / name, cache, max_steps=2)
        trainer.train()
        losses.append([row["loss"] for row in trainer.state.log_history if "loss" in row])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert losses[1] == losses[2]


def test_features_of_a_killed_run_are_completed(tmp_path):
    for name in ("complete", "partial"):
        cached_trainer(tmp_path / "run", tmp_path / name).get_train_dataloader()
    np.lib.format.open_memmap(tmp_path / "partial" / "levels.npy", "r+")[1] = 0
    (tmp_path / "partial" / "crops.npy").unlink()
    (tmp_path / "partial" / "encoder.json").unlink()
    cached_trainer(tmp_path / "run", tmp_path / "partial").get_train_dataloader()
    for file in ("levels.npy", "crops.npy", "encoder.json"):
        assert (tmp_path / "partial" / file).read_bytes() == (tmp_path / "complete" / file).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["complete", "partial", "run"]


def test_ctrl_c_leaves_no_features(tmp_path):
    trainer = cached_trainer(tmp_path / "run", tmp_path / "cache")
    trainer.model.encoder.layers[0].register_forward_hook(lambda *_: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert not [path.name for path in (tmp_path / "cache").iterdir() if path.name != "lock"]


def test_a_second_run_waits_for_the_first_to_write(tmp_path):
    first, second = (cached_trainer(tmp_path / name, tmp_path / "cache") for name in ("one", "two"))
    threads, calls = [], []

    def start_second(*_):
        if not threads:
            threads.append(threading.Thread(target=second.get_train_dataloader))
            threads[0].start()

    first.model.encoder.layers[0].register_forward_hook(start_second)
    second.model.encoder.layers[0].register_forward_hook(lambda *_: calls.append(1))
    first.get_train_dataloader()
    threads[0].join(timeout=60)
    assert not threads[0].is_alive()
    assert not calls


@pytest.mark.parametrize("other", ["encoder", "images", "crops", "pixels", "patch", "normalization", "damaged"])
def test_a_cache_of_other_features_is_refused(other, tmp_path):
    cached_trainer(tmp_path / "run", tmp_path / "cache").get_train_dataloader()
    model = tiny_pmt(seed=int(other == "encoder"))
    if other == "patch":
        model.resize(32, 16)
    images = 3 if other == "images" else 4
    options = {"seed": 4} if other == "pixels" else {}
    trainer = cached_trainer(tmp_path / "other", tmp_path / "cache", model, images, **options)
    if other == "crops":
        trainer.args.cached_crops = 3
    if other == "normalization":
        trainer.data_collator.image_mean = 0.5
    if other == "damaged":
        (tmp_path / "cache" / "encoder.json").write_text("{")
    with pytest.raises(ValueError, match="cache"):
        next(iter(trainer.get_train_dataloader()))


def test_features_of_a_trained_backbone_are_not_cached(tmp_path):
    with pytest.raises(ValueError, match="pmt"):
        cached_trainer(tmp_path, tmp_path / "cache", tiny_model()).get_train_dataloader()
