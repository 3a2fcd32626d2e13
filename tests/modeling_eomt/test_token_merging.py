"""Token merging equals ALGM's rules, written out here token by token."""

import math

import pytest
import torch
import torch.nn.functional as F

from eomt.modeling_eomt.rope import RotaryTable, rotary_table
from tests.models import BACKBONE_OF_KIND, tiny_model


def cosine(a, b) -> float:
    return float(F.cosine_similarity(a[None], b[None]))


class Rules:
    """The rules on lists of tokens, [{"x": vector, "patches": set}, …] for each image, prefix first."""

    def __init__(self, hidden_states, prefix: int, grid):
        self.prefix, self.grid = prefix, grid
        self.images = [
            [{"x": x, "patches": {i - prefix} if i >= prefix else set()} for i, x in enumerate(image)]
            for image in hidden_states
        ]

    @staticmethod
    def joined(tokens):
        sizes = [len(token["patches"]) for token in tokens]
        x = sum(size * token["x"] for size, token in zip(sizes, tokens)) / sum(sizes)
        return {"x": x, "patches": set().union(*(token["patches"] for token in tokens))}

    def local(self, threshold):
        rows, columns = self.grid
        scored = []
        for image in self.images:
            windows = []
            for top in range(0, rows - 1, 2):
                for left in range(0, columns - 1, 2):
                    numbers = [(top + i) * columns + left + j for i in (0, 1) for j in (0, 1)]
                    tokens = [image[self.prefix + n] for n in numbers]
                    pairs = [cosine(a["x"], b["x"]) for a in tokens for b in tokens if a is not b]
                    windows.append((sum(pairs) / 12, numbers))
            scored.append(windows)
        r = min(sum(score >= threshold for score, _ in windows) for windows in scored)
        for k, (image, windows) in enumerate(zip(self.images, scored)):
            best = sorted(windows, key=lambda window: -window[0])[:r]
            merged = [self.joined([image[self.prefix + n] for n in numbers]) for _, numbers in best]
            gone = {n for _, numbers in best for n in numbers}
            others = [token for n, token in enumerate(image[self.prefix :]) if n not in gone]
            self.images[k] = [*image[: self.prefix], *merged, *others]
        return r

    def pairs(self, layer):
        found = []
        for image in self.images:
            best = {}
            for a in range(0, len(image), 2):
                if a < self.prefix:
                    continue
                options = {b: cosine(image[a]["x"], image[b]["x"]) for b in range(1, len(image), 2) if b >= self.prefix}
                b = max(options, key=options.get)
                best[a] = (options[b], b)
            found.append(best)
        values = [torch.tensor([score for score, _ in best.values()]) for best in found]
        threshold = sum(v.mean() for v in values) / len(values) + sum(v.std() for v in values) / len(values) / layer
        r = min(int((v >= threshold).sum()) for v in values)
        for k, (image, best) in enumerate(zip(self.images, found)):
            chosen = sorted(best, key=lambda a: -best[a][0])[:r]
            joining = {b: [a for a in chosen if best[a][1] == b] for b in range(1, len(image), 2)}
            kept = [image[a] for a in range(0, len(image), 2) if a >= self.prefix and a not in chosen]
            odd = [self.joined([image[b], *(image[a] for a in joining[b])]) for b in joining if b >= self.prefix]
            self.images[k] = [*image[: self.prefix], *kept, *odd]
        return r

    def x(self):
        return torch.stack([torch.stack([token["x"] for token in image]) for image in self.images])

    def place(self):
        number = {patch: k for image in self.images for k, t in enumerate(image) for patch in t["patches"]}
        assert len(number) == self.grid[0] * self.grid[1]
        places = []
        for image in self.images:
            of = {patch: k - self.prefix for k, token in enumerate(image) for patch in token["patches"]}
            places.append([of[n] for n in range(self.grid[0] * self.grid[1])])
        return torch.tensor(places)


@pytest.mark.parametrize("kind", list(BACKBONE_OF_KIND))
@pytest.mark.parametrize("masked", [False, True])
def test_the_model_equals_the_rules(kind, masked):
    """With rotary positions, attention masks and intermediate predictions."""
    model = tiny_model(kind)
    model.set_attn_mask_probs([float(masked)] * 2)
    grid, prefix, queries = (5, 7), model.config.num_prefix_tokens, model.config.num_queries
    pixels = F.interpolate(torch.randn(1, 3, 4, 6), size=(80, 112)) + 0.3 * torch.randn(2, 3, 80, 112)
    model.set_token_merging(layers=(1, 2), threshold=0.1)
    found = model(pixels)

    with torch.no_grad():
        hidden = model.embeddings(pixels)
        table = full = rotary_table(model.config, grid, hidden.device, hidden.dtype, False)
        rules = Rules(hidden, prefix, grid)
        for number, layer in enumerate(model.layers[:2], start=1):
            hidden = hidden + layer.layer_scale1(layer.attention(layer.norm1(hidden), None, table)[0])
            for image, x in zip(rules.images, hidden):
                for token, value in zip(image, x):
                    token["x"] = value
            assert rules.local(0.1) if number == 1 else rules.pairs(2)
            hidden = rules.x()
            hidden = hidden + layer.layer_scale2(layer.mlp(layer.norm2(hidden)))
            if full is not None:
                angles = [
                    [full.angles[list(token["patches"])].mean(0) for token in image[prefix:]] for image in rules.images
                ]
                angles = torch.stack([torch.stack(rows) for rows in angles])
                table = RotaryTable.from_angles(angles, hidden.dtype, full.interleaved).with_prefix(prefix)
        hidden = torch.cat([model.query(2), hidden], dim=1)
        table = table and table.with_prefix(queries)
        place = rules.place()

        def on_grid(hidden):
            tokens = model.layernorm(hidden)
            patches = torch.stack([image[queries + prefix :][rows] for image, rows in zip(tokens, place)])
            return torch.cat([tokens[:, : queries + prefix], patches], dim=1)

        for layer in model.layers[2:]:
            mask = None
            if masked:
                inside = model.predict(on_grid(hidden), grid).logits_on(grid).flatten(2) > 0  # [B, Q, N]
                mask = torch.ones(2, 1, queries, hidden.shape[1], dtype=torch.bool)
                for b, image in enumerate(rules.images):
                    for k, token in enumerate(image[prefix:]):
                        mask[b, 0, :, queries + prefix + k] = inside[b][:, list(token["patches"])].any(1)
            hidden = layer(hidden, mask, table)
        logits = model.predict(on_grid(hidden), grid).logits()
    assert torch.allclose(found.masks_queries_logits, logits["masks_queries_logits"], atol=1e-4, rtol=1e-4)
    assert torch.allclose(found.class_queries_logits, logits["class_queries_logits"], atol=1e-5, rtol=1e-4)
    assert found.last_hidden_state.shape[1] == queries + prefix + 35
    shorter = model(pixels, output_hidden_states=True).hidden_states[-2].shape[1]
    assert shorter < queries + prefix + 35


@pytest.mark.parametrize("kind", ["dinov2", "eva02"])
def test_thresholds_none_and_above_1_change_nothing(kind):
    model, pixels = tiny_model(kind), torch.randn(1, 3, 64, 64)
    before = model(pixels).masks_queries_logits
    model.set_token_merging(layers=(1, 2), threshold=0.2)
    assert not torch.equal(model(pixels).masks_queries_logits, before)
    for threshold in (1.01, None):
        model.set_token_merging(layers=(1, 2), threshold=threshold)
        assert torch.equal(model(pixels).masks_queries_logits, before)
    model.set_token_merging(layers=(1, 2), threshold=0.2)
    torch.manual_seed(0)
    trained = model.train()(pixels).masks_queries_logits
    model.set_token_merging()
    torch.manual_seed(0)
    assert torch.equal(model(pixels).masks_queries_logits, trained)


def test_small_grids_in_half_precision():
    model = tiny_model("dinov3").to(torch.bfloat16)
    model.set_token_merging(layers=(1, 2), threshold=0.5)
    for size in ((16, 16), (16, 48), (80, 48)):
        out = model(torch.randn(2, 3, *size, dtype=torch.bfloat16))
        assert out.masks_queries_logits.shape == (2, 7, size[0] // 4, size[1] // 4)
        assert out.masks_queries_logits.isfinite().all()


@pytest.mark.parametrize(("arguments", "value"), [
    ({"layers": (1, 3), "threshold": 0.9}, r"\[1, 3\]"),
    ({"layers": (2, 1), "threshold": 0.9}, r"\[2, 1\]"),
    ({"layers": (1,), "threshold": 0.9}, r"\[1\]"),
    ({"threshold": 0.9}, r"\[1, 7\]"),
    ({"layers": (1, 2), "threshold": math.nan}, "nan"),
    ({"layers": (1, 2), "threshold": "high"}, "'high'"),
])  # fmt: skip
def test_wrong_settings_are_refused(arguments, value):
    with pytest.raises(ValueError, match=value):
        tiny_model().set_token_merging(**arguments)
