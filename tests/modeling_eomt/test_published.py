"""Authors' checkpoints of differences to DINOv3: by name, with the backbone in a cache of the hub or in a folder."""

import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError
from transformers import AutoModel, AutoModelForUniversalSegmentation, DINOv3ViTConfig, DINOv3ViTModel

from eomt import EoMTForUniversalSegmentation
from eomt.cli import main
from eomt.configuration.labels import LabelSpace
from eomt.loading import load_for_inference, load_model
from eomt.modeling_eomt import convert_to_authors, load_authors_checkpoint
from eomt.modeling_eomt.pretrained import load_config
from eomt.training.arguments import EoMTTrainingArguments
from eomt.training.options import ModelOptions
from eomt.training.start import build_model, starting_point
from tests.models import tiny_model
from tests.predicting import predict, write_photos

NAME = "tue-mps/coco_panoptic_eomt_large_640_dinov3"
BASE = "facebook/dinov3-vits16-pretrain-lvd1689m"  # the backbone of scaled models: the first of the family
SIZE = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 1}


def in_cache(root, name, files) -> None:
    """Write files in the layout of huggingface_hub's cache: links from a snapshot to blobs, and the commit in refs."""
    repository = root / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / ("0" * 40)
    for folder in (repository / "blobs", repository / "refs", snapshot):
        folder.mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    for file in files:
        blob = repository / "blobs" / file.name
        blob.write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(blob)


@pytest.fixture(scope="module")
def trained():
    model = tiny_model("dinov3", num_labels=133, image_size=640, **SIZE)
    model.set_attn_mask_probs([0, 0.5])
    return model


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("base")
    config = DINOv3ViTConfig(**SIZE, intermediate_size=256, num_register_tokens=4)
    DINOv3ViTModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def published(trained, base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    torch.save(convert_to_authors(trained, delta_from=base), folder / "pytorch_model.bin")
    return folder


@pytest.fixture
def hub(published, tmp_path, monkeypatch):
    """A cache with the differences, and no network."""
    in_cache(tmp_path, NAME, [published / "pytorch_model.bin"])
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path


def assert_weights(model, trained) -> None:
    state = model.state_dict()
    for name, tensor in trained.state_dict().items():
        torch.testing.assert_close(state[name], tensor, rtol=0, atol=1e-6)


def test_a_name_loads_from_the_cache(hub, base, trained):
    in_cache(hub, BASE, list(base.iterdir()))
    model, found = EoMTForUniversalSegmentation.from_pretrained(NAME, output_loading_info=True)
    assert_weights(model, trained)
    assert found["missing_keys"] <= {"criterion.empty_weight"}
    assert (model.config.task, model.config.image_size, model.config.id2label[0]) == ("panoptic", 640, "person")
    assert model.name_or_path == NAME
    assert_weights(load_model(NAME), trained)
    larger = EoMTForUniversalSegmentation.from_pretrained(NAME, image_size=1280, dtype=torch.bfloat16)
    assert (larger.config.image_size, larger.query.weight.dtype) == (1280, torch.bfloat16)
    assert larger.attn_mask_probs.tolist() == [0, 0.5]


def test_commands_accept_the_name(hub, base, trained, tmp_path):
    in_cache(hub, BASE, list(base.iterdir()))
    assert load_config(NAME).num_labels == 133
    model, processor = load_for_inference(NAME)
    assert_weights(model, trained)
    assert (processor.task, dict(processor.size)["height"]) == ("panoptic", 640)
    photos = write_photos(tmp_path / "photos")
    assert predict(photos, NAME, tmp_path / "out") == 0
    assert main(["convert", NAME, str(tmp_path / "model")]) == 0
    assert_weights(AutoModelForUniversalSegmentation.from_pretrained(tmp_path / "model"), trained)
    args = EoMTTrainingArguments(output_dir=str(tmp_path / "run"), task="panoptic", report_to=[])
    start = starting_point(ModelOptions(checkpoint=NAME), args)
    labels = LabelSpace.from_config(start.config, NAME)
    assert_weights(build_model(start, ModelOptions(checkpoint=NAME), args, labels, image_size=64), trained)


def test_a_backbone_in_a_folder_replaces_the_hubs(hub, base, published, trained):
    for source in (NAME, published / "pytorch_model.bin"):
        assert_weights(EoMTForUniversalSegmentation.from_pretrained(source, reference_backbone=base), trained)
    model, _ = EoMTForUniversalSegmentation.from_pretrained(
        published, reference_backbone=base, num_labels=3, ignore_mismatched_sizes=True, output_loading_info=True
    )
    assert model.class_predictor.weight.shape == (4, 64)
    assert torch.equal(model.query.weight, trained.query.weight)


def test_auto_classes_load_a_folder_with_a_configuration(published, base, trained, tmp_path):
    (tmp_path / "pytorch_model.bin").symlink_to(published / "pytorch_model.bin")
    trained.config.save_pretrained(tmp_path)
    model = AutoModelForUniversalSegmentation.from_pretrained(tmp_path, reference_backbone=base)
    assert_weights(model, trained)


def gated(*_, **__):
    raise OSError("gated") from GatedRepoError.__new__(GatedRepoError)


@pytest.mark.parametrize("way", ["name", "command", "file"])
@pytest.mark.parametrize("reason", ["absent", "gated"])
def test_an_absent_or_gated_backbone_is_named(way, reason, hub, published, trained, tmp_path, monkeypatch, capsys):
    if reason == "gated":
        monkeypatch.setattr(AutoModel, "from_pretrained", gated)
    if way == "command":
        assert main(["convert", NAME, str(tmp_path / "model")]) == 2
        assert BASE in capsys.readouterr().err
        assert not (tmp_path / "model").exists()
        return
    load, arguments = EoMTForUniversalSegmentation.from_pretrained, (NAME,)
    if way == "file":
        load, arguments = load_authors_checkpoint, (published / "pytorch_model.bin", trained.config)
    with pytest.raises(ValueError, match=BASE):
        load(*arguments)


@pytest.mark.parametrize(("other", "value"), [
    ({"hidden_size": 128, "num_attention_heads": 2}, "width 128"), ({"num_hidden_layers": 2}, "depth 2"),
    ({"intermediate_size": 128}, "128"), ({"use_gated_mlp": True}, "gate_proj"),
])  # fmt: skip
def test_a_backbone_of_another_size_is_refused(other, value, published, tmp_path):
    config = DINOv3ViTConfig(**{**SIZE, "intermediate_size": 256, "num_register_tokens": 4, **other})
    DINOv3ViTModel(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=value):
        EoMTForUniversalSegmentation.from_pretrained(published, reference_backbone=tmp_path)


def test_a_reference_for_a_saved_model_is_refused(trained, base, tmp_path):
    trained.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="reference_backbone"):
        EoMTForUniversalSegmentation.from_pretrained(tmp_path, reference_backbone=base)
