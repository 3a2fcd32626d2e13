"""`eomt predict`: files of each task, unreadable images, interruption, options."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as rle
from pycocotools.coco import COCO
from transformers import AutoImageProcessor, AutoModelForUniversalSegmentation

from eomt import EoMTForUniversalSegmentation
from eomt.cli import main
from eomt.image_processing import images, read_image
from eomt.image_processing.images import rgb_to_id
from eomt.results import Results
from tests.predicting import SIZES, predict


def expected(model_directory, photo):
    """Processor, outputs and size of a photo by the Python interface."""
    model = AutoModelForUniversalSegmentation.from_pretrained(model_directory).eval()
    processor = AutoImageProcessor.from_pretrained(model_directory)
    picture = read_image(photo)
    with torch.inference_mode():
        outputs = model(**processor(picture, return_tensors="pt"))
    return processor, outputs, [(picture.height, picture.width)]


def test_panoptic_predictions_are_in_cocos_format(models, photos, tmp_path, capsys):
    assert predict(photos, models["panoptic"], tmp_path / "out", "--batch-size", "2", "--threshold", "0.3") == 0
    assert "3 images" in capsys.readouterr().out
    data = json.loads((tmp_path / "out/panoptic.json").read_text())
    assert [image["id"] for image in data["images"]] == [139, 285, 632]
    assert [c["isthing"] for c in data["categories"]] == [1, 1, 1, 0, 0]
    for image, annotation in zip(data["images"], data["annotations"]):
        ids = rgb_to_id(np.asarray(Image.open(tmp_path / "out/panoptic" / annotation["file_name"])))
        processor, outputs, size = expected(models["panoptic"], photos / image["file_name"])
        result = processor.post_process_panoptic_segmentation(outputs, size, threshold=0.3)[0]
        assert (ids - 1 != result["segmentation"].numpy()).mean() < 2e-3
        assert [s["category_id"] for s in annotation["segments_info"]] == [
            s["label_id"] for s in result["segments_info"]
        ]
        assert Image.open(tmp_path / f"out/overlays/{Path(image['file_name']).stem}.jpg").width >= image["width"]
    assert sum(len(a["segments_info"]) for a in data["annotations"]) > 1


def test_instance_predictions_are_coco_results(models, photos, tmp_path):
    assert predict(photos, models["instance"], tmp_path / "out", "--no-overlays") == 0
    results = json.loads((tmp_path / "out/instances.json").read_text())
    coco = COCO()
    coco.dataset = {**json.loads((tmp_path / "out/images.json").read_text()), "annotations": []}
    coco.createIndex()
    loaded = coco.loadRes(results)
    assert len(loaded.anns) == len(results) > 10
    processor, outputs, size = expected(models["instance"], photos / "000000000139.png")
    maps = processor.post_process_instance_segmentation(outputs, size, return_binary_maps=True)[0]
    found = [r for r in results if r["image_id"] == 139]
    kept = [i for i, mask in enumerate(maps["segmentation"]) if mask.any()]
    scores = [maps["segments_info"][i]["score"] for i in kept]
    np.testing.assert_allclose([r["score"] for r in found], scores, atol=1e-5)
    for result, i in list(zip(found, kept))[:5]:
        assert (rle.decode(result["segmentation"]).astype(bool) != maps["segmentation"][i].numpy()).mean() < 2e-3
    assert not (tmp_path / "out/overlays").exists()


def test_semantic_predictions_are_label_pngs_with_confidence(models, photos, tmp_path):
    assert predict(photos, models["semantic"], tmp_path / "out", "--confidence", "--batch-size", "3") == 0
    for name, (height, width) in SIZES.items():
        labels = np.asarray(Image.open(tmp_path / f"out/labels/{name}.png"))
        processor, outputs, size = expected(models["semantic"], photos / f"{name}.png")
        result = processor.post_process_semantic_confidence(outputs, size)[0]
        assert labels.shape == (height, width)
        assert (labels != result["segmentation"].numpy()).mean() < 2e-3
        stored = np.asarray(Image.open(tmp_path / f"out/confidence/{name}.png"))
        assert stored.dtype == np.uint16
        assert np.abs(stored / 65535 - result["confidence"].numpy()).max() < 1e-3
        assert (tmp_path / f"out/confidence_pictures/{name}.jpg").is_file()
        assert (tmp_path / f"out/overlays/{name}.jpg").is_file()


def test_unreadable_files_are_listed(models, photos, tmp_path, capsys):
    """Also an image of too many pixels."""
    (photos / "broken.png").write_bytes((photos / "000000000139.png").read_bytes()[:120])
    (photos / "text.jpg").write_text("no image")
    options = ["--batch-size", "2", "--max-pixels", "3000"]
    assert predict(photos, models["panoptic"], tmp_path / "out", *options) == 1
    printed = capsys.readouterr()
    assert "2 images" in printed.out
    for name in ("broken.png", "text.jpg", "000000000285.png"):
        assert printed.err.count(name) == 1
    assert "3 of 5 images" in printed.err
    assert len(json.loads((tmp_path / "out/panoptic.json").read_text())["annotations"]) == 2


@pytest.mark.parametrize("task", ["panoptic", "semantic"])
def test_images_that_cannot_be_segmented_or_written_are_listed(models, photos, tmp_path, capsys, task):
    Image.new("RGB", (66_000, 4)).save(photos / "long.png")  # too long for a JPEG, and 16,000 windows of 64
    (photos / "000000000139.png").rename(photos / f"{'n' * 251}.png")
    options = ["--confidence"] if task == "semantic" else []
    assert predict(photos, models[task], tmp_path / "out", "--batch-size", "2", *options) == 1
    printed = capsys.readouterr()
    assert f"{'n' * 251}.png: [Errno 36]" in printed.err
    found = [image["file_name"] for image in json.loads((tmp_path / "out/images.json").read_text())["images"]]
    if task == "panoptic":
        assert found == ["000000000285.png", "000000000632.png", "long.png"]
        assert Image.open(tmp_path / "out/overlays/long.jpg").width == 65_500
    else:
        assert found == ["000000000285.png", "000000000632.png"]
        assert "long.png: image of 4 × 66000" in printed.err


def test_out_of_memory_skips_one_image(models, photos, tmp_path, capsys, monkeypatch):
    real, calls = EoMTForUniversalSegmentation.forward, []

    def scarce(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("can't allocate memory")
        return real(self, *args, **kwargs)

    monkeypatch.setattr(EoMTForUniversalSegmentation, "forward", scarce)
    assert predict(photos, models["semantic"], tmp_path / "out") == 1
    assert "1 of 3 images" in capsys.readouterr().err
    assert len(json.loads((tmp_path / "out/images.json").read_text())["images"]) == 2


def test_an_interrupted_prediction_resumes(models, photos, tmp_path, capsys, monkeypatch):
    write, calls = Results.write, []

    def interrupted(self, name, *args, **kwargs):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(name)
        write(self, name, *args, **kwargs)

    out = tmp_path / "out"
    monkeypatch.setattr(Results, "write", interrupted)
    assert predict(photos, models["panoptic"], out) == 130
    monkeypatch.setattr(Results, "write", write)
    done = {path: path.stat().st_mtime_ns for path in out.rglob("panoptic/*.png")}
    assert len(done) == 2
    capsys.readouterr()
    assert predict(photos, models["panoptic"], out) == 0
    assert "1 image (2 " in capsys.readouterr().out
    assert all(path.stat().st_mtime_ns == when for path, when in done.items())
    assert len(json.loads((out / "panoptic.json").read_text())["annotations"]) == 3
    assert predict(photos, models["panoptic"], tmp_path / "at_once") == 0
    assert (out / "panoptic.json").read_text() == (tmp_path / "at_once/panoptic.json").read_text()
    assert not list(out.rglob(".*"))  # no partial files
    assert predict(photos, models["instance"], out) == 2  # not with the results of another model
    assert repr("instance") in capsys.readouterr().err


def test_results_of_other_images_or_weights_are_not_kept(models, photos, tmp_path, capsys):
    model, out = shutil.copytree(models["panoptic"], tmp_path / "model"), tmp_path / "out"
    assert predict(photos, model, out) == 0
    Image.new("RGB", (30, 20), "red").save(photos / "000000000139.png")  # changed
    shutil.copytree(photos, tmp_path / "other")
    capsys.readouterr()
    assert predict(photos, model, out) == 0
    assert "1 image (2 " in capsys.readouterr().out
    assert json.loads((out / "panoptic.json").read_text())["images"][0]["width"] == 30
    assert predict(tmp_path / "other", model, out) == 0
    assert "3 images" in capsys.readouterr().out
    (tmp_path / "other/000000000139.png").write_text("no image")
    assert predict(tmp_path / "other", model, out) == 1
    found = json.loads((out / "panoptic.json").read_text())["images"]
    assert [image["id"] for image in found] == [285, 632]
    os.utime(model / "model.safetensors", (1, 1))  # changed weights
    assert predict(photos, model, out) == 2
    assert "weights" in capsys.readouterr().err


@pytest.mark.parametrize("options", [["--dtype", "bfloat16"], pytest.param(["--compile"], marks=pytest.mark.slow)])
def test_bfloat16_and_compilation_run(models, photos, tmp_path, options):
    assert predict(photos, models["panoptic"], tmp_path / "changed", *options) == 0
    assert predict(photos, models["panoptic"], tmp_path / "plain") == 0
    for name in SIZES:
        assert (tmp_path / f"changed/overlays/{name}.jpg").is_file()
        changed = np.asarray(Image.open(tmp_path / f"changed/panoptic/{name}.png"))
        plain = np.asarray(Image.open(tmp_path / f"plain/panoptic/{name}.png"))
        assert (rgb_to_id(changed) != rgb_to_id(plain)).mean() < 0.05


def test_options_that_do_not_fit_the_model_are_refused(models, photos, tmp_path, capsys):
    assert predict(photos, models["panoptic"], tmp_path / "out", "--confidence") == 2
    assert "--confidence" in capsys.readouterr().err
    model = shutil.copytree(models["panoptic"], tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"masked_attention": False}))
    assert predict(photos, model, tmp_path / "out", "--masked") == 2
    assert main(["benchmark", str(model), "--masked", "--count-only"]) == 2
    assert not (tmp_path / "out").exists()


def test_masked_attention_follows_the_configuration_or_the_option(models, photos, tmp_path):
    """`masked_inference` of the configuration decides, not the probabilities in the checkpoint (Table 7)."""
    folders = {"plain": models["panoptic"]}
    for name in ("trained", "always"):
        model = AutoModelForUniversalSegmentation.from_pretrained(models["panoptic"])
        model.set_attn_mask_probs([1.0] * 2)
        model.config.masked_inference = name == "always"
        folders[name] = shutil.copytree(models["panoptic"], tmp_path / name)
        model.save_pretrained(folders[name])
    found = {}
    for name, options in (("plain", []), ("trained", []), ("always", []), ("trained", ["--masked"]),
                          ("always", ["--no-masked"])):  # fmt: skip
        run = " ".join([name, *options])
        assert predict(photos, folders[name], tmp_path / "out" / run, "--no-overlays", *options) == 0
        found[run] = (tmp_path / "out" / run / "panoptic.json").read_text()
    assert found["plain"] == found["trained"] == found["always --no-masked"]
    assert found["always"] == found["trained --masked"] != found["plain"]


def test_missing_and_empty_sources_are_refused(models, tmp_path, capsys):
    assert predict(tmp_path / "nowhere", models["panoptic"], tmp_path / "out") == 2
    (tmp_path / "empty").mkdir()
    assert predict(tmp_path / "empty", models["panoptic"], tmp_path / "out") == 2
    assert predict(tmp_path / "*.jpg", models["panoptic"], tmp_path / "out") == 2
    for line, name in zip(capsys.readouterr().err.splitlines(), ("nowhere", "empty", "*.jpg"), strict=True):
        assert name in line


def test_names_and_ids_are_unique(models, photos, tmp_path):
    for name in ("1.png", "1_jpg.png", "01.png", "1_jpg_.png"):
        Image.new("RGB", (9, 7)).save(photos / name)
    assert predict(photos, models["panoptic"], tmp_path / "out") == 0
    data = json.loads((tmp_path / "out/panoptic.json").read_text())
    assert [image["id"] for image in data["images"]] == [139, 285, 632, "01", "1", "1_jpg", "1_jpg_"]
    assert [a["image_id"] for a in data["annotations"]] == [image["id"] for image in data["images"]]


@pytest.mark.parametrize("tile", [[], ["--tile", "400"]])
def test_a_url_is_downloaded_once(tile, models, photos, tmp_path, monkeypatch):
    """The picture behind it may change."""
    downloads = [(photos / "000000000139.png").read_bytes()]
    monkeypatch.setattr(images, "_download", lambda url, timeout: downloads.pop())
    assert predict("https://a.b/c.png", models["panoptic"], tmp_path, *tile) == 0
    assert (tmp_path / "overlays/c.jpg").is_file()


@pytest.mark.parametrize("task", ["panoptic", "instance", "semantic"])
def test_tiled_predictions_have_the_same_form(models, photos, tmp_path, task):
    """The settings are part of the run. An image within one tile has the result without tiles."""
    tiled = ["--no-overlays", "--batch-size", "4", "--tile"]
    assert predict(photos, models[task], tmp_path / "out", *tiled, "48") == 0
    labels = f"labels/{next(iter(SIZES))}.png"
    file = {"panoptic": "panoptic.json", "instance": "instances.json", "semantic": labels}[task]
    assert (tmp_path / "out" / file).is_file()
    assert json.loads((tmp_path / "out/run.json").read_text())["tile"] == 48
    assert predict(photos, models[task], tmp_path / "out", "--no-overlays") == 2
    assert predict(photos, models[task], tmp_path / "plain", "--no-overlays") == 0
    assert predict(photos, models[task], tmp_path / "one", *tiled, "90") == 0
    assert (tmp_path / "plain" / file).read_bytes() == (tmp_path / "one" / file).read_bytes()
