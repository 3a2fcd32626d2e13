"""`eomt evaluate`: models, saved predictions and predictions of other tools; classes; the paper's results."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from eomt.cli import main
from eomt.configuration import EoMTConfig
from eomt.configuration.labels import label_space
from eomt.configuration.recipes import get_recipe
from eomt.evaluate import reported_results
from eomt.image_processing import EoMTImageProcessor
from eomt.modeling_eomt import EoMTForUniversalSegmentation
from eomt.training.data import load_data, make_shapes
from tests.docs.workspace import cells, streets
from tests.models import GOLDEN, make_confident, tiny_model


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return make_shapes(tmp_path_factory.mktemp("shapes"), train=1, val=5, size=(40, 70))


@pytest.fixture(scope="module")
def model(shapes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    _, space = load_data(shapes, task="panoptic")
    sizes = {"num_hidden_layers": 2, "num_blocks": 1, "num_queries": 1, "num_labels": 8}
    model = tiny_model(**sizes, masked_inference=False, id2label=space.id2label)
    make_confident(model)
    with torch.no_grad():
        model.class_predictor.bias[-1] = -1000  # never "no object"
    model.save_pretrained(folder)
    EoMTImageProcessor(task="panoptic", size=64).save_pretrained(folder)
    return folder


def run(*arguments) -> int:
    return main(["evaluate", *map(str, arguments), "--workers", "0"])


def test_a_model_and_its_saved_predictions_have_the_same_score(shapes, model, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(model, "--data", shapes, "--output", out, "--worst", 2, "--save-predictions", tmp_path / "files") == 0
    assert "PQ th" in capsys.readouterr().out
    first = json.loads((out / "metrics.json").read_text())
    assert first["images"] == 5
    assert len(first["worst"]) == 2
    assert all(Path(entry["picture"]).is_file() for entry in first["worst"])
    assert {p.name for p in out.iterdir()} == {"metrics.json", "per_class.csv", "confusion.png", "worst"}
    assert sum(c["fp"] for c in first["metrics"]["per_class"].values()) > 0  # there are segments
    assert first["metrics"]["num_classes_stuff"] == 4  # the data's, because the model has none

    assert run("--predictions", tmp_path / "files", "--data", shapes, "--task", "panoptic", "--json") == 0
    second = json.loads(capsys.readouterr().out)
    assert second["metrics"] == first["metrics"]


def test_masked_models_with_merged_tokens_are_evaluated(shapes, model, tmp_path, capsys):
    names = EoMTConfig.from_pretrained(model).id2label
    tiny_model(num_blocks=1, num_labels=8, id2label=names).save_pretrained(tmp_path)
    EoMTImageProcessor(task="panoptic", size=64).save_pretrained(tmp_path)
    options = ("--masked", "--token-merging", 0.95, "--merging-layers", 1, 2)
    assert run(tmp_path, "--data", shapes, *options, "--json") == 0
    found = json.loads(capsys.readouterr().out)["metrics"]
    assert found["gflops_per_image"] > 0
    assert "pq_block_0" in found


@pytest.mark.parametrize("task", ["instance", "semantic"])
def test_instance_and_semantic_models_are_evaluated(shapes, model, tmp_path, task, capsys):
    data, copy = tmp_path / "data", tmp_path / "model"
    if task == "semantic":
        streets(shapes, data)
    else:
        cells(shapes, data)
        file = data / "valid/_annotations.coco.json"
        file.write_text(file.read_text().replace('"iscrowd": 0', '"iscrowd": 1'))  # as in exports of CVAT
    EoMTForUniversalSegmentation.from_pretrained(model).save_pretrained(copy)
    EoMTImageProcessor(task=task, size=64).save_pretrained(copy)
    files = tmp_path / "files"
    arguments = ("--data", data, "--task", task, "--output", tmp_path / "out", "--worst", 1, "--crowds-as-instances")
    assert run(copy, *arguments, "--save-predictions", files, "--masked") == 0
    assert "before block 0" in capsys.readouterr().out
    result = json.loads((tmp_path / "out/metrics.json").read_text())["metrics"]
    assert result["ap" if task == "instance" else "mean_iou"] >= 0  # negative without a ground truth
    assert run("--predictions", files, *arguments, "--json") == 0
    saved = json.loads(capsys.readouterr().out)["metrics"]
    assert saved == {key: value for key, value in result.items() if "_block_" not in key}


def test_predictions_of_another_tool_have_panopticapis_pq(tmp_path, capsys):
    """With black images, because COCO's are not in the repository."""
    ground_truth = json.loads((GOLDEN / "coco-sample/panoptic_examples.json").read_text())
    data = tmp_path / "data"
    (data / "images").mkdir(parents=True)
    for image in ground_truth["images"]:
        Image.new("RGB", (image["width"], image["height"])).save(data / "images" / image["file_name"])
    for name in ("panoptic_examples.json", "panoptic_examples"):
        (data / name).symlink_to(GOLDEN / "coco-sample" / name)
    assert run("--predictions", GOLDEN / "panoptic_pred.json", "--data", data, "--task", "panoptic", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    expected = json.loads((GOLDEN / "panoptic_pq.json").read_text())
    assert result["classes"] == "coco_panoptic"
    assert result["metrics"]["pq"] == pytest.approx(expected["all"]["pq"], abs=1e-9)
    assert result["metrics"]["pq_stuff"] == pytest.approx(expected["stuff"]["pq"], abs=1e-9)


@pytest.mark.parametrize("swapped", [False, True])
def test_classes_of_other_names_are_matched_by_position_or_refused(shapes, model, tmp_path, capsys, swapped):
    for split in ("train", "val"):
        path = shapes / f"annotations/panoptic_{split}.json"
        data = json.loads(path.read_text())
        first, second, third, *_ = data["categories"]
        first["name"] = "disc"
        if swapped:
            second["name"], third["name"] = third["name"], second["name"]
        (tmp_path / "annotations").mkdir(exist_ok=True)
        (tmp_path / "annotations" / path.name).write_text(json.dumps(data))
        (tmp_path / "annotations" / path.stem).symlink_to(path.with_suffix(""))
        (tmp_path / split).symlink_to(shapes / split)
    if swapped:  # common names are at other positions
        assert run(model, "--data", tmp_path) == 2
        assert repr(second["name"]) in capsys.readouterr().err
        return
    assert run(model, "--data", tmp_path) == 0  # matched by position, with a note
    assert "8 classes" in capsys.readouterr().err


def test_results_of_the_paper_are_found_for_a_recipe(tmp_path):
    """By data, task and architecture, here a ViT-S on COCO panoptic at 640² from the model zoo."""
    recipe, space = get_recipe("coco_panoptic_eomt_small_640_2x"), label_space("coco_panoptic")
    config = EoMTConfig.for_backbone(recipe.backbone, image_size=640, id2label=space.id2label)
    found = {entry["recipe"]: entry["percent"] for entry in reported_results(config, "panoptic", space)}
    assert found[recipe.name] == 46.7
    assert all("small" in name for name in found)
    assert not reported_results(config, "instance", label_space("coco_instance"))
