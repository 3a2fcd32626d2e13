"""Step 0 (ViT-Adapter + Mask2Former) trained with masks, without, and annealed (Table C, right column).

The masks are the arguments of transformers' decoder layers.
"""

import pytest
import torch

from eomt.modeling_eomt.ladder import LadderForUniversalSegmentation
from eomt.training import EoMTTrainer, annealing_steps
from eomt.training import mask_annealing_probability as probability
from tests.modeling_eomt.ladder.test_ladder import ladder
from tests.training.tiny import Samples, tiny_arguments

LAYERS, STEPS, QUERIES = 3, 12, 6


def mask2former(**overrides) -> LadderForUniversalSegmentation:
    sizes = {"image_size": 32, "num_queries": QUERIES, "num_labels": 2, "stuff_label_ids": [1], "train_num_points": 64}
    return ladder(0, **sizes | overrides)


def watch(model) -> list[list]:
    """Record the mask of each decoder layer in every training batch: [batch][layer]."""
    seen: list[list] = []

    def note(index):
        def hook(layer, args, kwargs):
            if not model.training:
                return
            if index == 0:
                seen.append([])
            seen[-1].append(kwargs["encoder_attention_mask"])

        return hook

    for index, layer in enumerate(model.heads.transformer_module.decoder.layers):
        layer.register_forward_pre_hook(note(index), with_kwargs=True)
    return seen


@pytest.mark.parametrize("masking", ["always", "never", "annealed"])
def test_decoder_layers_are_masked_by_the_schedule(masking, tmp_path):
    model = mask2former()
    seen = watch(model)
    losses = []
    arguments = tiny_arguments(tmp_path, masking=masking, max_steps=STEPS)
    model.register_forward_hook(lambda module, inputs, outputs: losses.append(len(outputs.loss_dict)))
    EoMTTrainer(model, arguments, train_dataset=Samples(8)).train()
    assert len(seen) == STEPS
    schedule = list(zip(*annealing_steps(STEPS, LAYERS)))
    for step, masks in enumerate(seen):
        for (start, end), mask in zip(schedule, masks):
            share = {"always": 1.0, "never": 0.0, "annealed": probability(step, start, end)}[masking]
            assert (mask is not None) == (share > 0), (step, share)
            if mask is not None:
                assert mask.shape[:2] == (2 * 2, QUERIES)  # images × heads
                assert not mask.all(-1).any()  # every query sees something
    parts = 3 if masking == "never" else 3 * (LAYERS + 1)  # never: only the last prediction is supervised
    assert losses == [parts] * STEPS
    assert model.attn_mask_probs.tolist() == [float(masking == "always")] * LAYERS


@pytest.mark.parametrize("share", [1.0, 0.7, 0.2])
def test_a_query_keeps_its_mask_with_the_probability_of_the_schedule(share):
    """In each layer, each query of each image sees the inside of its mask or everything."""
    model = mask2former(num_queries=200).train()
    model.set_attn_mask_probs([share] * LAYERS)
    seen = watch(model)
    with torch.no_grad():
        output = model(torch.randn(4, 3, 32, 64))
    kept = []
    for layer, mask in enumerate(seen[0]):
        level = [(1, 2), (2, 4), (4, 8)][layer % 3]
        logits = output.auxiliary_logits[layer]["masks_queries_logits"]
        inside = torch.nn.functional.interpolate(logits, level, mode="bilinear", align_corners=False).flatten(2) > 0
        partial = inside.any(-1) & ~inside.all(-1)  # [B, Q], masked and not masked differ
        hidden = mask.unflatten(0, (4, 2))
        assert torch.equal(hidden[:, 0], hidden[:, 1])  # all heads alike
        hidden = hidden[:, 0]
        restricted = hidden.any(-1)
        assert torch.equal(hidden[restricted], ~inside[restricted])
        assert not restricted[~partial].any()
        kept.append(restricted[partial])
    draws = torch.cat(kept).float()
    assert len(draws) > 100
    deviation = (share * (1 - share) / len(draws)) ** 0.5
    assert abs(draws.mean().item() - share) <= 4 * deviation
