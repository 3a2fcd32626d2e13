"""Post-processing: equal to the authors' numbers and to their rules in reference.py; batches, types, memory, errors."""

import inspect
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from safetensors.torch import load_file
from transformers.models.eomt.image_processing_eomt import EomtImageProcessor as BuiltIn
from transformers.models.mask2former.image_processing_mask2former import convert_segmentation_to_rle

from eomt.image_processing import EoMTImageProcessor, placement
from eomt.image_processing.instance import encoded_instances, instance_segmentation
from eomt.image_processing.panoptic import panoptic_segmentation
from eomt.image_processing.semantic import semantic_scores, semantic_segmentation
from eomt.speed.measure import extra_cpu_bytes
from tests.image_processing import reference
from tests.models import GOLDEN

POST, POST_META = load_file(GOLDEN / "postprocess.safetensors"), json.loads((GOLDEN / "postprocess.json").read_text())
PRE, PRE_META = load_file(GOLDEN / "preprocess.safetensors"), json.loads((GOLDEN / "preprocess.json").read_text())


def outputs(masks, classes, offsets=None):
    return SimpleNamespace(masks_queries_logits=masks, class_queries_logits=classes, patch_offsets=offsets)


def random_outputs(queries=12, classes=5, grid=16, batch=1, seed=0, confidence=6.0):
    """Smooth random masks, confident classes."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(batch, queries, 5, 5, generator=generator) * 6
    masks = torch.nn.functional.interpolate(coarse, size=(grid, grid), mode="bicubic")
    logits = torch.randn(batch, queries, classes + 1, generator=generator) * confidence
    return outputs(masks, logits)


class TestGolden:
    processor = EoMTImageProcessor(task="panoptic", size=64, stuff_label_ids=POST_META["stuff_classes"])
    out = outputs(POST["mask_logits"], POST["class_logits"])
    targets = [tuple(POST_META["target_size"])] * 2

    def test_panoptic(self):
        for b, result in enumerate(self.processor.post_process_panoptic_segmentation(self.out, self.targets)):
            golden = POST[f"panoptic.{b}"]
            labels = torch.tensor([s["label_id"] for s in result["segments_info"]] + [POST_META["num_classes"]])
            assert torch.equal(result["segmentation"], golden[..., 1].int())
            assert torch.equal(labels[result["segmentation"]], golden[..., 0].long())

    def test_instance(self):
        out = outputs(POST["mask_logits"][:1], POST["class_logits"][:1])
        top_k = POST_META["topk"]
        result = self.processor.post_process_instance_segmentation(
            out, self.targets[:1], top_k=top_k, return_binary_maps=True
        )[0]
        assert torch.equal(result["segmentation"], POST["instance.masks"].bool())
        assert [s["label_id"] for s in result["segments_info"]] == POST["instance.labels"].tolist()
        scores = torch.tensor([s["score"] for s in result["segments_info"]])
        torch.testing.assert_close(scores, POST["instance.scores"], atol=1e-6, rtol=0)

    def test_semantic_scores(self):
        scores = semantic_scores(POST["mask_logits"][:1], POST["class_logits"][:1], placement(64, 64, 64))
        expected = POST["semantic_scores_at_input_size"][0].float()
        torch.testing.assert_close(scores, expected, atol=5e-4, rtol=1e-3)

    @pytest.mark.parametrize("i", range(len(PRE_META["cases"])))
    def test_stitching(self, i):
        """The golden windows hold class scores. Here each class has a query with these scores as its mask."""
        case = PRE_META["cases"][i]
        scores = PRE[f"{i}.window_logits"].float()  # (V, C, 64, 64), any real numbers
        low, high = scores.min() - 1, scores.max() + 1
        share = (scores - low) / (high - low)  # in (0, 1), with the same argmax
        classes = torch.full((len(scores), scores.shape[1], scores.shape[1] + 1), -100.0)
        classes[:, range(scores.shape[1]), range(scores.shape[1])] = 100.0
        processor = EoMTImageProcessor(task="semantic", size=64)
        out = outputs(share.logit(), classes, [torch.tensor(w) for w in case["windows"]])
        result = processor.post_process_semantic_segmentation(out, [(case["height"], case["width"])])[0]
        clear = PRE[f"{i}.semantic_margin_ok"]
        assert clear.float().mean() > 0.9
        assert torch.equal(result[clear], PRE[f"{i}.semantic_labels"].int()[clear])


@settings(max_examples=40, deadline=None)
@given(h=st.integers(1, 330), w=st.integers(1, 330), seed=st.integers(0, 1000), s_h=st.integers(16, 64))
def test_panoptic_equals_the_written_rule(h, w, seed, s_h):
    out = random_outputs(seed=seed)
    place = placement(h, w, {"height": s_h, "width": 48})
    args = out.masks_queries_logits[0], out.class_queries_logits[0], place
    expected, expected_segments = reference.panoptic(*args, stuff=(0, 1), threshold=0.5, overlap=0.6)
    result, segments = panoptic_segmentation(
        *args, threshold=0.5, overlap_mask_area_threshold=0.6, stuff_classes=[0, 1]
    )
    assert segments == expected_segments
    assert result.dtype == torch.int32
    assert (result != expected).float().mean() <= 1e-3  # pixels on outlines, by rounding


@settings(max_examples=40, deadline=None)
@given(h=st.integers(1, 330), w=st.integers(1, 330), seed=st.integers(0, 1000), top_k=st.integers(1, 40))
def test_instances_equal_the_written_rule(h, w, seed, top_k):
    out = random_outputs(seed=seed)
    args = out.masks_queries_logits[0], out.class_queries_logits[0], placement(h, w, 48)
    masks, labels, scores = reference.instances(*args, top_k)
    result, segments = instance_segmentation(*args, top_k=top_k, return_binary_maps=True)
    torch.testing.assert_close(torch.tensor([s["score"] for s in segments]), scores, atol=1e-4, rtol=0)
    apart = torch.ones(len(scores), dtype=torch.bool)
    apart[1:] &= (scores[1:] - scores[:-1]).abs() > 1e-4
    apart[:-1] &= apart[1:].clone()
    assert result.shape == masks.shape
    assert (result[apart] != masks[apart]).float().sum() <= 1e-3 * masks[apart].numel()
    assert torch.equal(torch.tensor([s["label_id"] for s in segments])[apart], labels[apart])


@settings(max_examples=20, deadline=None)
@given(h=st.integers(1, 330), w=st.integers(1, 330), seed=st.integers(0, 1000), top_k=st.integers(1, 40))
def test_encoded_instances_equal_the_binary_maps(h, w, seed, top_k):
    out = random_outputs(seed=seed)
    args = out.masks_queries_logits[0], out.class_queries_logits[0], placement(h, w, 48)
    maps, segments = instance_segmentation(*args, top_k=top_k, return_binary_maps=True)
    masks, labels, scores = encoded_instances(*args, top_k=top_k)
    assert labels == [s["label_id"] for s in segments]
    assert scores == [s["score"] for s in segments]
    assert masks == [coco_mask.encode(np.asfortranarray(m.numpy().view(np.uint8))) for m in maps]


@settings(max_examples=40, deadline=None)
@given(h=st.integers(1, 300), w=st.integers(1, 300), seed=st.integers(0, 1000), windowed=st.booleans())
def test_semantic_equals_the_written_rule(h, w, seed, windowed):
    if max(h / w, w / h) > 20:
        return
    place = placement(h, w, {"height": 32, "width": 48}, windowed=windowed)
    out = random_outputs(seed=seed, batch=len(place.windows), confidence=2.0)
    expected = reference.semantic_scores(out.masks_queries_logits, out.class_queries_logits, place)
    scores = semantic_scores(out.masks_queries_logits, out.class_queries_logits, place)
    torch.testing.assert_close(scores, expected, atol=2e-4, rtol=0)
    labels, confidence = semantic_segmentation(out.masks_queries_logits, out.class_queries_logits, place)
    torch.testing.assert_close(confidence, expected.amax(0).clamp(max=1), atol=2e-4, rtol=0)
    top = expected.topk(2, dim=0).values
    clear = top[0] - top[1] > 1e-3
    assert torch.equal(labels[clear], expected.argmax(0).int()[clear])


def test_the_map_without_overlap_follows_from_the_binary_maps():
    processor = EoMTImageProcessor(task="instance", size=48)
    out, sizes = random_outputs(queries=20, seed=3), [(90, 70)]
    whole = processor.post_process_instance_segmentation(out, sizes, threshold=0.3, return_binary_maps=True)[0]
    flat = processor.post_process_instance_segmentation(out, sizes, threshold=0.3)[0]
    scores = [s["score"] for s in whole["segments_info"]]
    assert scores == sorted(scores, reverse=True)
    assert min(scores) >= 0.3
    expected, listed = torch.full(sizes[0], -1, dtype=torch.int32), []
    for mask, segment in zip(whole["segmentation"], whole["segments_info"]):
        free = mask & (expected == -1)
        if free.any():
            expected[free] = len(listed)
            listed.append({**segment, "id": len(listed)})
    assert 0 < len(listed) < len(scores)  # some are covered entirely
    assert flat["segments_info"] == listed
    assert torch.equal(flat["segmentation"], expected)
    runs = processor.post_process_instance_segmentation(out, sizes, threshold=0.3, return_coco_annotation=True)[0]
    theirs = convert_segmentation_to_rle(expected)[-len(listed) :]  # without void, which is first
    assert (runs["segmentation"], runs["segments_info"]) == (theirs, listed)
    with pytest.raises(ValueError, match="return_coco_annotation"):
        processor.post_process_instance_segmentation(out, sizes, return_binary_maps=True, return_coco_annotation=True)


def test_stuff_is_merged_and_things_are_not():
    masks = torch.full((1, 3, 16, 16), -9.0)
    masks[0, 0, :4], masks[0, 1, 8:12], masks[0, 2, 12:] = 9.0, 9.0, 9.0
    classes = torch.full((1, 3, 4), -9.0)
    classes[0, :, 1] = 9.0
    processor = EoMTImageProcessor(size=64, stuff_label_ids=[1])
    merged = processor.post_process_panoptic_segmentation(outputs(masks, classes), [(64, 64)])[0]
    assert [(s["id"], s["label_id"], s["was_fused"]) for s in merged["segments_info"]] == [(0, 1, True)]
    assert merged["segmentation"].unique().tolist() == [-1, 0]
    apart = processor.post_process_panoptic_segmentation(outputs(masks, classes), [(64, 64)], stuff_classes=[])[0]
    assert [s["id"] for s in apart["segments_info"]] == [0, 1, 2]
    apart = processor.post_process_panoptic_segmentation(outputs(masks, classes), [(64, 64)], label_ids_to_fuse=set())
    assert [s["id"] for s in apart[0]["segments_info"]] == [0, 1, 2]


def test_a_map_without_segments_is_void_and_int32():
    out = random_outputs()
    out.class_queries_logits[..., -1] += 100
    processor = EoMTImageProcessor(size=64)
    for method in (processor.post_process_panoptic_segmentation, processor.post_process_instance_segmentation):
        result = method(out, [(20, 30)], threshold=0.5)[0]
        assert result["segments_info"] == []
        assert result["segmentation"].dtype == torch.int32
        assert torch.equal(result["segmentation"], torch.full((20, 30), -1, dtype=torch.int32))


def test_a_batch_has_the_results_of_its_images():
    out = random_outputs(batch=3, seed=5)
    processor = EoMTImageProcessor(size=64)
    sizes = [(40, 60), (64, 64), (90, 20)]
    together = processor.post_process_panoptic_segmentation(out, sizes, threshold=0.5)
    for i, size in enumerate(sizes):
        one = outputs(out.masks_queries_logits[i : i + 1], out.class_queries_logits[i : i + 1])
        alone = processor.post_process_panoptic_segmentation(one, [size], threshold=0.5)[0]
        assert torch.equal(alone["segmentation"], together[i]["segmentation"])
        assert alone["segments_info"] == together[i]["segments_info"]
    at_input = processor.post_process_panoptic_segmentation(out, size={"height": 32, "width": 48})
    assert [tuple(r["segmentation"].shape) for r in at_input] == [(32, 48)] * 3
    assert tuple(processor.post_process_semantic_segmentation(out)[0].shape) == (64, 64)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_outputs_are_computed_in_fp32(dtype):
    out = random_outputs(seed=2)
    half = outputs(out.masks_queries_logits.to(dtype), out.class_queries_logits.to(dtype))
    same = outputs(half.masks_queries_logits.float(), half.class_queries_logits.float())
    processor = EoMTImageProcessor(size=64)
    before = torch.get_float32_matmul_precision()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        a = processor.post_process_panoptic_segmentation(half, [(50, 70)], threshold=0.5)[0]
    b = processor.post_process_panoptic_segmentation(same, [(50, 70)], threshold=0.5)[0]
    assert torch.equal(a["segmentation"], b["segmentation"])
    assert a["segments_info"] == b["segments_info"]
    assert torch.get_float32_matmul_precision() == before


def test_offsets_of_windows_may_have_every_form():
    processor = EoMTImageProcessor(task="semantic", size=32)
    sizes = [(40, 100), (64, 30)]
    rows = [(i, *o) for i, size in enumerate(sizes) for o in processor.place(*size).offsets]
    out = random_outputs(batch=len(rows), seed=1, confidence=2.0)
    masks, classes = out.masks_queries_logits, out.class_queries_logits
    counts = [sum(r[0] == i for r in rows) for i in range(2)]
    as_list = processor.post_process_semantic_segmentation(
        outputs(masks, classes, [torch.tensor(r) for r in rows]), sizes
    )
    as_tensor = processor.post_process_semantic_segmentation(outputs(masks, classes, torch.tensor(rows)), sizes)
    nested = [[torch.tensor((0, *r[1:])) for r in rows if r[0] == i] for i in range(2)]
    split = outputs(list(masks.split(counts)), list(classes.split(counts)), nested)
    as_nested = processor.post_process_semantic_segmentation(split, sizes)
    for a, b, c, size in zip(as_list, as_tensor, as_nested, sizes):
        assert a.shape == size
        assert torch.equal(a, b)
        assert torch.equal(a, c)
    single = outputs(masks[: counts[0]][None], classes[: counts[0]][None], nested[0])  # an image of a pipeline's batch
    assert torch.equal(processor.post_process_semantic_segmentation(single, sizes[:1])[0], as_list[0])


TWO_CLASSES = torch.tensor([[[9.0, -9, -9], [-9, 9.0, -9]]])  # class logits of a query of class 0 and one of class 1


def test_padding_is_removed_from_semantic_maps():
    masks = torch.full((1, 2, 16, 16), -9.0)
    masks[0, 0, :4], masks[0, 1, 4:] = 9.0, 9.0  # an image of 32 × 64 fills the upper half: class 0, then class 1
    processor = EoMTImageProcessor(task="semantic", size=64, do_pad=True)
    result = processor.post_process_semantic_segmentation(outputs(masks, TWO_CLASSES), [(32, 64)])[0]
    assert (result[:15] == 0).all()
    assert (result[17:] == 1).all()


def test_semantic_maps_without_target_sizes_are_those_of_the_windows():
    masks = torch.full((1, 2, 16, 16), -9.0)
    masks[0, 0, :, :8], masks[0, 1, :, 8:] = 9.0, 9.0  # class 0 on the left, class 1 on the right
    processor = EoMTImageProcessor(task="semantic", size={"shortest_edge": 64, "longest_edge": 128})
    result = processor.post_process_semantic_segmentation(outputs(masks, TWO_CLASSES))[0]
    assert (result[:, :31] == 0).all()
    assert (result[:, 33:] == 1).all()
    assert torch.equal(result, processor.post_process_semantic_segmentation(outputs(masks, TWO_CLASSES), [(64, 64)])[0])


@pytest.mark.parametrize("task", ["panoptic", "semantic"])
def test_without_padding_the_map_has_the_inputs_shape(task):
    processor = EoMTImageProcessor(task=task, size=64, do_pad=False, do_split_image=False)
    assert processor(np.zeros((30, 60, 3), np.uint8), return_tensors="pt")["pixel_values"].shape[-2:] == (32, 64)
    out = random_outputs()
    out = outputs(out.masks_queries_logits[..., :8, :], out.class_queries_logits)
    found = getattr(processor, f"post_process_{task}_segmentation")(out)[0]
    assert (found if task == "semantic" else found["segmentation"]).shape == (32, 64)


def test_scores_on_request_and_confidence():
    processor = EoMTImageProcessor(task="semantic", size=32, do_pad=True)
    out = random_outputs(confidence=2.0)
    full = processor.post_process_semantic_segmentation(out, [(40, 50)], return_segmentation_scores=True)[0]
    confident = processor.post_process_semantic_confidence(out, [(40, 50)])[0]
    assert full.segmentation_scores.shape == (5, 40, 50)
    torch.testing.assert_close(confident["confidence"], full.segmentation_scores.amax(0).clamp(max=1))
    assert confident["confidence"].max() == 1  # clipped: scores of queries of one class add up beyond 1
    assert torch.equal(confident["segmentation"], full.segmentation)


def test_errors_name_the_value():
    out = random_outputs(batch=2)
    processor = EoMTImageProcessor(size=64)
    with pytest.raises(ValueError, match="3 target_sizes"):
        processor.post_process_panoptic_segmentation(out, [(4, 4)] * 3)
    windows = outputs(out.masks_queries_logits, out.class_queries_logits, [(0, 0, 64), (0, 43, 107)])
    with pytest.raises(ValueError, match="patch_offsets"):
        processor.post_process_panoptic_segmentation(windows, [(60, 100)])
    semantic = EoMTImageProcessor(task="semantic", size=64)
    with pytest.raises(ValueError, match="4 inputs"):
        semantic.post_process_semantic_segmentation(windows, [(50, 200)])


def test_a_processor_has_the_methods_of_its_task():
    semantic, instance = EoMTImageProcessor(task="semantic"), EoMTImageProcessor(task="instance")
    assert not hasattr(semantic, "post_process_panoptic_segmentation")
    assert not hasattr(semantic, "post_process_instance_segmentation")
    assert not hasattr(instance, "post_process_panoptic_segmentation")
    assert hasattr(instance, "post_process_instance_segmentation")
    with pytest.raises(AttributeError, match="task='panoptic'"):
        instance.post_process_panoptic_segmentation(random_outputs())


def test_results_equal_transformers_for_the_same_rules():
    builtin = BuiltIn(size={"shortest_edge": 64, "longest_edge": 64}, do_pad=True)
    processor = EoMTImageProcessor(size=64)
    for seed in range(5):
        out, sizes = random_outputs(seed=seed), [(128, 96)]
        theirs = builtin.post_process_panoptic_segmentation(out, sizes, threshold=0.5, stuff_classes=[0])[0]
        ours = processor.post_process_panoptic_segmentation(out, sizes, threshold=0.5, stuff_classes=[0])[0]
        assert [s["label_id"] for s in ours["segments_info"]] == [s["label_id"] for s in theirs["segments_info"]]
        assert (ours["segmentation"] != theirs["segmentation"]).float().mean() <= 1e-3
        theirs = builtin.post_process_semantic_segmentation(out, [(64, 64)])[0]
        assert (processor.post_process_semantic_segmentation(out, [(64, 64)])[0] != theirs).float().mean() <= 1e-3


def test_memory_is_bounded_by_tiles():
    """200 confident queries at 600 × 600: a tensor per query would be 288 MB."""
    out = random_outputs(queries=200, classes=20, grid=160, seed=0, confidence=12.0)
    place = placement(600, 600, 640)
    masks, classes = out.masks_queries_logits, out.class_queries_logits
    for run in (
        lambda: panoptic_segmentation(masks[0], classes[0], place, threshold=0.2),
        lambda: instance_segmentation(masks[0], classes[0], place),
        lambda: semantic_segmentation(masks, classes, place),
    ):
        assert 0 < extra_cpu_bytes(run) < 100 * 2**20


def test_precision_set_through_either_interface_is_kept_and_not_pinned():
    """torch's precision is global; transformers' `tf32=True` uses the new interface."""
    out, processor, matmul = random_outputs(), EoMTImageProcessor(size=32), torch.backends.cuda.matmul
    try:
        torch.backends.fp32_precision = "tf32"
        processor.post_process_panoptic_segmentation(out, [(20, 32)], threshold=0.1)
        assert matmul.fp32_precision == "tf32"
        torch.backends.fp32_precision = "ieee"  # matmul still follows it
        assert matmul.fp32_precision == "ieee"
        torch.set_float32_matmul_precision("medium")
        processor.post_process_panoptic_segmentation(out, [(20, 32)], threshold=0.1)
        assert (matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision) == ("tf32", "bf16")
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
        for backend in (torch.backends, matmul, torch.backends.mkldnn.matmul):
            backend.fp32_precision = "none"


def test_positional_arguments_equal_the_built_ins():
    for name in ("preprocess", "post_process_instance_segmentation", "post_process_semantic_segmentation"):
        theirs, ours = (inspect.signature(getattr(cls, name)).parameters for cls in (BuiltIn, EoMTImageProcessor))
        positional = [p.name for p in ours.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
        assert positional == [p.name for p in theirs.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    image, ids = np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), np.uint8)
    inputs = EoMTImageProcessor(size=8)([image], [ids], {0: 1})
    assert inputs["class_labels"][0].tolist() == [1]


@pytest.mark.parametrize("task", ["panoptic", "instance", "semantic"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_refused(task, value):
    outputs = SimpleNamespace(
        masks_queries_logits=torch.randn(1, 4, 16, 16), class_queries_logits=torch.full((1, 4, 6), value)
    )
    processor = EoMTImageProcessor(task=task, size=64)
    with pytest.raises(ValueError, match="finite"):
        getattr(processor, f"post_process_{task}_segmentation")(outputs, [(64, 64)])
