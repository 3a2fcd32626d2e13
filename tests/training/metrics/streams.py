"""All metrics over the same images, in any number of processes. A test runs this file as a script."""

import json
import sys
from pathlib import Path

import numpy as np

from eomt.training import MaskAveragePrecision, MeanIoU, PanopticQuality
from eomt.training.metrics import OutOfDistribution


def results(rank: int = 0, world: int = 1) -> dict:
    """All four metrics over seven synthetic images. This process adds every `world`-th."""
    rng = np.random.default_rng(0)
    metrics = {
        "pq": PanopticQuality(num_labels=3, stuff_label_ids=[2]),
        "miou": MeanIoU(num_labels=3),
        "ap": MaskAveragePrecision(num_labels=3),
        "ood": OutOfDistribution(num_labels=3),
    }
    for i in range(7):
        ids = rng.integers(0, 3, (6, 8)).repeat(5, 0).repeat(5, 1)
        shifted = np.roll(ids, rng.integers(0, 3), 1)
        info = [{"id": k, "label_id": int(rng.integers(3)), "iscrowd": 0} for k in np.unique(ids)]
        masks = np.stack([ids == k for k in range(3)])
        scores, confidence, invalid = rng.random(3).round(1), rng.random(ids.shape), rng.random(ids.shape) < 0.1
        if i % world != rank:
            continue
        shared = {"image_id": i, "labels": [0, 1, 2], "masks": masks, "iscrowd": [0, 0, 0], "scores": scores}
        entries = {
            "pq": ({"segmentation": shifted, "segments_info": info}, {"segmentation": ids, "segments_info": info}),
            "miou": (shifted, ids),
            "ap": (shared | {"masks": np.roll(masks, 2, 2)}, shared),
            "ood": ({"segmentation": shifted, "confidence": confidence}, {"segmentation": ids, "invalid": invalid}),
        }
        for name, (prediction, reference) in entries.items():
            metrics[name].add_batch(predictions=[prediction], references=[reference])
    return {name: metric.compute() for name, metric in metrics.items()}


if __name__ == "__main__":
    import torch.distributed as dist

    dist.init_process_group("gloo")
    rank = dist.get_rank()
    Path(sys.argv[1], f"{rank}.json").write_text(json.dumps(results(rank, dist.get_world_size())))
    dist.destroy_process_group()
