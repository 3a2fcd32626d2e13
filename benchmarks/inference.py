"""From photo to segments with ViT-B at 640²: the whole way and the forward pass alone, ours against the built-in's.

The same weights and, within rounding, the same logits; a quarter of the queries is made confident, as a trained
model's are. Both pad, normalise, run the model and post-process to the photo's size.
"""

import torch
import torch.nn.functional as F
from PIL import Image
from transformers import EomtImageProcessor

from eomt import EoMTImageProcessor

from .measure import paired, seconds
from .models import pair

PHOTO = (427, 640)  # height, width of a COCO photo


def photo() -> Image.Image:
    noise = torch.rand(1, 3, 30, 40, generator=torch.Generator().manual_seed(0))
    pixels = F.interpolate(noise, PHOTO, mode="bicubic").clamp(0, 1) * 255
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
    """Photo → panoptic segments at the photo's size, by the paper's thresholds."""
    inputs = processor(image, return_tensors="pt").to(dtype)
    rules = {"threshold": 0.8, "overlap_mask_area_threshold": 0.8, "target_sizes": [PHOTO]}
    return processor.post_process_panoptic_segmentation(model(inputs.pixel_values), **rules)


@torch.inference_mode()
def compare(ours, theirs, dtype: torch.dtype, repeats: int) -> None:
    """Print the ratios for one type of numbers."""
    ours, theirs, name = ours.to(dtype), theirs.to(dtype), str(dtype).removeprefix("torch.")
    image = photo()
    our_processor = EoMTImageProcessor(task="panoptic", size=640)
    their_processor = EomtImageProcessor(do_pad=True, size={"shortest_edge": 640, "longest_edge": 640})
    pixels = our_processor(image, return_tensors="pt").pixel_values.to(dtype)
    expected = theirs(pixels).masks_queries_logits
    difference = ((ours(pixels).masks_queries_logits - expected).abs().max() / expected.abs().max()).item()
    assert difference < (1e-4 if dtype == torch.float32 else 0.1), f"the logits differ by {difference:.1g}"

    fast, slow, ratio = paired(
        lambda: whole(ours, our_processor, image, dtype), lambda: whole(theirs, their_processor, image, dtype), repeats
    )
    print(f"photo to segments, {name:<8}  ours {fast:.2f} s  built-in {slow:.2f} s  {ratio:.2f} ×", flush=True)
    fast, slow, ratio = paired(lambda: ours(pixels), lambda: theirs(pixels), repeats)
    bound = matrix_products(ours.config, dtype, repeats)
    print(
        f"forward alone,     {name:<8}  ours {fast:.2f} s  built-in {slow:.2f} s  {ratio:.2f} ×   "
        f"{fast / bound:.2f} × its matrix products and attention alone ({bound:.2f} s)",
        flush=True,
    )


def main(repeats: int = 7, backbone: str = "vit_base_patch14_reg4_dinov2") -> None:
    ours, theirs = pair(backbone)
    confident(ours), confident(theirs)
    for dtype in (torch.float32, torch.bfloat16):
        compare(ours, theirs, dtype, repeats)


def matrix_products(config, dtype, repeats: int) -> float:
    """Seconds that the model's matrix products and attention calls take when nothing else is done."""
    width, heads, grid = config.hidden_size, config.num_attention_heads, config.grid_size
    patches, queries = grid[0] * grid[1], config.num_queries
    prefix, depth, joint = config.num_prefix_tokens, config.num_hidden_layers, config.num_blocks

    def linear(rows: int, inputs: int, outputs: int):
        x, w, b = torch.randn(rows, inputs), torch.randn(outputs, inputs), torch.randn(outputs)
        x, w, b = x.to(dtype), w.to(dtype), b.to(dtype)
        return lambda: F.linear(x, w, b)

    def attention(tokens: int):
        q = torch.randn(1, heads, tokens, width // heads).to(dtype)
        return lambda: F.scaled_dot_product_attention(q, q, q)

    calls = [(linear(patches, 3 * 16 * 16, width), 1)]
    for tokens, blocks in ((patches + prefix, depth - joint), (patches + prefix + queries, joint)):
        calls += [(linear(tokens, width, width), 4 * blocks), (attention(tokens), blocks)]
        calls += [(linear(tokens, width, 4 * width), blocks), (linear(tokens, 4 * width, width), blocks)]
    for level in range(config.num_upscale_blocks):
        calls.append((linear(patches * 4**level, width, 4 * width), 1))
    features = patches * 4**config.num_upscale_blocks
    calls += [(linear(queries, width, width), 3), (linear(queries, width, config.num_labels + 1), 1)]
    calls.append((linear(queries, width, features), 1))
    return sum(count * seconds(call, repeats) for call, count in calls)


if __name__ == "__main__":
    main()
