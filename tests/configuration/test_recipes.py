"""Recipes equal the authors' configurations, and their results those of the paper."""

import dataclasses

import pytest

from eomt.configuration.recipes import RECIPES, REPORTED, reported_for, steps_per_epoch

L, SB, G = (
    ([14782, 29564, 44346, 59128], [29564, 44346, 59128, 73910]),
    ([14782, 36955, 59128], [29564, 51737, 73910]),
    ([14782, 25869, 36955, 48042, 59128], [29564, 40651, 51737, 62824, 73910]),
)
SB_2X = ([29564, 73910, 118256], [59128, 103474, 147820])
ADE_L = ([6520, 13040, 19560, 26080], [13040, 19560, 26080, 32600])
ADE_G = ([6520, 11410, 16300, 21190, 26080], [13040, 17930, 22820, 27710, 32600])
CITY = ([3317, 6634, 9951, 13268], [6634, 9951, 13268, 16585])
V3_L = ([0, 29564, 44346, 59128], [3000, 44346, 59128, 73910])
V3_SB = ([0, 73910, 118256], [3000, 103474, 147820])
V3_ADE = ([0, 6520, 9780, 13040], [3000, 9780, 13040, 16300])

# name: epochs, lr, llrd, llrd on L2, warm-up, L2, annealing
V2 = (1e-4, 0.8, True, (500, 1000))
V3 = (2e-4, 0.8, False, (2000, 3000))
AUTHORS = {
    "coco_panoptic_eomt_small_640": (12, *V2, 3, SB),
    "coco_panoptic_eomt_base_640": (12, *V2, 3, SB),
    "coco_panoptic_eomt_small_640_2x": (24, *V2, 3, SB_2X),
    "coco_panoptic_eomt_base_640_2x": (24, *V2, 3, SB_2X),
    "coco_panoptic_eomt_large_640": (12, *V2, 4, L),
    "coco_panoptic_eomt_large_1280": (12, *V2, 4, L),
    "coco_panoptic_eomt_giant_640": (12, *V2, 5, G),
    "coco_panoptic_eomt_giant_1280": (12, *V2, 5, G),
    "coco_instance_eomt_large_640": (12, *V2, 4, L),
    "coco_instance_eomt_large_1280": (12, *V2, 4, L),
    "ade20k_panoptic_eomt_large_640": (31, *V2, 4, ADE_L),
    "ade20k_panoptic_eomt_large_1280": (31, *V2, 4, ADE_L),
    "ade20k_panoptic_eomt_giant_640": (31, *V2, 5, ADE_G),
    "ade20k_panoptic_eomt_giant_1280": (31, *V2, 5, ADE_G),
    "ade20k_semantic_eomt_large_512": (31, *V2, 4, ADE_L),
    "cityscapes_semantic_eomt_large_1024": (107, *V2, 4, CITY),
    "coco_panoptic_eomt_large_640_dinov3": (12, *V3, 4, V3_L),
    "coco_panoptic_eomt_large_1280_dinov3": (12, *V3, 4, V3_L),
    "coco_panoptic_eomt_small_640_2x_dinov3": (24, *V3, 3, V3_SB),
    "coco_panoptic_eomt_base_640_2x_dinov3": (24, *V3, 3, V3_SB),
    "coco_instance_eomt_large_640_dinov3": (12, *V3, 4, L),
    "coco_instance_eomt_large_1280_dinov3": (12, *V3, 4, L),
    "ade20k_semantic_eomt_large_512_dinov3": (16, 2e-4, 1.0, True, (2000, 3000), 4, V3_ADE),
}
PMT_COCO = ([0, 23651, 32520, 41389, 50258, 59128], [3000, 38433, 47302, 56171, 65040, 73910])
PMT_ADE = ([0, 5384, 7403, 9422, 11442, 13461], [3000, 8749, 10769, 12788, 14807, 16826])
for _size, _side in (("small", 640), ("base", 640), ("large", 640), ("large", 1280)):
    AUTHORS[f"coco_panoptic_pmt_{_size}_{_side}_dinov3"] = (12, 2e-4, 1.0, True, (6000, 0), 6, PMT_COCO)
for _side in (640, 1280):
    AUTHORS[f"coco_instance_pmt_large_{_side}_dinov3"] = (12, 2e-4, 1.0, True, (6000, 0), 6, PMT_COCO)
AUTHORS["ade20k_semantic_pmt_large_512_dinov3"] = (16, 2e-4, 1.0, True, (6000, 0), 6, PMT_ADE)
TABLE_2 = {  # the same run from other weights
    "coco_panoptic_eomt_large_640_eva02": "eva02_large_patch14_224.mim_m38m",
    "coco_panoptic_eomt_large_640_deit3_in21k": "deit3_large_patch16_384.fb_in22k_ft_in1k",
    "coco_panoptic_eomt_large_640_deit3_in1k": "deit3_large_patch16_384.fb_in1k",
}


@pytest.mark.parametrize("name", AUTHORS)
def test_recipes_equal_the_authors(name):
    recipe = RECIPES[name]
    fields = ("epochs", "learning_rate", "llrd", "llrd_l2_enabled", "warmup_steps", "num_blocks")
    assert (*(getattr(recipe, field) for field in fields), recipe.annealing_steps()) == AUTHORS[name]
    semantic = recipe.task == "semantic"
    assert recipe.num_queries == (100 if semantic else 200)
    labels = {"coco": 80 if recipe.task == "instance" else 133, "ade20k": 150, "cityscapes": 19}
    assert recipe.num_labels == labels[recipe.dataset]
    assert recipe.scale_range == ((0.5, 2.0) if semantic else (0.1, 2.0))
    assert recipe.color_jitter == (recipe.dataset != "coco")
    assert (recipe.batch_size, recipe.weight_decay, recipe.max_grad_norm, recipe.poly_power) == (16, 0.05, 0.01, 0.9)
    assert str(recipe.image_size) in name
    assert ("dinov3" in name) == ("dinov3" in recipe.backbone)


def test_every_recipe_is_known_and_table_2_differs_in_the_backbone_only():
    assert set(RECIPES) == {*AUTHORS, *TABLE_2}
    large = RECIPES["coco_panoptic_eomt_large_640"]
    for name, backbone in TABLE_2.items():
        assert RECIPES[name] == dataclasses.replace(large, name=name, backbone=backbone, checkpoint=None)


def test_steps_follow_from_images_and_batch_size():
    assert RECIPES["coco_panoptic_eomt_large_640"].total_steps == 88_692
    assert RECIPES["ade20k_semantic_eomt_large_512"].total_steps == 39_122
    assert RECIPES["cityscapes_semantic_eomt_large_1024"].total_steps == 19_902
    assert steps_per_epoch(2_975, batch_size=16, devices=4) == 186
    assert steps_per_epoch(2_975, batch_size=16, devices=1) == 185
    half = dataclasses.replace(RECIPES["coco_panoptic_eomt_large_640"], batch_size=32)
    assert half.total_steps == pytest.approx(88_692 / 2, abs=12)


def test_annealing_stretches_with_the_run():
    recipe = RECIPES["coco_panoptic_eomt_large_640_dinov3"]
    assert recipe.annealing_steps(8869) == ([0, 2956, 4434, 5912], [300, 4434, 5912, 7390])
    assert recipe.annealing_steps(88_692) == recipe.annealing_steps()


@pytest.mark.parametrize("name", RECIPES)
def test_reported_result_is_of_the_recipe(name):
    recipe, row = RECIPES[name], RECIPES[name].reported
    assert (row.metric, row.dataset) == (recipe.metric, recipe.dataset)
    assert row.image_size == f"{recipe.image_size}²"
    if recipe.initial_checkpoint:
        assert RECIPES[recipe.initial_checkpoint].image_size == recipe.image_size
        assert recipe.initial_checkpoint == name.replace("ade20k", "coco")


def test_reported_rows_name_real_recipes_and_tables_agree():
    assert {row.recipe for row in REPORTED} - {None} == set(RECIPES)
    for name in RECIPES:  # a result that two tables print is the same in both
        assert len({(row.value, row.gflops, row.fps) for row in REPORTED if row.recipe == name}) == 1
    assert len(set(REPORTED)) == len(REPORTED)
    ladder = [row.value for row in REPORTED if row.table == "Table 1"]
    assert ladder == [row.value for row in REPORTED if row.table == "Table B" and row.metric == "PQ"]
    assert {row.table for row in REPORTED} == {*(f"Table {n}" for n in "123456789BCDE"), "model zoo"}
    assert reported_for("nothing") is None


def test_the_annealing_of_pmt_follows_its_blocks():
    recipe = dataclasses.replace(
        RECIPES["coco_panoptic_pmt_large_640_dinov3"], num_blocks=4, first_block_annealing=None
    )
    starts, ends = recipe.annealing_steps(1800)
    assert starts[0] == pytest.approx(300, abs=10)  # from a sixth to two thirds, as with six blocks
    assert ends[-1] == pytest.approx(1500, abs=10)
    assert [len(starts), len(ends)] == [4, 4]
    assert starts == sorted(starts)
