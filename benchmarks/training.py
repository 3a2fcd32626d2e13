"""A training step of ViT-S at 640², batch 2, 200 queries, 12 targets an image: ours against the built-in's.

Time of forward and backward, and the most memory of CPU tensors beyond weights and gradients. Masking on, as in the
first sixth of training; ours is called as `EoMTTrainer` calls it.
"""

from functools import partial

import torch

from eomt.speed.measure import extra_cpu_bytes

from .bound import matrix_products
from .measure import paired
from .models import pair


def targets(count: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`count` rectangles and their labels."""
    generator = torch.Generator().manual_seed(0)
    masks = torch.zeros(count, size, size, dtype=torch.bool)
    for mask in masks:
        top, left = torch.randint(0, size * 3 // 4, (2,), generator=generator).tolist()
        mask[top : top + size // 4, left : left + size // 4] = True
    return masks, torch.randint(0, 133, (count,), generator=generator)


def main(repeats: int = 5, size: int = 640) -> None:
    ours, theirs = pair("vit_small_patch14_reg4_dinov2", image_size=size)
    ours.set_attn_mask_probs([1.0] * 3)
    theirs.attn_mask_probs.fill_(1)
    pixels = torch.randn(2, 3, size, size)
    masks, labels = zip(*(targets(12, size) for _ in range(2)))
    floats = [mask.float() for mask in masks]  # the built-in takes no bool masks
    for name, dtype in (("fp32", torch.float32), ("bf16 autocast", torch.bfloat16)):

        def step(model, dtype=dtype, **inputs):
            model.train()
            model.zero_grad(set_to_none=False)  # gradients stay allocated: both are measured beyond them
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
                loss = model(pixels, class_labels=list(labels), **inputs).loss
            loss.backward()
            return loss.item()

        steps = (
            partial(step, ours, mask_labels=list(masks), output_auxiliary_logits=False),
            partial(step, theirs, mask_labels=floats),
        )
        losses = [run() for run in steps]
        assert abs(losses[0] - losses[1]) < 0.02 * losses[1], losses  # points differ by chance
        fast, slow, ratio = paired(*steps, repeats)
        memory = [extra_cpu_bytes(run) for run in steps]
        predictions = ours.config.num_blocks + 1
        bound = matrix_products(ours.config, dtype, repeats, len(pixels), predictions, backward=True)
        print(
            f"training step, {name:<13}  ours {fast:.2f} s  built-in {slow:.2f} s  {ratio:.2f} ×   "
            f"memory {memory[0] / 2**30:.2f} / {memory[1] / 2**30:.2f} GiB = {memory[0] / memory[1]:.2f}   "
            f"{fast / bound:.2f} × its matrix products and attention alone ({bound:.2f} s)",
            flush=True,
        )


if __name__ == "__main__":
    main()
