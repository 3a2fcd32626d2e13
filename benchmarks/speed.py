"""Ours against the model and the processor built into transformers: the same weights, inputs and results, in turn.

python -m benchmarks speed
python -m benchmarks.speed --image-size 64 --repeats 1      # small, to test the script; its ratios mean nothing

Each row has the median seconds of ours and of the other, their ratio, and the peak memory of the CPU tensors that they
allocate. In bf16, too, if the processor has it. The comparisons:

- photo to panoptic segments, from padding to post-processing: ViT-B, a quarter of the queries confident, photos of
  COCO's size and of 3 megapixels; the forward pass alone
- post-processing for the larger photo, with 20 of 200 queries confident as on COCO, or all. Targets: 10 × for panoptic
  and instance, below 1 GiB for every task
- a training step of ViT-S: 2 images of 12 segments, masked attention, called as in `EoMTTrainer`
- augmentation of an id map against one mask per segment: large-scale jitter of an image of COCO's size, one thread
"""

import argparse
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as V2
from transformers import EomtImageProcessor

from eomt import EoMTImageProcessor
from eomt.speed.measure import extra_cpu_bytes
from eomt.training.augmentation import Geometry, ids_to_positions, positions_to_masks
from eomt.training.defaults import cpu_has_bf16

from .paired import DTYPES, model_pair, paired_seconds, seconds

PHOTOS = ((427, 640), (1500, 2000))  # height, width
TASKS = ("panoptic", "instance", "semantic")
QUERIES, CLASSES = 200, 133
HEADER = f"{'':44}{'ours':>9}{'other':>9}{'ratio':>9}{'MiB ours':>10}{'other':>7}{'ratio':>7}"


def compare(work: str, ours: Callable, theirs: Callable | None, repeats: int, memory: bool = False) -> None:
    """Time ours and the other in turn, and print the row."""
    if theirs:
        fast, slow, ratio = paired_seconds(ours, theirs, repeats)
        cells = [f"{fast:.3f} s", f"{slow:.3f} s", f"{ratio:.2f} ×"]
    else:
        cells = [f"{seconds(ours):.3f} s", "", ""]
    if memory:
        mib = [extra_cpu_bytes(run) / 2**20 for run in (ours, theirs) if run]
        cells += [f"{value:.0f}" for value in mib]
        if theirs:
            cells.append(f"{mib[0] / mib[1]:.2f}")
    row = "".join(f"{cell:>{width}}" for cell, width in zip(cells, (9, 9, 9, 10, 7, 7)))
    print(f"{work:44}{row}", flush=True)


# --- a photo to segments ---------------------------------------------------------------------------------------------


def photo(size: tuple[int, int]) -> Image.Image:
    """Smooth noise of this (height, width)."""
    noise = torch.rand(1, 3, 30, 40, generator=torch.Generator().manual_seed(0))
    pixels = F.interpolate(noise, size, mode="bicubic").clamp(0, 1) * 255
    return Image.fromarray(pixels[0].permute(1, 2, 0).byte().numpy())


@torch.no_grad()
def make_confident(model, share: float = 0.25) -> None:
    """Class logits like those of a trained model: `share` of the queries has a class, the others have none."""
    queries = int(model.config.num_queries * share)

    def sharpen(module, inputs, logits):
        logits = logits.clone()
        logits[:, queries:, -1] += 20
        logits[:, :queries, 0] += 20
        return logits

    model.class_predictor.register_forward_hook(sharpen)


def panoptic_segments(model, processor, image: Image.Image, dtype: torch.dtype) -> list[dict]:
    """Panoptic segments of a photo at its size."""
    inputs = processor(image, return_tensors="pt").to(dtype)
    # masks of random weights overlap more than the paper's threshold allows
    rules = {"threshold": 0.8, "overlap_mask_area_threshold": 0.0, "target_sizes": [image.size[::-1]]}
    return processor.post_process_panoptic_segmentation(model(inputs.pixel_values), **rules)


@torch.inference_mode()
def compare_inference(name: str, size: int, repeats: int) -> None:
    dtype = DTYPES[name]
    ours, theirs = (model.to(dtype) for model in model_pair("vit_base_patch14_reg4_dinov2", size))
    make_confident(ours)
    make_confident(theirs)
    our_processor = EoMTImageProcessor(task="panoptic", size=size)
    their_processor = EomtImageProcessor(do_pad=True, size={"shortest_edge": size, "longest_edge": size})
    images = [photo(shape) for shape in scaled_photos(size)]
    pixels = our_processor(images[0], return_tensors="pt").pixel_values.to(dtype)
    expected = theirs(pixels).masks_queries_logits
    difference = ((ours(pixels).masks_queries_logits - expected).abs().max() / expected.abs().max()).item()
    assert difference < (1e-4 if name == "fp32" else 0.1), f"the logits differ by {difference:.1g}"

    for image in images:
        calls = (
            partial(panoptic_segments, ours, our_processor, image, dtype),
            partial(panoptic_segments, theirs, their_processor, image, dtype),
        )
        counts = [len(call()[0]["segments_info"]) for call in calls]
        assert abs(counts[0] - counts[1]) <= 2, f"{counts[0]} segments, the built-in finds {counts[1]}"
        compare(f"{name}, {image.height} × {image.width} photo to {counts[0]} segments", *calls, repeats)
    compare(f"{name}, forward alone", partial(ours, pixels), partial(theirs, pixels), repeats)


# --- post-processing -------------------------------------------------------------------------------------------------


def model_outputs(confident: int, size: int, seed: int = 0) -> SimpleNamespace:
    """Logits (1, Q, size/4, size/4) and (1, Q, C + 1). Each mask is a blob; `confident` of the queries have a class."""
    generator, grid = torch.Generator().manual_seed(seed), size // 4
    y, x = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")
    center = torch.rand(QUERIES, 2, 1, 1, generator=generator) * torch.tensor([grid * 0.75, grid]).view(2, 1, 1)
    radius = grid * (0.025 + 0.2 * torch.rand(QUERIES, 1, 1, generator=generator))
    distance = ((y - center[:, 0]) ** 2 + (x - center[:, 1]) ** 2).sqrt()  # [Q, grid, grid]
    masks = (radius - distance) + torch.randn(QUERIES, grid, grid, generator=generator)
    classes = torch.randn(QUERIES, CLASSES + 1, generator=generator)
    classes[:, -1] += 9
    classes[torch.arange(confident), torch.randint(CLASSES, (confident,), generator=generator)] += 22
    return SimpleNamespace(masks_queries_logits=masks[None], class_queries_logits=classes[None], patch_offsets=None)


def require_same_result(task: str, ours, theirs) -> None:
    """Raises `AssertionError` unless segments and pixels agree.

    Pixels of instances are not compared: in the built-in's map, overlaps depend on the order, which is not ours.
    """
    if task != "semantic":
        found, expected = [
            torch.tensor(sorted((entry["label_id"], entry["score"]) for entry in result["segments_info"]))
            for result in (ours, theirs)
        ]
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
        ours, theirs = ours["segmentation"], theirs["segmentation"]
    if task != "instance":
        differ = (ours != theirs).float().mean().item()
        assert differ < (1e-3 if task == "semantic" else 1e-4), f"{differ:.1e} of the pixels differ"


def postprocessing(task: str, size: int) -> tuple[Callable, Callable, SimpleNamespace]:
    """Our and the built-in's post-processing for the larger photo, and the outputs for both.

    Semantic: outputs of two windows, with a class for every query.
    """
    shape = scaled_photos(size)[1]
    name = f"post_process_{task}_segmentation"
    ours = EoMTImageProcessor(task=task, size=size)
    if task == "semantic":
        windows = [model_outputs(QUERIES, size, seed) for seed in range(2)]
        outputs = SimpleNamespace(
            masks_queries_logits=torch.cat([window.masks_queries_logits for window in windows]),
            class_queries_logits=torch.cat([window.class_queries_logits for window in windows]),
            patch_offsets=[(0, *offset) for offset in ours.place(*shape).offsets],
        )
        theirs = EomtImageProcessor(size={"shortest_edge": size, "longest_edge": None}, do_split_image=True)
        rules = {"target_sizes": [shape]}
    else:
        outputs = model_outputs(20, size)
        theirs = EomtImageProcessor(size={"shortest_edge": size, "longest_edge": size}, do_pad=True)
        rules = {"target_sizes": [shape], "threshold": 0.5}
    return partial(getattr(ours, name), **rules), partial(getattr(theirs, name), **rules), outputs


def compare_postprocessing(size: int, repeats: int) -> None:
    for task in TASKS:
        ours, theirs, outputs = postprocessing(task, size)
        maps = {"return_binary_maps": True} if task == "instance" else {}  # the built-in lists hidden instances too
        require_same_result(task, ours(outputs, **maps)[0], theirs(outputs)[0])
        compare(f"{task} post-processing", partial(ours, outputs), partial(theirs, outputs), repeats, memory=True)
        if task != "semantic":
            everything = partial(ours, model_outputs(QUERIES, size))
            compare(f"{task} post-processing, all {QUERIES} kept", everything, None, repeats, memory=True)


# --- training --------------------------------------------------------------------------------------------------------


def rectangles(count: int, size: int) -> tuple[Tensor, Tensor]:
    """Masks (count, size, size) and labels (count,)."""
    generator = torch.Generator().manual_seed(0)
    masks = torch.zeros(count, size, size, dtype=torch.bool)
    for mask in masks:
        top, left = torch.randint(0, size * 3 // 4, (2,), generator=generator).tolist()
        mask[top : top + size // 4, left : left + size // 4] = True
    return masks, torch.randint(0, CLASSES, (count,), generator=generator)


def compare_training(name: str, size: int, repeats: int) -> None:
    """A step in fp32, or in bf16 autocast."""
    ours, theirs = model_pair("vit_small_patch14_reg4_dinov2", size)
    ours.set_attn_mask_probs([1.0] * 3)
    theirs.attn_mask_probs.fill_(1)
    pixels = torch.randn(2, 3, size, size)
    masks, labels = zip(*(rectangles(12, size) for _ in range(2)))

    def step(model, **inputs) -> float:
        model.train()
        model.zero_grad(set_to_none=False)  # gradients stay allocated, so that their memory is not counted
        with torch.autocast("cpu", torch.bfloat16, enabled=name == "bf16"):
            loss = model(pixels, class_labels=list(labels), **inputs).loss
        loss.backward()
        return loss.item()

    calls = (
        partial(step, ours, mask_labels=list(masks), output_auxiliary_logits=False),
        partial(step, theirs, mask_labels=[mask.float() for mask in masks]),  # the built-in takes no bool masks
    )
    losses = [call() for call in calls]
    assert abs(losses[0] - losses[1]) < 0.02 * losses[1], losses  # points differ by chance
    compare(f"training step, {name}", *calls, repeats, memory=True)


# --- augmentation ----------------------------------------------------------------------------------------------------


def colored_cells(count: int, shape: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """An image (3, H, W) uint8, an id map (H, W) int32 of random cells, and their ids (n,)."""
    generator = torch.Generator().manual_seed(count)
    image = torch.randint(0, 256, (3, *shape), generator=generator, dtype=torch.uint8)
    y, x = torch.meshgrid(torch.arange(shape[0]), torch.arange(shape[1]), indexing="ij")
    centers = torch.rand(count, 2, generator=generator) * torch.tensor(shape)
    distance = (y - centers[:, 0, None, None]) ** 2 + (x - centers[:, 1, None, None]) ** 2  # [n, H, W]
    ids = torch.randperm(2**24, generator=generator)[:count].int()
    return image, ids[distance.argmin(0)], ids


def augment_map(geometry: Geometry, id_map: Tensor, ids: Tensor) -> Tensor:
    """Ours: the ids become positions, are gathered at the final size, and become masks."""
    positions = ids_to_positions(id_map.numpy(), ids.tolist())
    return positions_to_masks(geometry.target(positions, 0), len(ids))[0]


def augment_masks(geometry: Geometry, id_map: Tensor, ids: Tensor) -> Tensor:
    """The usual way: one mask per segment, each flipped, resized, padded and cropped."""
    masks = id_map[None] == ids[:, None, None]  # [n, H, W]
    if geometry.flip:
        masks = V2.horizontal_flip(masks)
    masks = V2.resize(masks, list(geometry.resized), InterpolationMode.NEAREST)
    padding = [max(0, window - side) for side, window in zip(geometry.resized, geometry.size)]
    masks = V2.crop(V2.pad(masks, [0, 0, padding[1], padding[0]]), *geometry.offset, *geometry.size)
    return masks[masks.flatten(1).any(1)]


def compare_augmentation(segments: int, size: int, repeats: int) -> None:
    """24 augmentations of image and target, and of the target alone. Files are not read."""
    shape = (size * 3 // 4, size)
    image, id_map, ids = colored_cells(segments, shape)
    torch.manual_seed(0)
    draws = [Geometry.draw(shape, (size, size), (0.1, 2.0)) for _ in range(24)]
    for draw in draws:
        assert torch.equal(augment_map(draw, id_map, ids), augment_masks(draw, id_map, ids))

    def augment(target: Callable, with_image: bool) -> None:
        for draw in draws:
            target(draw, id_map, ids)
            if with_image:
                draw.image(image)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a worker of a DataLoader
    for work, with_image in ((f"augmentation, {segments} segments", True), ("  its target alone", False)):
        compare(work, *(partial(augment, target, with_image) for target in (augment_map, augment_masks)), repeats)
    torch.set_num_threads(threads)


def scaled_photos(size: int) -> list[tuple[int, int]]:
    return [(height * size // 640, width * size // 640) for height, width in PHOTOS]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image-size", type=int, default=640, help="of the model; photos are scaled with it")
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args(argv)
    size, repeats = options.image_size, options.repeats
    types = DTYPES if cpu_has_bf16() else ["fp32"]
    print(f"{size}², {QUERIES} queries, {torch.get_num_threads()} threads\n{HEADER}", flush=True)
    for name in types:
        compare_inference(name, size, repeats)
    compare_postprocessing(size, repeats)
    for name in types:
        compare_training(name, size, repeats)
    for segments in (5, 20, 60):
        compare_augmentation(segments, size, repeats)


if __name__ == "__main__":
    main()
