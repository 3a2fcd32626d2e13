"""`benchmarks.reproduce`: every row of the paper's tables has a model and a count, or a reason why not."""

import json

import pytest
import torch
from transformers import SwinConfig

from benchmarks import reproduce
from benchmarks.reproduce import TABLES, add_run, deviates, peer_config, read_table
from eomt.speed.candidates import Candidate
from eomt.speed.flops import count_flops
from tests.models import tiny_config, tiny_model

WITHOUT = {"kMaX-DeepLab", "MaskDINO", "OneFormer"}
UNEXPLAINED = {("Mask2Former", "Swin-L")}


@pytest.mark.parametrize("table", TABLES)
def test_every_row_has_a_model_or_a_reason(table):
    rows = read_table(TABLES[table])
    assert [row.number for row in rows] == list(range(1, len(rows) + 1))
    for row in rows:
        if row.model and row.model.is_eomt:
            config = row.model.config
            assert str(config.image_size) in row.printed.image_size
            step = 0 if "Adapter" in row.printed.method and "w/o" not in row.printed.method else None
            step = int(row.printed.method[1]) if row.printed.method[0] == "(" else step
            assert getattr(config, "step", None) == (step if step is not None and step < 4 else None)
        elif row.model:
            assert (row.printed.method, row.printed.backbone) in UNEXPLAINED
        else:
            assert row.notes
            assert row.printed.method in WITHOUT or "ALGM" in row.printed.method or "Depth" in row.printed.pretraining


@pytest.mark.slow  # a minute of counting
@pytest.mark.parametrize("table", TABLES)
def test_counts_equal_the_printed_ones_except_known_rows(table):
    for row in read_table(TABLES[table]):
        reproduce.count(row)
        printed = row.printed
        millions = row.parameters and row.parameters / 1e6
        if deviates(row.gflops, printed.gflops) or deviates(millions, printed.parameters):
            assert (printed.method, printed.backbone) in UNEXPLAINED or row.notes


def test_counts_of_peers_on_the_meta_device_equal_those_on_a_cpu():
    config = peer_config("Swin-L", 19)
    small = {"depths": [1] * 4, "out_features": ["stage1", "stage2", "stage3", "stage4"]}
    config.backbone_config = SwinConfig(embed_dim=8, num_heads=[1, 1, 2, 2], window_size=2, **small)
    row = read_table("Table 5")[0]
    row.model = Candidate("Mask2Former", config, (64, 96), pretrained=False)
    reproduce.count(row)
    model = row.model.load(torch.device("cpu"), torch.float32)
    flops = count_flops(model, **row.model.inputs(1, torch.device("cpu")))
    assert row.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert row.gflops == row.inputs * flops / 1e9


def test_counts_and_runs_are_compared_with_the_printed(tmp_path, monkeypatch, capsys):
    rows = [row for row in read_table("Table 3") if row.printed.backbone == "ViT-S"]
    rows[0].model = None
    rows[1].model = Candidate("tiny", tiny_config(), (64, 64), False, True)
    rows[2].model = Candidate("tiny", tiny_config(), (64, 64), False, False)
    monkeypatch.setattr(reproduce, "read_table", lambda table: rows)
    (tmp_path / "results.json").write_text(json.dumps({"eval_pq": 0.4321, "eval_loss": 1.0}))
    reproduce.main(["3", "--run", f"3={tmp_path}"])
    assert "PQ 44.7 | 43.2" in capsys.readouterr().out
    _, masked, plain = rows
    model = tiny_model()
    model.set_attn_mask_probs([0, 0])
    assert plain.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert plain.gflops == count_flops(model, torch.randn(1, 3, 64, 64)) / 1e9
    assert masked.gflops > plain.gflops
    assert plain.run == {"PQ": pytest.approx(43.21)}


def test_reports_of_bravo_are_read(tmp_path):
    averages = {"mean_iou": {"arithmetic": 0.77, "harmonic": 0.76}, "auprc": {"arithmetic": 0.9, "harmonic": 0.89}}
    reports = {"bravo": {"dataset": "bravo", "metrics": averages}, "cityscapes": {"metrics": {"mean_iou": 0.84}}}
    for name, content in reports.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.json").write_text(json.dumps(content))
    ours, (*_, theirs) = read_table("Table 8")[2], read_table("Table E")
    add_run(ours, tmp_path / "bravo")
    add_run(ours, tmp_path / "cityscapes")
    assert ours.run == {"mIoU out-of-distribution": 77, "mIoU in-distribution": 84}
    add_run(theirs, tmp_path / "bravo")
    assert theirs.run == {"AUPRC out-of-distribution": 90}
    with pytest.raises(ValueError, match="AUPRC out-of-distribution"):
        add_run(theirs, tmp_path / "cityscapes")
