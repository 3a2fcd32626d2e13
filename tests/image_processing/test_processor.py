"""The processors: equal to the authors' pixels, two back ends, every kind of image, files of transformers and ours."""

import base64
import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoImageProcessor
from transformers.models.eomt.image_processing_eomt import EomtImageProcessor as BuiltIn

from eomt.configuration.labels import label_space
from eomt.image_processing import (
    EoMTImageProcessor,
    EomtImageProcessor,
    EoMTImageProcessorPil,
    EomtImageProcessorPil,
    read_image,
)
from tests.models import GOLDEN, tiny_config, turned_png

PRE, META = load_file(GOLDEN / "preprocess.safetensors"), json.loads((GOLDEN / "preprocess.json").read_text())
BACKENDS = [EoMTImageProcessor, EoMTImageProcessorPil]


def picture(height=30, width=50, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("task", ["panoptic", "semantic"])
@pytest.mark.parametrize("i", range(len(META["cases"])))
def test_pixels_equal_the_authors(backend, task, i):
    processor = backend(task=task, size=64, do_rescale=False, do_normalize=False)
    result = processor(PRE[f"{i}.image"], return_tensors="pt")
    golden = PRE[f"{i}.padded"][None] if task == "panoptic" else PRE[f"{i}.windows"]
    assert torch.equal(result["pixel_values"], golden.float())
    if task == "semantic":
        assert [o.tolist() for o in result["patch_offsets"]] == META["cases"][i]["windows"]
    else:
        assert result["patch_offsets"] == []


@pytest.mark.parametrize("backend", BACKENDS)
def test_normalization_equals_the_authors_and_padding_is_black(backend):
    image = picture(20, 40)
    values = backend(size=40)(image, return_tensors="pt")["pixel_values"][0]
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = (torch.from_numpy(image) / 255 - mean) / std
    torch.testing.assert_close(values[:, :20], expected.permute(2, 0, 1), atol=2e-6, rtol=0)
    torch.testing.assert_close(values[:, 20:], (-mean / std)[:, None, None].expand(3, 20, 40), atol=1e-6, rtol=0)


@pytest.mark.parametrize("statistics", [{}, {"image_mean": 0.5, "image_std": 0.25}])
@pytest.mark.parametrize("task", ["panoptic", "semantic"])
def test_back_ends_agree(task, statistics):
    images = [picture(30, 50), picture(80, 20, 1), Image.fromarray(picture(64, 64, 2)), picture(9, 7, 3) / 255.0]
    maps = [np.arange(h * w).reshape(h, w) % 4 for h, w in ((30, 50), (80, 20), (64, 64), (9, 7))]
    processors = [cls(task=task, size=32, **statistics) for cls in BACKENDS]
    a, b = (processor(images, segmentation_maps=maps, return_tensors="pt") for processor in processors)
    torch.testing.assert_close(a["pixel_values"], b["pixel_values"], atol=1e-5, rtol=0)
    for key in ("mask_labels", "class_labels", "patch_offsets"):
        assert all(torch.equal(x, y) for x, y in zip(a[key], b[key], strict=True))
    assert a["mask_labels"]


@pytest.mark.parametrize("mode", ["L", "P", "1", "RGBA", "LA", "CMYK", "YCbCr", "I;16", "I", "F", "RGBa"])
def test_every_image_mode_is_read(mode):
    gray = np.tile(np.arange(0, 240, 4, dtype=np.uint8), (40, 1))  # 40 × 60
    if mode == "I;16":
        image = Image.fromarray(gray.astype(np.uint16) * 257)
        assert image.mode == "I;16"
    elif mode in ("I", "F"):
        image = Image.fromarray(gray.astype(np.int32 if mode == "I" else np.float32))
    elif mode == "RGBa":
        image = Image.fromarray(gray).convert("RGBA").convert("RGBa")
    elif mode == "P":
        image = Image.fromarray(gray).convert("RGB").convert("P", palette=Image.Palette.ADAPTIVE)
    else:
        image = Image.fromarray(gray).convert("RGB").convert(mode)
    values = EoMTImageProcessor(size=60, do_normalize=False)(image, return_tensors="pt")["pixel_values"][0, :, :40]
    if mode == "1":
        assert values.unique().tolist() == [0.0, 1.0]
    else:
        tolerance = 6 if mode in ("P", "YCbCr") else 1  # these two are coarser
        assert (values * 255 - torch.from_numpy(gray)).abs().max() <= tolerance


def test_exif_orientation_is_applied_to_files_only(tmp_path):
    image, processor = Image.fromarray(picture(20, 40)), EoMTImageProcessor(size=40)
    path = tmp_path / "a.png"
    path.write_bytes(turned_png(image))
    stored = processor(image, return_tensors="pt").pixel_values
    upright = processor(image.transpose(Image.Transpose.ROTATE_270), return_tensors="pt").pixel_values
    assert torch.equal(processor(Image.open(path), return_tensors="pt").pixel_values, stored)
    for source in (path, str(path), [path], base64.b64encode(path.read_bytes()).decode()):
        assert torch.equal(processor(source, return_tensors="pt").pixel_values, upright)
    # with a map, the image has the orientation of the map
    for size, expected in (((20, 40), stored), ((40, 20), upright)):
        inputs = processor(path, segmentation_maps=np.zeros(size, np.uint8), return_tensors="pt")
        assert torch.equal(inputs.pixel_values, expected)
    square = Image.fromarray(picture(40, 40))  # fits both ways, and is turned as without a map
    path.write_bytes(turned_png(square))
    inputs = processor(path, segmentation_maps=np.zeros((40, 40), np.uint8), return_tensors="pt")
    assert torch.equal(inputs.pixel_values, processor(path, return_tensors="pt").pixel_values)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_a_damaged_exif_header_is_ignored(tmp_path):
    image, path = Image.fromarray(picture(20, 40)), tmp_path / "a.jpg"
    image.save(path, exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    image.save(tmp_path / "b.jpg", exif=b"Exif\0\0no tiff header")
    for file in (path, tmp_path / "b.jpg"):
        assert read_image(file).size == (40, 20)
        assert EoMTImageProcessor(size=40)(file, return_tensors="pt").pixel_values.shape == (1, 3, 40, 40)


@pytest.mark.parametrize("backend", BACKENDS)
def test_floats_up_to_one_are_not_rescaled_again(backend):
    expected = backend(size=50)(picture(), return_tensors="pt").pixel_values
    scaled = picture().astype(np.float32) / 255
    found = backend(size=50)(scaled, return_tensors="pt").pixel_values
    torch.testing.assert_close(found, expected, atol=0.03, rtol=0)  # uint8 rounds while resizing
    found = backend(size=50, do_rescale=False)(scaled, return_tensors="pt").pixel_values
    torch.testing.assert_close(found, expected, atol=0.03, rtol=0)
    found = backend(size=50)(Image.fromarray(scaled[..., 0]), return_tensors="pt").pixel_values  # a float TIFF
    expected = backend(size=50)(picture()[..., 0], return_tensors="pt").pixel_values
    torch.testing.assert_close(found, expected, atol=0.03, rtol=0)


@pytest.mark.parametrize("array", [
    picture()[..., 0], picture()[..., :1], picture().transpose(2, 0, 1),
    np.concatenate([picture(), picture()[..., :1]], -1), torch.from_numpy(picture()).permute(2, 0, 1),
    picture().astype(np.float32), picture().astype(np.uint16) * 257, picture()[..., 0].astype(np.int32) * 257,
    torch.from_numpy(picture()).long() * 257,
], ids=["HW", "HW1", "CHW", "RGBA", "tensor", "float", "uint16", "int32", "int64"])  # fmt: skip
def test_every_shape_and_type_of_array_is_read(array):
    processor = EoMTImageProcessor(size=50)
    values = processor(array, return_tensors="pt")["pixel_values"]
    assert values.shape == (1, 3, 50, 50)
    rgb = picture() if 3 in array.shape or 4 in array.shape else np.repeat(picture()[..., :1], 3, -1)
    torch.testing.assert_close(values, processor(rgb, return_tensors="pt")["pixel_values"], atol=1e-4, rtol=0)


def test_a_batch_of_many_sizes_and_a_single_image():
    processor = EoMTImageProcessor(task="semantic", size=32)
    batch = processor([picture(40, 90), picture(32, 32)], return_tensors="pt")
    assert [o.tolist()[0] for o in batch["patch_offsets"]] == [0, 0, 0, 1]
    alone = processor(picture(40, 90), return_tensors="pt")
    assert torch.equal(batch["pixel_values"][:3], alone["pixel_values"])
    assert isinstance(processor(picture())["pixel_values"], list)
    assert len(processor([[picture(32, 32)], [picture(32, 32)]], return_tensors="pt")["pixel_values"]) == 2
    stack = torch.from_numpy(np.stack([picture(32, 32, i) for i in range(3)])).permute(0, 3, 1, 2)
    assert len(processor(stack, return_tensors="pt")["pixel_values"]) == 3


@pytest.mark.parametrize(("given", "pad", "split"), [
    ({}, True, False),
    ({"task": "instance"}, True, False),
    ({"task": "semantic"}, False, True),
    ({"task": "semantic", "do_pad": True}, True, False),
    ({"task": "semantic", "do_split_image": False}, True, False),
    ({"task": "panoptic", "do_split_image": True}, False, True),
    ({"task": "panoptic", "do_pad": False}, False, False),
])  # fmt: skip
def test_the_task_decides_unless_keywords_do(given, pad, split):
    processor = EoMTImageProcessor(**given)
    assert (processor.do_pad, processor.do_split_image) == (pad, split)
    loaded = EoMTImageProcessor.from_dict(processor.to_dict())
    assert (loaded.do_pad, loaded.do_split_image, loaded.task) == (pad, split, processor.task)


def test_keywords_hold_for_one_call():
    processor = EoMTImageProcessor(size=64)
    assert processor(picture(), size=32, return_tensors="pt")["pixel_values"].shape == (1, 3, 32, 32)
    windows = processor(picture(20, 50), size={"height": 20, "width": 20}, do_split_image=True, return_tensors="pt")
    assert windows["pixel_values"].shape == (3, 3, 20, 20)
    processor.size = {"height": 16, "width": 24}
    assert processor(picture(), return_tensors="pt")["pixel_values"].shape == (1, 3, 16, 24)
    unpadded = processor(picture(30, 60), size=60, do_pad=False, do_split_image=False, return_tensors="pt")
    assert unpadded["pixel_values"].shape == (1, 3, 30, 60)


@pytest.mark.parametrize("task", ["panoptic", "instance", "semantic"])
def test_plain_transformers_reads_saved_files(tmp_path, task):
    EoMTImageProcessor(task=task, size=64, stuff_label_ids=[3, 4]).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert saved["image_processor_type"] == "EomtImageProcessor"
    theirs = BuiltIn.from_pretrained(tmp_path)
    image = picture(64, 96)
    found = EoMTImageProcessor.from_pretrained(tmp_path)(image, return_tensors="pt")["pixel_values"]
    expected = theirs(image, return_tensors="pt")["pixel_values"]
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < 0.02
    for alias, cls in ((EomtImageProcessor, EoMTImageProcessor), (EomtImageProcessorPil, EoMTImageProcessorPil)):
        loaded = alias.from_pretrained(tmp_path)
        assert type(loaded) is cls
        assert (loaded.task, loaded.stuff_label_ids) == (task, [3, 4])
        assert torch.equal(loaded(image, return_tensors="pt")["pixel_values"], found)


def test_files_of_the_built_in_are_read(tmp_path):
    cases = [
        ({"do_pad": True, "size": {"shortest_edge": 64, "longest_edge": 64}}, "panoptic", True),
        ({"do_split_image": True, "size": {"shortest_edge": 64, "longest_edge": None}}, "semantic", False),
        ({}, "panoptic", True),  # the task decides
    ]
    for settings, task, pad in cases:
        BuiltIn(**settings).save_pretrained(tmp_path)
        processor = EomtImageProcessor.from_pretrained(tmp_path)
        assert (processor.task, processor.do_pad, processor.do_split_image) == (task, pad, not pad)
        assert EoMTImageProcessor.from_pretrained(tmp_path, task="instance").task == "instance"
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"do_pad": "yes"}))
    with pytest.raises(ValueError, match="do_pad is 'yes'"):
        EoMTImageProcessor.from_pretrained(tmp_path)


def test_paths_and_missing_files(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(picture()).save(path)
    processor = EoMTImageProcessor(size=64)
    by_path = processor(str(path), return_tensors="pt")["pixel_values"]
    assert torch.equal(by_path, processor(picture(), return_tensors="pt")["pixel_values"])
    labels = np.arange(30 * 50, dtype=np.uint8).reshape(30, 50) // 200
    Image.fromarray(labels).save(tmp_path / "labels.png")
    expected = processor(picture(), segmentation_maps=labels, return_tensors="pt")
    for image, file in ((path, tmp_path / "labels.png"), ([path], [tmp_path / "labels.png"])):
        found = processor(image, segmentation_maps=file, return_tensors="pt")
        assert torch.equal(found["pixel_values"], by_path)
        assert torch.equal(found["mask_labels"][0], expected["mask_labels"][0])
    with pytest.raises(FileNotFoundError):
        read_image(tmp_path / "none.png")


@pytest.mark.parametrize(("call", "value"), [
    (lambda: EoMTImageProcessor(task="depth"), "'depth'"),
    (lambda: EoMTImageProcessor(size={"min_pixels": 4, "max_pixels": 9}), "size"),
    (lambda: EoMTImageProcessor(size=8)(np.zeros((9, 9, 7))), r"\(9, 9, 7\)"),
    (lambda: EoMTImageProcessor(size=8)([{"image": 1}]), "image"),
    (lambda: EoMTImageProcessor(size=8)(picture(), task="semantic"), "'semantic'"),
    (lambda: EoMTImageProcessor(task="semantic", size=512)(np.zeros((2000, 2, 3), np.uint8)), "2000 × 2"),
])  # fmt: skip
def test_wrong_input_is_named(call, value):
    with pytest.raises(ValueError, match=value):
        call()


@pytest.mark.parametrize("task", ["panoptic", "instance"])
def test_a_semantic_processor_pads_for_another_task(task, tmp_path):
    EoMTImageProcessor(task="semantic", size=64).save_pretrained(tmp_path)
    processor = EoMTImageProcessor.from_pretrained(tmp_path, task=task)
    assert (processor.do_split_image, processor.do_pad) == (False, True)
    inputs = processor(np.zeros((40, 100, 3), np.uint8), return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 3, 64, 64)
    assert EoMTImageProcessor.from_pretrained(tmp_path).do_split_image
    assert EoMTImageProcessor.from_pretrained(tmp_path, task=task, do_split_image=True).do_split_image


def test_stuff_labels_saved_with_the_processor_are_kept(tmp_path):
    """Beside a configuration with none, which is its default."""
    tiny_config(num_labels=7).save_pretrained(tmp_path)
    EoMTImageProcessor(task="panoptic", size=64, stuff_label_ids=[3, 4]).save_pretrained(tmp_path)
    assert AutoImageProcessor.from_pretrained(tmp_path).stuff_label_ids == [3, 4]


@pytest.mark.parametrize("backend", BACKENDS)
def test_arrays_that_torch_cannot_wrap(backend):
    """Reversed, of another byte order, of 32 bits; floats that overshoot 0 to 1 after a resampling."""
    processor, image = backend(task="panoptic", size=64), picture(30, 40)
    expected = processor(image, return_tensors="pt")["pixel_values"]
    fractions = image.astype(np.float64) / 255
    fractions[0, 0], fractions[-1, -1] = -0.02, 1.02
    for other in (
        image[..., ::-1].copy()[..., ::-1],
        (257 * image.astype(np.uint16)).astype(">u2"),
        image.astype("uint32"),
    ):
        assert torch.equal(processor(other, return_tensors="pt")["pixel_values"], expected)
    found = processor(fractions.astype(">f4"), return_tensors="pt")["pixel_values"]
    assert (found - expected).abs().mean() < 0.02


def test_stuff_labels_of_another_models_classes_are_dropped(tmp_path):
    """The processor of a COCO model in the folder of a model of other classes."""
    coco = label_space("coco_panoptic")
    EoMTImageProcessor(task="panoptic", size=64, stuff_label_ids=list(coco.stuff_label_ids)).save_pretrained(tmp_path)
    names = {label: f"part {label}" for label in range(100)} | {95: coco.names[95]}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "eomt", "id2label": names}))
    assert AutoImageProcessor.from_pretrained(tmp_path).stuff_label_ids == [95]
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "eomt", "id2label": names, "stuff_label_ids": [3]}))
    assert AutoImageProcessor.from_pretrained(tmp_path).stuff_label_ids == [3]
