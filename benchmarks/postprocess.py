"""Post-processing against transformers' built-in processor: the same outputs, a photo of
1500 × 2000, and the same result.

200 queries, 133 classes, inputs of 640²; 20 queries hold a confident class and a blob of their own, as on COCO, the
others are background. Targets: panoptic ≥ 10 ×, instance ≥ 10 ×, below 1 GiB for every task also with all queries kept.

    python -m benchmarks.postprocess
"""

from functools import partial
from types import SimpleNamespace

import torch
from transformers.models.eomt.image_processing_eomt import EomtImageProcessor as BuiltIn

from eomt import EoMTImageProcessor
from eomt.speed.measure import extra_cpu_bytes

from .measure import seconds

PHOTO, SIZE, GRID = (1500, 2000), 640, 160
QUERIES, CLASSES, FOUND = 200, 133, 20


def outputs(found: int = FOUND, seed: int = 0) -> SimpleNamespace:
    """Model outputs with `found` confident queries: logits (1, Q, 160, 160) and (1, Q, C + 1)."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(GRID), torch.arange(GRID), indexing="ij")
    center = torch.rand(QUERIES, 2, 1, 1, generator=generator) * torch.tensor([GRID * 0.75, GRID]).view(2, 1, 1)
    radius = 4 + torch.rand(QUERIES, 1, 1, generator=generator) * GRID * 0.2
    distance = ((y - center[:, 0]) ** 2 + (x - center[:, 1]) ** 2).sqrt()  # [Q, 160, 160]
    masks = (radius - distance) + torch.randn(QUERIES, GRID, GRID, generator=generator)
    classes = torch.randn(QUERIES, CLASSES + 1, generator=generator)
    classes[:, -1] += 9
    classes[torch.arange(found), torch.randint(CLASSES, (found,), generator=generator)] += 22
    return SimpleNamespace(masks_queries_logits=masks[None], class_queries_logits=classes[None], patch_offsets=None)


def check_panoptic(ours: dict, theirs: dict) -> None:
    labels = [[s["label_id"] for s in result["segments_info"]] for result in (ours, theirs)]
    assert labels[0] == labels[1], f"different segments: {labels}"
    differ = (ours["segmentation"] != theirs["segmentation"]).float().mean().item()
    assert differ < 1e-4, f"{differ:.1e} of the pixels differ"


def check_instance(ours: dict, theirs: dict) -> None:
    """Order differs by rule (ours: best first), and so does who wins a pixel; classes and scores must not."""
    found = [sorted((s["label_id"], s["score"]) for s in result["segments_info"]) for result in (ours, theirs)]
    assert [label for label, _ in found[0]] == [label for label, _ in found[1]], f"different classes: {found}"
    assert all(abs(a - b) < 1e-4 for (_, a), (_, b) in zip(*found)), f"different scores: {found}"


def check_semantic(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    differ = (ours != theirs).float().mean().item()
    assert differ < 1e-3, f"{differ:.1e} of the pixels differ"


def run() -> list[dict]:
    """One row a task: seconds and MiB of both, and their ratios."""
    ours = EoMTImageProcessor(task="panoptic", size=SIZE)
    theirs = BuiltIn(size={"shortest_edge": SIZE, "longest_edge": SIZE}, do_pad=True)
    out, rows = outputs(), []
    for task, check in (("panoptic", check_panoptic), ("instance", check_instance)):
        name = f"post_process_{task}_segmentation"
        calls = [partial(getattr(p, name), out, target_sizes=[PHOTO], threshold=0.5) for p in (ours, theirs)]
        whole = {"return_binary_maps": True} if task == "instance" else {}  # the built-in lists hidden instances too
        check(calls[0](**whole)[0], calls[1]()[0])
        time = [seconds(calls[0], 7), seconds(calls[1], 2)]
        memory = [extra_cpu_bytes(call) / 2**20 for call in calls]
        rows.append({"task": task, "seconds": time, "ratio": time[1] / time[0], "mib": memory})
    rows.append(run_semantic())
    everything = outputs(QUERIES)
    for task in ("panoptic", "instance", "semantic"):
        call = partial(getattr(ours, f"post_process_{task}_segmentation"), everything, target_sizes=[PHOTO])
        rows.append(
            {
                "task": f"{task}, all {QUERIES} kept",
                "seconds": [seconds(call, 2)],
                "mib": [extra_cpu_bytes(call) / 2**20],
            }
        )
    return rows


def run_semantic() -> dict:
    """Two windows of the photo, stitched."""
    ours = EoMTImageProcessor(task="semantic", size=SIZE)
    theirs = BuiltIn(size={"shortest_edge": SIZE, "longest_edge": None}, do_split_image=True)
    windows = [outputs(QUERIES, seed) for seed in range(2)]
    out = SimpleNamespace(
        masks_queries_logits=torch.cat([w.masks_queries_logits for w in windows]),
        class_queries_logits=torch.cat([w.class_queries_logits for w in windows]),
        patch_offsets=[(0, *offset) for offset in ours.place(*PHOTO).offsets],
    )
    calls = [partial(p.post_process_semantic_segmentation, out, target_sizes=[PHOTO]) for p in (ours, theirs)]
    check_semantic(*(call()[0] for call in calls))
    time = [seconds(calls[0], 4), seconds(calls[1], 2)]
    return {
        "task": "semantic, two windows",
        "seconds": time,
        "ratio": time[1] / time[0],
        "mib": [extra_cpu_bytes(call) / 2**20 for call in calls],
    }


def main() -> None:
    print(f"post-processing, {QUERIES} queries, photo of {PHOTO[0]} × {PHOTO[1]}, {torch.get_num_threads()} threads")
    print(f"{'':24}{'ours':>10}{'built-in':>12}{'ratio':>9}{'ours':>12}{'built-in':>12}")
    for row in run():
        time = [f"{value:.3f} s" for value in row["seconds"]] + [""]
        memory = [f"{value:.0f} MiB" for value in row["mib"]] + [""]
        ratio = f"{row['ratio']:.1f} ×" if "ratio" in row else ""
        print(f"{row['task']:24}{time[0]:>10}{time[1]:>12}{ratio:>9}{memory[0]:>12}{memory[1]:>12}")


if __name__ == "__main__":
    main()
