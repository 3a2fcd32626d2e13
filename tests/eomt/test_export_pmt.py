"""`eomt export` of PMT in one file, and as encoder and decoder."""

import json
import shutil

import pytest
import torch

from eomt import EoMTImageProcessor
from eomt.cli import main
from eomt.engines import ENCODER, ENGINES, OpenVINOEngine, SplitEngine
from eomt.export import WRITERS
from eomt.inference import ExportedEoMT
from eomt.loading import model_files
from tests.modeling_eomt.test_pmt import logits, pixels, tiny_pmt
from tests.models import tiny_model

SMALL = {"num_hidden_layers": 3, "num_blocks": 1, "interaction_indices": [0, 2]}


def save(folder, seed=0, task="panoptic"):
    model = tiny_pmt(seed=seed, task=task, **SMALL)
    if seed:
        model.encoder.load_state_dict(tiny_pmt(**SMALL).encoder.state_dict())
    model.save_pretrained(folder)
    EoMTImageProcessor(task=task, size=64).save_pretrained(folder)
    return model


def export(*arguments, engine="openvino") -> int:
    return main(["export", *map(str, arguments), "--format", engine])


class StandIn:
    """An engine that runs torch, because other engines need many seconds for a file."""

    name, file, package, precision, dtype, size = "openvino", OpenVINOEngine.file, "openvino", "fp32", "fp32", (64, 64)
    num_requests = 1

    def __init__(self, path, *options):
        self.part = torch.load(path, weights_only=False)

    @torch.no_grad()
    def run(self, inputs):
        outputs = self.part(torch.from_numpy(inputs))
        return tuple(output.numpy() for output in (outputs if isinstance(outputs, tuple) else [outputs]))


@pytest.fixture(params=[StandIn, *(pytest.param(name, marks=pytest.mark.slow) for name in ENGINES)])
def engine(request, monkeypatch):
    if request.param is not StandIn:
        return request.param
    monkeypatch.setitem(ENGINES, StandIn.name, StandIn)
    monkeypatch.setitem(WRITERS, StandIn.name, lambda model, example, path, precision: torch.save(model, path))
    return StandIn.name


def test_force_replaces_an_encoder_of_its_own_and_nothing_else(engine, tmp_path):
    save(tmp_path / "model")
    command = (tmp_path / "model", tmp_path / "split", "--split-encoder", "--force")
    for _ in range(2):
        assert export(*command, engine=engine) == 0
    (tmp_path / "split" / ENCODER / "notes.txt").write_text("hours of work")
    assert export(*command, engine=engine) == 2
    assert (tmp_path / "split" / ENCODER / "notes.txt").read_text() == "hours of work"


def test_two_files_have_the_logits_of_the_model(engine, tmp_path):
    one, other = save(tmp_path / "one"), save(tmp_path / "other", seed=2, task="instance")
    for name in ("one", "other"):
        assert export(tmp_path / name, tmp_path / f"{name}-split", "--split-encoder", engine=engine) == 0
    shutil.rmtree(tmp_path / "other-split" / ENCODER)
    images = pixels(height=64, width=64)
    split = ExportedEoMT.from_pretrained(tmp_path / "one-split", engine=engine)
    assert isinstance(split.engine, SplitEngine)
    shared = ExportedEoMT.from_pretrained(tmp_path / "other-split", encoder=split)
    for model, exported in ((one, split), (other, shared)):
        masks, classes = logits(model, images)
        out = exported(images)
        torch.testing.assert_close(out.masks_queries_logits, masks, rtol=0, atol=1e-4)
        torch.testing.assert_close(out.class_queries_logits, classes, rtol=0, atol=1e-4)
    calls, encoder = [], split.engine.encoder.engine
    run = encoder.run
    encoder.run = lambda images: (calls.append(1), run(images))[1]
    for exported in (split, shared, split):
        exported(images.flip(0))
    assert len(calls) == 1
    buffer = images.clone()
    before = split(buffer).masks_queries_logits
    buffer.copy_(images.flip(0))
    assert torch.equal(split(buffer).masks_queries_logits, before.flip(0))
    config = tmp_path / "other-split" / "config.json"
    fields = json.loads(config.read_text())
    for changed, word in (
        ({"interaction_indices": [0, 1, 2]}, "interaction_indices"),
        ({"image_size": [32, 128]}, "image_size"),
        ({"patch_size": [8, 32]}, "patch_size"),
        ({"encoder_digest": None}, "encoder"),  # of a file that holds its encoder
    ):
        config.write_text(json.dumps(fields | changed))
        with pytest.raises(ValueError, match=word):
            ExportedEoMT.from_pretrained(config.parent, encoder=split)
    tiny_model().save_pretrained(tmp_path / "eomt")
    with pytest.raises(ValueError, match="encoder"):
        ExportedEoMT.from_pretrained(tmp_path / "eomt", encoder=split)


def test_a_replaced_encoder_is_another_model(tmp_path):
    (tmp_path / ENCODER).mkdir()
    for name in ("model.onnx", f"{ENCODER}/model.onnx"):
        (tmp_path / name).touch()
    assert set(model_files(tmp_path)) == {"model.onnx", f"{ENCODER}/model.onnx"}


def test_impossible_exports_of_two_files_are_refused(tmp_path):
    save(tmp_path / "pmt")
    tiny_model().save_pretrained(tmp_path / "eomt")
    EoMTImageProcessor(size=64).save_pretrained(tmp_path / "eomt")
    assert export(tmp_path / "eomt", tmp_path / "out", "--split-encoder") == 2
    assert export(tmp_path / "pmt", tmp_path / "out", "--split-encoder", "--dynamic-size") == 2
    assert export(tmp_path / "pmt", tmp_path / "out", "--dynamic-size") == 2  # DINOv2's positions
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_one_file_has_the_logits_of_the_model(tmp_path):
    model, images = save(tmp_path / "pmt"), pixels(height=64, width=64)
    assert export(tmp_path / "pmt", tmp_path / "out") == 0
    found = ExportedEoMT.from_pretrained(tmp_path / "out")(images).masks_queries_logits
    torch.testing.assert_close(found, logits(model, images)[0], rtol=0, atol=1e-4)
