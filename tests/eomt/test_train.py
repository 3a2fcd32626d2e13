"""`eomt train` on own data: three tasks, options, files, errors."""

import json
import shutil

import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForUniversalSegmentation

from eomt.cli import main
from eomt.training import EoMTTrainer
from eomt.training.data.shapes import CATEGORIES, STUFF
from tests.eomt.trained import OPTIONS, train
from tests.training.tiny import TINY_RUN


def test_the_auto_classes_load_a_run(runs):
    folder = runs / "panoptic"
    printed = (folder / "printed.txt").read_text()
    assert "4 images to train on, 2 to evaluate on" in printed
    assert f"{len(CATEGORIES)} classes, {len(STUFF)} of them stuff" in printed
    for name in ("README.md", "results.json", "model.safetensors", "preprocessor_config.json"):
        assert (folder / name).is_file(), name
    results = json.loads((folder / "results.json").read_text())
    assert f"| pq | {100 * results['eval_pq']:.1f} |" in (folder / "README.md").read_text(encoding="utf-8")
    model = AutoModelForUniversalSegmentation.from_pretrained(folder).eval()
    assert list(model.config.id2label.values()) == [c["name"] for c in CATEGORIES]
    assert model.config.stuff_label_ids == [i for i, c in enumerate(CATEGORIES) if c["name"] in STUFF]
    assert not model.attn_mask_probs.any()
    processor = AutoImageProcessor.from_pretrained(folder)
    inputs = processor(Image.new("RGB", (50, 30)), return_tensors="pt")
    with torch.inference_mode():
        outputs = model(**inputs)
    (result,) = processor.post_process_panoptic_segmentation(outputs, target_sizes=[(30, 50)])
    assert result["segmentation"].shape == (30, 50)


def test_options_of_the_semantic_run_take_effect(runs):
    """Names, ignored ids, size, masks, evaluation of blocks; 1.5 epochs of 3 images in batches of 2 are 3 steps."""
    folder = runs / "semantic"
    assert {"eval_mean_iou", "eval_mean_iou_block_0"} <= set(json.loads((folder / "results.json").read_text()))
    model = AutoModelForUniversalSegmentation.from_pretrained(folder)
    assert model.config.id2label == {0: "sky", 1: "road", 2: "car"}
    assert list(model.config.image_size) == [48, 64]
    assert model.attn_mask_probs.tolist() == [1, 1]
    assert json.loads((folder / "trainer_state.json").read_text())["global_step"] == 3
    assert "schedule   3 steps," in (folder / "printed.txt").read_text()


def test_a_step_of_the_ladder_trains_evaluates_and_predicts(own_data, tmp_path, capsys):
    options = ["--step", "0", "--num-hidden-layers", "4", "--patch-size", "16", "--max-steps", "2"]
    assert train(own_data / "panoptic", tmp_path / "run", "panoptic", *options) == 0
    model = AutoModelForUniversalSegmentation.from_pretrained(tmp_path / "run")
    assert type(model).__name__ == "LadderForUniversalSegmentation"
    assert (model.config.step, model.config.num_blocks) == (0, 2)
    assert not model.attn_mask_probs.any()  # after annealing
    assert main(["evaluate", str(tmp_path / "run"), "--data", str(own_data / "panoptic"), "--device", "cpu"]) == 0
    photo = next((own_data / "panoptic/val").glob("*.png"))
    run = ["predict", str(photo), "--model", str(tmp_path / "run"), "--output", str(tmp_path / "out")]
    assert main([*run, "--device", "cpu"]) == 0
    assert "PQ" in capsys.readouterr().out


def test_a_recipe_with_other_sizes_and_steps(own_data, tmp_path, capsys):
    recipe = "coco_panoptic_eomt_large_640_dinov3"
    command = f"train --recipe {recipe} --data {own_data / 'panoptic'} --output-dir {tmp_path} {TINY_RUN} "
    command += "--backbone-weights scratch --image-size 64 --total-batch-size 4 --max-steps 12 --use-cpu "
    assert main(f"{command} --logging-steps 1 --eval-strategy no".split()) == 0
    assert "the authors report 56.8 PQ" in capsys.readouterr().out
    logs = [r for r in json.loads((tmp_path / "trainer_state.json").read_text())["log_history"] if "loss" in r]
    model = AutoModelForUniversalSegmentation.from_pretrained(tmp_path)
    assert model.config.model_type == "eomt_dinov3"
    # warm-up (2000, 3000) and annealing of the recipe, scaled from 88,692 to 12 steps
    assert [row["learning_rate"] for row in logs[:4]] == pytest.approx([0, 1e-4, 2e-4, 2e-4 * 0.9**0.9])
    assert [row["attn_mask_prob_0"] for row in logs] == [0] * 12
    assert [row["attn_mask_prob_1"] for row in logs[:8]] == [1] * 8
    assert recipe in (tmp_path / "README.md").read_text(encoding="utf-8")


def test_a_checkpoint_is_fine_tuned_on_other_classes(runs, own_data, tmp_path, capsys):
    run = f"train --data {own_data / 'instance'} --output-dir {tmp_path / 'run'} --checkpoint {runs / 'panoptic'} "
    run += "--task instance --max-steps 1 --total-batch-size 2 --use-cpu --image-size 96 --dataloader-num-workers 0"
    same = run.replace(str(own_data / "instance"), str(own_data / "panoptic")).replace("instance", "panoptic")
    for command, word in (
        (run, "class_head"),
        (f"{run} --backbone vit_small_patch14_reg4_dinov2", "backbone"),
        (f"{run} --backbone-weights scratch", "backbone_weights"),
        (f"{run} --class-head new --hidden-size 64", "options"),
        (f"{same} --num-queries 9", "query.weight"),
    ):
        assert main(command.split()) == 2
        assert word in capsys.readouterr().err
    assert main([*run.split(), "--class-head", "new"]) == 0
    model = AutoModelForUniversalSegmentation.from_pretrained(tmp_path / "run")
    assert model.config.id2label == {0: "red", 1: "white"}
    assert (model.config.task, model.config.hidden_size, model.config.image_size) == ("instance", 32, 96)


def test_a_checkpoint_keeps_its_task(runs, own_data, tmp_path):
    again = f"train --data {own_data / 'instance'} --checkpoint {runs / 'instance'} --output-dir {tmp_path} "
    again += "--image-size 64 --total-batch-size 2 --max-steps 1 --use-cpu --dataloader-num-workers 0 "
    assert main([*again.split(), "--eval-strategy", "no"]) == 0
    config = AutoModelForUniversalSegmentation.from_pretrained(tmp_path).config
    assert (config.task, config.dataset_ids) == ("instance", {"red": 1, "white": 2})


def test_results_are_those_of_the_best_weights(own_data, tmp_path, capsys, monkeypatch):
    def worse_and_worse(trainer, dataset, intermediate):
        return {"pq": 1 / (1 + trainer.state.global_step)}

    monkeypatch.setattr(EoMTTrainer, "_stream", worse_and_worse)
    options = "--eval-steps 1 --save-steps 1 --load-best-model-at-end"
    assert train(own_data / "panoptic", tmp_path, "panoptic", *options.split()) == 0
    state = json.loads((tmp_path / "trainer_state.json").read_text())
    assert (state["best_global_step"], state["global_step"]) == (1, 4)
    assert json.loads((tmp_path / "results.json").read_text())["eval_pq"] == 0.5
    assert "| pq | 50.0 |" in (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "eval: pq 50.0" in capsys.readouterr().out


def test_a_run_resumes_with_the_same_options_only(runs, own_data, tmp_path, capsys):
    run = shutil.copytree(runs / "panoptic", tmp_path / "run")
    for changes, message in (
        ("", "resume"),
        ("--resume --max-steps 6", "4 steps, not 6"),
        ("--resume --learning-rate 1e-5 --weight-decay 0.9", "learning_rate 0.001, not 1e-05; weight_decay 0.05"),
        ("--resume --freeze-backbone", "freeze_backbone False, not True"),
        ("--resume --image-size 96", "image_size 64, not 96"),
        ("--resume --num-queries 9", "num_queries 8, not 9"),
    ):
        options = f"{OPTIONS['panoptic']} {changes}".split()
        assert train(own_data / "panoptic", run, "panoptic", *options) == 2
        assert message in capsys.readouterr().err.strip().splitlines()[-1]
    shutil.rmtree(run / "checkpoint-4")
    assert train(own_data / "panoptic", run, "panoptic", *OPTIONS["panoptic"].split(), "--resume") == 0
    state = json.loads((run / "trainer_state.json").read_text())
    assert (state["global_step"], len([row for row in state["log_history"] if "loss" in row])) == (4, 4)


@pytest.mark.parametrize(("options", "word"), [
    ("--image-size big", "'big'"),
    ("--class-names disc,box", "class names"),
    ("--ignore-ids 7", "ignored ids"),
    ("--adam-bata2 0.9", "adam_beta2"),
])  # fmt: skip
def test_wrong_input_is_one_line_of_error(own_data, tmp_path, capsys, options, word):
    assert train(own_data / "panoptic", tmp_path / "run", "panoptic", *options.split()) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("eomt train: ")
    assert word in error


def test_check_reports_and_does_not_train(own_data, tmp_path, capsys):
    options = "--class-names void,sky,road,car --ignore-ids 0 --check"
    assert train(own_data / "semantic", tmp_path, "semantic", *options.split()) == 0
    printed = capsys.readouterr().out
    assert "3 images, 0 unreadable" in printed
    assert "2 images, 0 unreadable" in printed
    assert {path.name for path in tmp_path.iterdir()} == {"check-train", "check-val"}
    assert (tmp_path / "check-train" / "check.png").is_file()


def test_check_lists_malformed_annotations(tmp_path, capsys):
    """Training reports the first three. `--check` lists them one per line and also checks the other split."""
    box = "0 0.1 0.1 0.9 0.1 0.9 0.9\n"
    for split, text in (("train", "0 0.5 0.5\n" * 25), ("val", box)):
        for folder in ("images", "labels"):
            (tmp_path / "data" / folder / split).mkdir(parents=True)
        Image.new("RGB", (40, 40)).save(tmp_path / f"data/images/{split}/a.png")
        (tmp_path / f"data/labels/{split}/a.txt").write_text(text)
    (tmp_path / "data/data.yaml").write_text("names: [cell]")
    assert train(tmp_path / "data", tmp_path / "run", "instance") == 2
    assert "(and 22 more problems)" in capsys.readouterr().err
    assert train(tmp_path / "data", tmp_path / "check", "instance", "--check") == 1
    report = capsys.readouterr().out
    assert report.count("labels/train/a.txt, line ") == 20
    assert "and 5 more" in report
    assert "--- val ---\n1 images, 0 unreadable" in report
