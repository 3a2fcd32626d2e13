"""The authors' post-processing in its simplest form: full-size tensors for every query."""

import torch
import torch.nn.functional as F


def to_image(logits, place):
    """(Q, g_h, g_w) → (Q, H, W): resize to the input, crop the padding, resize to the original."""
    at_input = F.interpolate(logits[None].float(), size=place.input_size, mode="bilinear")
    cropped = at_input[..., : place.resized[0], : place.resized[1]]
    return F.interpolate(cropped, size=place.original, mode="bilinear")[0]


def panoptic(masks, classes, place, stuff=(), threshold=0.8, mask_threshold=0.5, overlap=0.8):
    scores, labels = classes.float().softmax(-1).max(-1)
    keep = (labels != classes.shape[-1] - 1) & (scores > threshold)
    result, segments, seen = torch.full(place.original, -1, dtype=torch.int32), [], {}
    if not keep.any():
        return result, segments
    probabilities = to_image(masks, place)[keep].sigmoid()
    owner = (scores[keep][:, None, None] * probabilities).argmax(0)
    for k, (score, label) in enumerate(zip(scores[keep].tolist(), labels[keep].tolist())):
        claimed = probabilities[k] >= mask_threshold
        final = claimed & (owner == k)
        owned = (owner == k).sum().item()
        if not owned or not claimed.any() or not final.any() or owned / claimed.sum().item() < overlap:
            continue
        if label in stuff and label in seen:
            result[final] = seen[label]
            continue
        seen[label] = len(segments)
        result[final] = len(segments)
        segments.append({"id": len(segments), "label_id": label, "was_fused": label in stuff, "score": score})
    return result, segments


def instances(masks, classes, place, top_k):
    probabilities = classes.float().softmax(-1)[:, :-1]
    scores, index = probabilities.flatten().topk(top_k)
    logits = to_image(masks, place)[index // probabilities.shape[1]]
    mask = logits > 0
    scores = scores * (logits.sigmoid() * mask).sum((1, 2)) / (mask.sum((1, 2)) + 1e-6)
    order = scores.argsort(descending=True, stable=True)
    return mask[order], (index % probabilities.shape[1])[order], scores[order]


def semantic_scores(masks, classes, place):
    """(V, Q, g_h, g_w), (V, Q, C + 1) → (C, H, W)."""
    at_input = F.interpolate(masks.float(), size=place.input_size, mode="bilinear").sigmoid()
    scores = torch.einsum("vqc,vqhw->vchw", classes.float().softmax(-1)[..., :-1], at_input)
    rows = max(place.resized[0], place.input_size[0])
    columns = max(place.resized[1], place.input_size[1])
    canvas, count = torch.zeros(scores.shape[1], rows, columns), torch.zeros(rows, columns)
    for (top, left), window in zip(place.windows, scores):
        canvas[:, top : top + place.input_size[0], left : left + place.input_size[1]] += window
        count[top : top + place.input_size[0], left : left + place.input_size[1]] += 1
    canvas = (canvas / count)[:, : place.resized[0], : place.resized[1]]
    return F.interpolate(canvas[None], size=place.original, mode="bilinear")[0]
