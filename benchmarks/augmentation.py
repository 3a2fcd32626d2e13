"""Augmenting an id map against augmenting every segment's mask: the same draws, the same samples, samples a second.

A COCO-sized picture (480 × 640), large-scale jitter 0.1 … 2.0 to 640², 5, 20 and 60 segments; one thread, image and
target together and the target alone. Reading files is left out.

    python -m benchmarks.augmentation
"""

import time

import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as V2

from eomt.training.augmentation import Geometry, ids_to_positions, positions_to_masks

SOURCE, SIZE, SCALES = (480, 640), (640, 640), (0.1, 2.0)
SEGMENTS = (5, 20, 60)
SAMPLES = 24


def picture(segments: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """uint8 (3, H, W), id map int32 (H, W) of random cells, ids (n,)."""
    generator = torch.Generator().manual_seed(segments)
    image = torch.randint(0, 256, (3, *SOURCE), generator=generator, dtype=torch.uint8)
    y, x = torch.meshgrid(torch.arange(SOURCE[0]), torch.arange(SOURCE[1]), indexing="ij")
    centers = torch.rand(segments, 2, generator=generator) * torch.tensor(SOURCE)
    distance = (y - centers[:, 0, None, None]) ** 2 + (x - centers[:, 1, None, None]) ** 2  # [n, H, W]
    ids = torch.randperm(2**24, generator=generator)[:segments].int()
    return image, ids[distance.argmin(0)], ids


def by_map(geometry: Geometry, ids_map: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Ours: the id map shrinks to positions, is gathered at its final size, then becomes masks."""
    positions = ids_to_positions(ids_map.numpy(), ids.tolist())
    return positions_to_masks(geometry.target(positions, 0), len(ids))[0]


def by_masks(geometry: Geometry, ids_map: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """The usual way: one mask a segment, each flipped, resized, padded and cropped."""
    masks = ids_map[None] == ids[:, None, None]  # [n, H, W]
    if geometry.flip:
        masks = V2.horizontal_flip(masks)
    masks = V2.resize(masks, list(geometry.resized), InterpolationMode.NEAREST)
    padding = [max(0, window - side) for side, window in zip(geometry.resized, SIZE)]
    masks = V2.crop(V2.pad(masks, [0, 0, padding[1], padding[0]]), *geometry.offset, *SIZE)
    return masks[masks.flatten(1).any(1)]


def run() -> list[dict]:
    """One row a number of segments: samples a second of both, with and without the image."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a DataLoader's worker
    try:
        return [_row(segments) for segments in SEGMENTS]
    finally:
        torch.set_num_threads(threads)


def _row(segments: int) -> dict:
    image, ids_map, ids = picture(segments)
    torch.manual_seed(0)
    draws = [Geometry.draw(SOURCE, SIZE, SCALES) for _ in range(SAMPLES)]
    for draw in draws:
        assert torch.equal(by_map(draw, ids_map, ids), by_masks(draw, ids_map, ids))
    row: dict = {"segments": segments}
    for name, target in (("map", by_map), ("masks", by_masks)):
        for what, with_image in (("", True), ("_target", False)):
            start = time.perf_counter()
            for draw in draws:
                target(draw, ids_map, ids)
                if with_image:
                    draw.image(image)
            row[name + what] = SAMPLES / (time.perf_counter() - start)
    return row | {"ratio": row["map"] / row["masks"], "ratio_target": row["map_target"] / row["masks_target"]}


def main() -> None:
    print(f"augmentation, {SOURCE[0]} × {SOURCE[1]} to {SIZE[0]}², one thread, samples/s")
    print(f"{'segments':>8}{'one map':>12}{'every mask':>12}{'ratio':>8}{'target: map':>14}{'masks':>8}{'ratio':>8}")
    for r in run():
        print(
            f"{r['segments']:>8}{r['map']:>12.0f}{r['masks']:>12.0f}{r['ratio']:>7.1f}×"
            f"{r['map_target']:>14.0f}{r['masks_target']:>8.0f}{r['ratio_target']:>7.1f}×"
        )


if __name__ == "__main__":
    main()
