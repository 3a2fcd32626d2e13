"""`eomt export` of PMT: in one file, or encoder and decoder apart."""

import json
import shutil

import numpy as np
import pytest
import torch

from eomt import EoMTImageProcessor
from eomt.cli import main
from eomt.engines import ENCODER, SplitEngine
from eomt.inference import ExportedEoMT
from tests.modeling_eomt.test_pmt import logits, pixels, tiny_pmt
from tests.models import tiny_model


def save(folder, seed=0, task="panoptic", kind="dinov2"):
    model = tiny_pmt(kind, seed=seed, task=task)
    if seed:
        model.encoder.load_state_dict(tiny_pmt(kind).encoder.state_dict())
    model.save_pretrained(folder)
    EoMTImageProcessor(task=task, size=64).save_pretrained(folder)
    return model


def export(*arguments, engine="openvino") -> int:
    return main(["export", *map(str, arguments), "--format", engine])


@pytest.mark.parametrize("engine", ["openvino", pytest.param("onnx", marks=pytest.mark.slow)])
def test_two_files_have_the_logits_of_one_and_decoders_share_an_encoder(engine, tmp_path):
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
    calls, run = [], split.engine.encoder.run
    split.engine.encoder.run = lambda images, run=run, calls=calls: (calls.append(1), run(images))[1]
    for exported in (split, shared, split):
        exported(images.flip(0))
    assert len(calls) == 1
    buffer = images.clone()
    before = split(buffer).masks_queries_logits
    buffer.copy_(images.flip(0))
    assert torch.equal(split(buffer).masks_queries_logits, before.flip(0))
    config = tmp_path / "other-split" / "config.json"
    fields = json.loads(config.read_text())
    for changed in ({"interaction_indices": [0, 1, 2]}, {"image_size": [32, 128]}, {"patch_size": [8, 32]}):
        config.write_text(json.dumps(fields | changed))
        with pytest.raises(ValueError, match=next(iter(changed))):
            ExportedEoMT.from_pretrained(config.parent, encoder=split)
    config.write_text(json.dumps(fields))


def test_what_cannot_be_split_or_shared_is_refused(tmp_path, capsys):
    save(tmp_path / "pmt")
    tiny_model().save_pretrained(tmp_path / "eomt")
    EoMTImageProcessor(size=64).save_pretrained(tmp_path / "eomt")
    assert export(tmp_path / "eomt", tmp_path / "out", "--split-encoder") == 2
    assert export(tmp_path / "pmt", tmp_path / "out", "--split-encoder", "--dynamic-size") == 2
    assert export(tmp_path / "pmt", tmp_path / "out", "--dynamic-size") == 2  # DINOv2's positions
    assert not (tmp_path / "out").exists()
    assert export(tmp_path / "pmt", tmp_path / "whole") == 0
    whole = ExportedEoMT.from_pretrained(tmp_path / "whole")
    assert np.isfinite(whole(pixels(height=64, width=64)).class_queries_logits.numpy()).all()
    with pytest.raises(ValueError, match="encoder"):
        ExportedEoMT.from_pretrained(tmp_path / "whole", encoder=whole)
