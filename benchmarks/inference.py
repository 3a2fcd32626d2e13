"""From photo to segments with ViT-B at 640²: the whole way and the forward pass alone, ours against the built-in's.

The same weights and, within rounding, the same logits; a quarter of the queries is made confident, as a trained
model's are. Both pad, normalize, run the model and post-process to the photo's size: a COCO photo's and 3 megapixels.
"""

import torch
import torch.nn.functional as F
from PIL import Image
from transformers import EomtImageProcessor

from eomt import EoMTImageProcessor

from .bound import matrix_products
from .measure import paired
from .models import pair

PHOTOS = ((427, 640), (1500, 2000))  # height, width


def photo(size: tuple[int, int]) -> Image.Image:
    noise = torch.rand(1, 3, 30, 40, generator=torch.Generator().manual_seed(0))
    pixels = F.interpolate(noise, size, mode="bicubic").clamp(0, 1) * 255
    return Image.fromarray(pixels[0].permute(1, 2, 0).byte().numpy())


@torch.no_grad()
def confident(model, share: float = 0.25) -> None:
    """Class logits as of a trained model: `share` of the queries has a class, the others none."""
    queries = int(model.config.num_queries * share)

    def sharpen(module, inputs, logits):
        logits = logits.clone()
        logits[:, queries:, -1] += 20
        logits[:, :queries, 0] += 20
        return logits

    model.class_predictor.register_forward_hook(sharpen)


def whole(model, processor, image: Image.Image, dtype: torch.dtype) -> list[dict]:
    """Photo → panoptic segments at the photo's size; masks of random weights overlap more than the paper's 0.8."""
    inputs = processor(image, return_tensors="pt").to(dtype)
    rules = {"threshold": 0.8, "overlap_mask_area_threshold": 0.0, "target_sizes": [image.size[::-1]]}
    return processor.post_process_panoptic_segmentation(model(inputs.pixel_values), **rules)


@torch.inference_mode()
def compare(ours, theirs, dtype: torch.dtype, repeats: int) -> None:
    """Print the ratios for one type of numbers."""
    ours, theirs, name = ours.to(dtype), theirs.to(dtype), str(dtype).removeprefix("torch.")
    our_processor = EoMTImageProcessor(task="panoptic", size=640)
    their_processor = EomtImageProcessor(do_pad=True, size={"shortest_edge": 640, "longest_edge": 640})
    images = [photo(size) for size in PHOTOS]
    pixels = our_processor(images[0], return_tensors="pt").pixel_values.to(dtype)
    expected = theirs(pixels).masks_queries_logits
    difference = ((ours(pixels).masks_queries_logits - expected).abs().max() / expected.abs().max()).item()
    assert difference < (1e-4 if dtype == torch.float32 else 0.1), f"the logits differ by {difference:.1g}"

    for image in images:
        segments = len(whole(ours, our_processor, image, dtype)[0]["segments_info"])
        others = len(whole(theirs, their_processor, image, dtype)[0]["segments_info"])
        assert others in range(max(segments - 2, 1), segments + 3), f"{segments} segments, the built-in finds {others}"
        fast, slow, ratio = paired(
            lambda image=image: whole(ours, our_processor, image, dtype),
            lambda image=image: whole(theirs, their_processor, image, dtype),
            repeats,
        )
        title = f"{image.height} × {image.width} photo to {segments} segments"
        print(f"{title:<36} {name:<8}  ours {fast:.2f} s  built-in {slow:.2f} s  {ratio:.2f} ×", flush=True)
    fast, slow, ratio = paired(lambda: ours(pixels), lambda: theirs(pixels), repeats)
    bound = matrix_products(ours.config, dtype, repeats)
    print(
        f"{'forward alone':<36} {name:<8}  ours {fast:.2f} s  built-in {slow:.2f} s  {ratio:.2f} ×   "
        f"{fast / bound:.2f} × its matrix products and attention alone ({bound:.2f} s)",
        flush=True,
    )


def main(repeats: int = 7, backbone: str = "vit_base_patch14_reg4_dinov2") -> None:
    ours, theirs = pair(backbone)
    confident(ours), confident(theirs)
    for dtype in (torch.float32, torch.bfloat16):
        compare(ours, theirs, dtype, repeats)


if __name__ == "__main__":
    main()
