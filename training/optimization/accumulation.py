"""Gradient accumulation that equals the whole batch at once.

The loss divides by its batch's number of masks and sum of class weights. Averaging such batches weighs their images
unequally; weighing each batch by its share in the step's totals does not.
"""

import torch


def normalizer_shares(batches: list[dict], config, accelerator) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """A step's batches on this process → each one's (share of the masks, share of the class weights), all processes'.

    Known before any matching: an image matches as many masks as it has targets, at most one a query; a matched query
    weighs 1 in the class loss, any other `config.no_object_weight`.
    """
    counts = torch.zeros(len(batches), 2, dtype=torch.float64)
    for row, batch in zip(counts, batches):
        masks = sum(min(len(labels), config.num_queries) for labels in batch["class_labels"])
        queries = len(batch["class_labels"]) * config.num_queries
        row[0], row[1] = masks, masks + (queries - masks) * config.no_object_weight
    counts = counts.float().to(accelerator.device)
    counts = accelerator.reduce(counts, reduction="sum") / accelerator.num_processes  # as the loss: mean over processes
    total = counts.sum(0)
    mask_shares = counts[:, 0].clamp(min=1) / total[0].clamp(min=1)
    return list(zip(mask_shares, counts[:, 1] / total[1]))
