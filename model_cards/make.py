"""Cards of the recipes and of the package, written from `configuration/` alone.

    python -m model_cards.make [FOLDER]      # rewrites FOLDER (default: model_cards)

A test compares the committed files.
"""

import sys
from pathlib import Path

from eomt.configuration import FAMILIES, TASK_ROWS, find_backbone
from eomt.configuration.recipes import RECIPES, TRAINING_SETS, Recipe, Reported, TrainingSet, reported_for
from eomt.training.card import LIMITS, PAPER, front_matter, table, usage


def _deltas(recipe: Recipe) -> str:
    return f"""`{recipe.checkpoint}` holds the same weights as differences from \
`{find_backbone(recipe.backbone).hub_name}` (accept its license on the hub first). This package adds the two: \
`EoMTForUniversalSegmentation.from_pretrained("{recipe.checkpoint}")`. To make a folder for transformers:

```bash
eomt convert {recipe.checkpoint} FOLDER
```"""


def _pmt_usage(recipe: Recipe) -> str:
    data = recipe.training_set
    return f"""```python
from eomt import PMTConfig
from eomt.configuration.labels import label_space
from eomt.modeling_eomt import load_authors_checkpoint

labels = label_space("{data.labels}")
config = PMTConfig.for_backbone(
    "{recipe.backbone}",
    image_size={recipe.image_size},
    task="{recipe.task}",
    **labels.config_fields,
    stuff_label_ids=list(labels.stuff_label_ids),
)
model = load_authors_checkpoint("DOWNLOAD", config)  # the encoder comes from the hub; its license has to be accepted
```"""


def _cost(recipe: Recipe) -> str:
    row: Reported = reported_for(recipe.name.replace("_2x", "")) or recipe.reported  # twice the epochs, same model
    if row.gflops is None and row.fps is not None:
        return f"{row.fps:g} images/s (H100, torch.compile with max-autotune; the authors' model zoo)."
    if row.gflops is None:
        return "The authors report no cost for this model. `eomt benchmark` measures it."
    text = (
        f"{row.parameters:g}M parameters, {row.gflops:,g} GFLOPs per image, {row.fps:g} images/s "
        "(H100, batch 1, mixed precision, torch.compile; §4.1)."
    )
    return f"{text} {row.note}." if row.note.startswith("GFLOPs") else text


def _settings(recipe: Recipe) -> str:
    starts, ends = recipe.annealing_steps()
    l2 = "with the same decay" if recipe.llrd_l2_enabled else "at the full rate"
    where, rates = "the last", f"{recipe.learning_rate:g}, × {recipe.llrd:g} per block; last blocks {l2}"
    warmup = f"heads {recipe.warmup_steps[0]:,}, then backbone {recipe.warmup_steps[1]:,}"
    decay = f"polynomial, power {recipe.poly_power}"
    if recipe.architecture == "pmt":
        where, rates = "the decoder's", f"{recipe.learning_rate:g}; the backbone is frozen"
        warmup, decay = f"{recipe.warmup_steps[0]:,}", "half a cosine, to 1e-9"
    jitter = "color jitter, " if recipe.color_jitter else ""
    low, high = recipe.scale_range
    return table(
        ("setting", "value"),
        [
            ("backbone", f"`{recipe.backbone}`, patch 16"),
            ("queries; blocks with queries", f"{recipe.num_queries}; {where} {recipe.num_blocks}"),
            (
                "images per step; steps per epoch; epochs",
                f"{recipe.batch_size}; {recipe.steps_per_epoch:,}; {recipe.epochs}",
            ),
            ("optimizer steps", recipe.total_steps),
            ("learning rate", rates),
            ("warm-up steps", warmup),
            ("decay", decay),
            ("AdamW", f"betas {recipe.adam_betas}, weight decay {recipe.weight_decay} on every parameter"),
            ("gradient norm clipped at", recipe.max_grad_norm),
            ("mask annealing, steps", ", ".join(f"{start:,}–{end:,}" for start, end in zip(starts, ends))),
            ("augmentation", f"{jitter}flip, scale {low}–{high}, crop {recipe.image_size}²"),
            ("precision", f"{recipe.precision} autocast"),
        ],
    )


def _images(data: TrainingSet) -> str:
    inferred = ", inferred from the authors' steps" if data.inferred else ""
    targets = f" ({data.images:,} with targets{inferred})" if data.images != data.published else ""
    return f"{data.published:,} training images{targets}"


def recipe_card(recipe: Recipe) -> str:
    """Recipe → its card, Markdown."""
    row, data = recipe.reported, recipe.training_set
    backbone = find_backbone(recipe.backbone)
    weights, weights_license = backbone.title, FAMILIES[backbone.family].license
    start = f"Training starts from the weights of `{recipe.initial_checkpoint}` without its class head.\n\n"
    trained = "The authors publish no weights for this recipe."
    if recipe.architecture == "pmt":
        trained = f"""The authors' weights of this recipe, the decoder alone: `{recipe.checkpoint}`.

{_pmt_usage(recipe)}"""
    elif recipe.checkpoint:
        trained = f"The authors' weights of this recipe: `{recipe.hub_model}`.\n\n{usage(recipe.hub_model)}"
    if recipe.is_delta:
        trained += f"\n\n{_deltas(recipe)}"
    model, paper = "EoMT", PAPER
    design = f"A plain ViT: its last {recipe.num_blocks} blocks also process"
    if recipe.architecture == "pmt":
        model, paper = "PMT", "[PMT](https://arxiv.org/abs/2603.25398) (CVPR 2026 workshop)"
        design = f"A frozen ViT and a decoder: its {recipe.num_blocks} blocks process the ViT's tokens and"
    where = "the authors' model zoo" if row.table == "model zoo" else f"the paper, {row.table}"
    return f"""{front_matter(recipe.task, recipe.dataset)}

# {recipe.name}

{model}, {row.backbone} pre-trained by {weights}, for {recipe.task} segmentation at {recipe.image_size}²: \
{TASK_ROWS[recipe.task].description}. {design} {recipe.num_queries} learned queries. Each query predicts one mask and \
its class. Paper: {paper}.

{trained}

## Training

```bash
{recipe.command}
```

{start if recipe.initial_checkpoint else ""}Data: {data.title}, {data.num_labels} classes, \
{_images(data)}.

{_settings(recipe)}

## Expected result

**{row.value} {row.metric}** on {data.title} val ({where}). This is the authors' result; the run was not \
repeated here.

Cost of inference: {_cost(recipe)}

## License

Code: Apache-2.0. Backbone weights: {weights_license}. Data: {data.terms}. The terms of both apply to trained weights.

## Limits

{LIMITS}
"""


def package_card() -> str:
    """The card of the package, with the list of recipes."""
    rows = []
    for recipe in RECIPES.values():
        row = recipe.reported
        name = f"[{recipe.name}]({recipe.name}.md)"
        source = row.table if row.table != "model zoo" else "zoo"
        rows.append((name, f"{row.value} {row.metric}", source, row.gflops, row.fps, recipe.total_steps))
    data = [(d.title, _images(d), d.num_labels, d.terms) for d in TRAINING_SETS.values()]
    licenses = ", ".join(f"{family.title}: {family.license}" for family in FAMILIES.values())
    return f"""{front_matter("universal", None)}

# EoMT

Encoder-only Mask Transformer for panoptic, instance and semantic segmentation, as a Hugging Face Transformers \
integration. Paper: {PAPER}. A plain pre-trained Vision Transformer and a few learned queries; no adapter, no pixel \
decoder, no Transformer decoder. During training, queries attend only inside their intermediate masks. Mask annealing \
removes this restriction step by step, so inference needs no masks.

## Recipes

Results are those of the authors (val splits of COCO, ADE20K and Cityscapes); the runs were not repeated here. GFLOPs \
per image; FPS on an H100 (§4.1); steps of {next(iter(RECIPES.values())).batch_size} images. `zoo`: the authors' \
repository.

{table(("recipe", "result", "source", "GFLOPs", "FPS", "steps"), rows)}

## Data

{table(("data set", "images", "classes", "terms"), data)}

## License

Code: Apache-2.0. The terms of the backbone ({licenses}) and of the \
training data apply to trained weights.

## Limits

{LIMITS}
"""


def all_cards() -> dict[str, str]:
    """File name → card."""
    return {"README.md": package_card(), **{f"{name}.md": recipe_card(recipe) for name, recipe in RECIPES.items()}}


def main(folder: str = "model_cards") -> None:
    Path(folder).mkdir(exist_ok=True)
    for name, card in all_cards().items():
        Path(folder, name).write_text(card, encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
