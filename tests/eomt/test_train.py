"""`eomt train` as a user with own data calls it: three tasks, options, what it leaves behind, what it refuses."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForUniversalSegmentation

from eomt.cli import main
from eomt.training.data.shapes import CATEGORIES, STUFF, make_shapes
from tests.training.tiny import overridden

TINY = (
    "--backbone vit_small_patch14_reg4_dinov2 --backbone-weights scratch --hidden-size 32 --num-hidden-layers 3 "
    "--num-attention-heads 2 --num-blocks 2 --num-queries 8 --patch-size 8 --train-num-points 128 --image-size 64 "
    "--total-batch-size 2 --max-steps 4 --use-cpu --logging-steps 1 --dataloader-num-workers 0 --learning-rate 1e-3"
)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return make_shapes(tmp_path_factory.mktemp("shapes"), train=4, val=2)


@pytest.fixture(scope="module")
def streets(tmp_path_factory):
    """Label pngs: 0 sky over 1 road, a strip of 7 unlabeled."""
    folder = tmp_path_factory.mktemp("streets")
    for split, count in (("train", 3), ("val", 2)):
        for kind in ("images", "labels"):
            (folder / split / kind).mkdir(parents=True)
        for index in range(count):
            labels = np.zeros((48, 80 + 8 * index), np.uint8)
            labels[20 + index :] = 1
            labels[:, :3] = 7
            image = np.where(labels[..., None] == 0, (90, 140, 220), (80, 80, 80)).astype(np.uint8)
            Image.fromarray(image).save(folder / split / "images" / f"{index}.png")
            Image.fromarray(labels).save(folder / split / "labels" / f"{index}.png")
    return folder


def train(data, output, *options):
    return main(["train", "--data", str(data), "--output", str(output), *overridden(TINY, options)])


@pytest.mark.parametrize("step", [0, 3])
def test_a_step_of_the_ladder_trains_evaluates_and_predicts(step, shapes, tmp_path, capsys):
    options = ["--task", "panoptic", "--step", str(step), "--num-hidden-layers", "4", "--patch-size", "16"]
    assert train(shapes, tmp_path / "run", *options) == 0
    model = AutoModelForUniversalSegmentation.from_pretrained(tmp_path / "run")
    assert type(model).__name__ == "LadderForUniversalSegmentation"
    assert (model.config.step, model.config.num_blocks) == (step, 2)
    assert not model.attn_mask_probs.any()  # annealed, as EoMT is
    assert main(["evaluate", str(tmp_path / "run"), "--data", str(shapes), "--device", "cpu"]) == 0
    photo = next((shapes / "val").glob("*.png"))
    run = ["predict", str(photo), "--model", str(tmp_path / "run"), "--output", str(tmp_path / "out")]
    assert main([*run, "--device", "cpu"]) == 0
    assert "PQ" in capsys.readouterr().out


def test_panoptic_run_is_loaded_by_the_auto_classes(shapes, tmp_path, capsys, drawn_curves):
    assert train(shapes, tmp_path / "run", "--task", "panoptic") == 0
    printed = capsys.readouterr().out
    assert "4 images to train on, 2 to evaluate on" in printed
    assert f"{len(CATEGORIES)} classes, {len(STUFF)} of them stuff" in printed
    folder = tmp_path / "run"
    for name in ("README.md", "curves.png", "results.json", "model.safetensors", "preprocessor_config.json"):
        assert (folder / name).is_file(), name
    assert json.loads((folder / "options.json").read_text())["data"] == str(shapes)
    results = json.loads((folder / "results.json").read_text())
    assert 0 <= results["eval_pq"] <= 1
    assert f"| pq | {100 * results['eval_pq']:.1f} |" in (folder / "README.md").read_text(encoding="utf-8")
    model = AutoModelForUniversalSegmentation.from_pretrained(folder).eval()
    assert list(model.config.id2label.values()) == [c["name"] for c in CATEGORIES]
    assert model.config.stuff_label_ids == [i for i, c in enumerate(CATEGORIES) if c["name"] in STUFF]
    assert not model.attn_mask_probs.any()
    processor = AutoImageProcessor.from_pretrained(folder)
    inputs = processor(Image.new("RGB", (50, 30)), return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 3, 64, 64)
    with torch.inference_mode():
        outputs = model(**inputs)
    (result,) = processor.post_process_panoptic_segmentation(outputs, target_sizes=[(30, 50)])
    assert result["segmentation"].shape == (30, 50)


def test_recipe_with_some_values_overridden(shapes, tmp_path, capsys):
    overrides = (
        "--backbone-weights scratch --hidden-size 32 --num-hidden-layers 3 --num-attention-heads 2 --num-blocks 2 "
        "--num-queries 8 --patch-size 8 --train-num-points 128 --image-size 64 --total-batch-size 4 --max-steps 12 "
        "--use-cpu --logging-steps 1 --dataloader-num-workers 0 --eval-strategy no"
    )
    recipe = "coco_panoptic_eomt_large_640_dinov3"
    command = f"train --recipe {recipe} --data {shapes} --output-dir {tmp_path} {overrides}"
    assert main(command.split()) == 0
    assert "the authors report 56.8 PQ" in capsys.readouterr().out
    logs = [r for r in json.loads((tmp_path / "trainer_state.json").read_text())["log_history"] if "loss" in r]
    model = AutoModelForUniversalSegmentation.from_pretrained(tmp_path)
    assert model.config.model_type == "eomt_dinov3"
    # the recipe's warm-up (2000, 3000) and annealing, as long as this run is short: T = 12 of 88,692 steps
    assert [row["learning_rate"] for row in logs[:4]] == pytest.approx([0, 1e-4, 2e-4, 2e-4 * 0.9**0.9])
    assert [row["attn_mask_prob_0"] for row in logs] == [0] * 12
    assert [row["attn_mask_prob_1"] for row in logs[:8]] == [1] * 8
    assert recipe in (tmp_path / "README.md").read_text(encoding="utf-8")


def test_semantic_run_with_names_and_ignored_ids(streets, tmp_path):
    options = "--task semantic --class-names sky,road --ignore-ids 7 --image-size 48x64 --masking always --llrd 0.9"
    assert train(streets, tmp_path / "run", *options.split(), "--evaluate-blocks") == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert {"eval_mean_iou", "eval_mean_iou_block_0", "eval_mean_iou_block_1"} <= set(results)
    model = AutoModelForUniversalSegmentation.from_pretrained(tmp_path / "run")
    assert model.config.id2label == {0: "sky", 1: "road"}
    assert list(model.config.image_size) == [48, 64]
    assert model.attn_mask_probs.tolist() == [1, 1]


def test_instance_run_from_a_checkpoint_with_other_classes(shapes, tmp_path, capsys):
    assert train(shapes, tmp_path / "first", "--task", "panoptic", "--eval-strategy", "no") == 0
    data = json.loads((shapes / "annotations" / "panoptic_train.json").read_text())
    annotations = [
        {
            "id": 10 * image["image_id"] + k,
            "image_id": image["image_id"],
            "category_id": 3,
            "bbox": [4, 4, 20, 20],
            "area": 400,
            "iscrowd": 0,
            "segmentation": [[4, 4, 24, 4, 24, 24, 4, 24]],
        }
        for image in data["annotations"]
        for k in range(2)
    ]
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "images").symlink_to(shapes / "train")
    own = {"images": data["images"], "annotations": annotations, "categories": [{"id": 3, "name": "box"}]}
    (tmp_path / "own" / "boxes.json").write_text(json.dumps(own))
    run = f"train --data {tmp_path / 'own'} --output-dir {tmp_path / 'run'} --checkpoint {tmp_path / 'first'} "
    run += "--task instance --max-steps 2 --total-batch-size 2 --use-cpu --image-size 96 --dataloader-num-workers 0"
    assert main(run.split()) == 2
    assert "give class_head new" in capsys.readouterr().err
    for option in ("--backbone vit_small_patch14_reg4_dinov2", "--backbone-weights scratch"):
        assert main([*run.split(), *option.split()]) == 2
        assert "but it comes from the checkpoint" in capsys.readouterr().err
    assert main([*run.split(), "--class-head", "new", "--hidden-size", "64"]) == 2
    assert "does not fit the options given" in capsys.readouterr().err
    same = run.replace(str(tmp_path / "own"), str(shapes)).replace("--task instance", "--task panoptic")
    assert main([*same.split(), "--num-queries", "9"]) == 2
    assert "query.weight differ in shape; class_head new makes new ones" in capsys.readouterr().err
    assert main([*run.split(), "--class-head", "new"]) == 0
    model = AutoModelForUniversalSegmentation.from_pretrained(tmp_path / "run")
    assert model.config.id2label == {0: "box"}
    assert (model.config.task, model.config.hidden_size, model.config.image_size) == ("instance", 32, 96)


def test_figures_are_those_of_the_best_weights_where_they_are_saved(shapes, tmp_path, capsys, monkeypatch):
    from eomt.training import EoMTTrainer

    def worse_and_worse(trainer, dataset, intermediate):
        return {"pq": 1 / (1 + trainer.state.global_step)}

    monkeypatch.setattr(EoMTTrainer, "_stream", worse_and_worse)
    options = "--task panoptic --eval-steps 1 --save-steps 1 --load-best-model-at-end"
    assert train(shapes, tmp_path, *options.split()) == 0
    state = json.loads((tmp_path / "trainer_state.json").read_text())
    assert (state["best_global_step"], state["global_step"]) == (1, 4)
    assert json.loads((tmp_path / "results.json").read_text())["eval_pq"] == 0.5
    assert "| pq | 50.0 |" in (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "eval: pq 50.0" in capsys.readouterr().out


def test_check_reports_and_does_not_train(streets, tmp_path, capsys):
    options = "--task semantic --class-names sky,road --ignore-ids 7 --check"
    assert train(streets, tmp_path, *options.split()) == 0
    printed = capsys.readouterr().out
    assert "3 images, 0 unreadable" in printed
    assert "2 images, 0 unreadable" in printed
    assert {path.name for path in tmp_path.iterdir()} == {"check-train", "check-val"}
    assert (tmp_path / "check-train" / "check.png").is_file()


def test_refuses_to_mix_runs_and_resumes(shapes, tmp_path, capsys):
    options = ["--task", "panoptic", "--eval-strategy", "no", "--save-steps", "2"]
    assert train(shapes, tmp_path, *options) == 0
    assert train(shapes, tmp_path, *options) == 2
    assert "has checkpoints of a run" in capsys.readouterr().err
    capsys.readouterr()
    assert train(shapes, tmp_path, *options, "--resume", "--max-steps", "6") == 2
    assert "of a run of 4 steps, not 6: rates and masks would change" in capsys.readouterr().err.splitlines()[-1]
    shutil.rmtree(tmp_path / "checkpoint-4")
    assert train(shapes, tmp_path, *options, "--resume") == 0
    state = json.loads((tmp_path / "trainer_state.json").read_text())
    assert (state["global_step"], len([row for row in state["log_history"] if "loss" in row])) == (4, 4)


def test_the_seed_is_that_of_the_initial_weights_too(shapes, tmp_path):
    weights = []
    for run, seed in (("a", "3"), ("b", "3"), ("c", "4")):
        options = ["--task", "panoptic", "--eval-strategy", "no", "--seed", seed, "--max-steps", "1"]
        assert train(shapes, tmp_path / run, *options) == 0
        model = AutoModelForUniversalSegmentation.from_pretrained(tmp_path / run)
        weights.append(model.layers[0].mlp.fc1.weight)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_refuses_to_resume_with_options_that_would_not_take_effect(shapes, tmp_path, capsys):
    options = ["--task", "panoptic", "--eval-strategy", "no", "--save-steps", "2"]
    assert train(shapes, tmp_path, *options) == 0
    for changes, message in [
        ("--learning-rate 1e-5 --weight-decay 0.9", "has learning_rate 0.001, not 1e-05; weight_decay 0.05, not 0.9;"),
        ("--freeze-backbone", "has freeze_backbone False, not True;"),
        ("--image-size 96", "has image_size 64, not 96;"),
        ("--num-queries 9", "has num_queries 8, not 9;"),
    ]:
        capsys.readouterr()
        assert train(shapes, tmp_path, *options, "--resume", *changes.split()) == 2
        assert message in capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--recipe coco_panoptic", "no recipe 'coco_panoptic'"),
        ("--task panoptic --image-size 65", "image_size"),
        ("--task panoptic --backbone resnet50", "unknown backbone 'resnet50'"),
        ("--task depth", "depth"),
        ("--task panoptic --image-size big", "'big'"),
        ("--task panoptic --class-names disc,box", "coco data names its classes itself; class names"),
        ("--task panoptic --ignore-ids 7", "coco data names its classes itself; class names and ignored ids"),
        ("--task panoptic --total-batch-size 3 --per-device-train-batch-size 2", "total_batch_size 3"),
    ],
)
def test_bad_input_is_one_line(shapes, tmp_path, capsys, options, message):
    assert train(shapes, tmp_path, *options.split()) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("eomt train: ")
    assert message in error


def test_options_of_the_stock_trainer_and_wrong_ones(shapes, tmp_path, capsys):
    options = ["--task", "panoptic", "--eval-strategy", "no", "--max-steps", "1"]
    assert train(shapes, tmp_path / "run", *options, "--adam-beta2", "0.9", "--full-determinism", "false") == 0
    assert train(shapes, tmp_path / "typo", *options, "--adam-bata2", "0.9") == 2
    assert "adam_beta2" in capsys.readouterr().err
    assert main(["train"]) == 2
    assert main(["train", "--help"]) == 0
    assert "--llrd" in capsys.readouterr().out


def test_list_of_recipes(capsys):
    assert main(["train", "--list-recipes"]) == 0
    printed = capsys.readouterr().out
    assert "coco_panoptic_eomt_large_640 " in printed
    assert "56.0 PQ" in printed


def test_the_announced_number_of_steps_is_the_trainers(shapes, tmp_path, capsys):
    """4 images in batches of 3: two steps per epoch, the second of one image."""
    options = "--max-steps -1 --num-train-epochs 1.5 --total-batch-size 3 --eval-strategy no --save-strategy no"
    assert train(shapes, tmp_path, "--task", "panoptic", *options.split()) == 0
    assert json.loads((tmp_path / "trainer_state.json").read_text())["global_step"] == 3
    assert "schedule   3 steps," in capsys.readouterr().out


def test_check_lists_every_malformed_annotation(tmp_path, capsys):
    """Training reports the first three problems; `--check` lists them one per line and still checks the other split."""
    box = "0 0.1 0.1 0.9 0.1 0.9 0.9\n"
    for split, text in (("train", "0 0.5 0.5\n" * 25), ("val", box)):
        for folder in ("images", "labels"):
            (tmp_path / "data" / folder / split).mkdir(parents=True)
        Image.new("RGB", (40, 40)).save(tmp_path / f"data/images/{split}/a.png")
        (tmp_path / f"data/labels/{split}/a.txt").write_text(text)
    (tmp_path / "data/data.yaml").write_text("names: [cell]")
    assert train(tmp_path / "data", tmp_path / "run", "--task", "instance") == 2
    assert "(and 22 more problems)" in capsys.readouterr().err
    assert train(tmp_path / "data", tmp_path / "check", "--task", "instance", "--check") == 1
    report = capsys.readouterr().out
    assert report.count("labels/train/a.txt, line ") == 20
    assert "and 5 more" in report
    assert "--- val ---\n1 images, 0 unreadable" in report
