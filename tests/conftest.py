"""What several folders of tests share."""

import numpy as np
import pytest
import torch
from PIL import Image

from eomt import EoMTImageProcessor
from eomt.cli import main
from tests.models import tiny_model
from tests.predicting import SIZES, STUFF


@pytest.fixture(scope="session")
def demo_folder(tmp_path_factory):
    """What `eomt demo` writes, with a handful of images and steps."""
    folder = tmp_path_factory.mktemp("demo") / "runs/demo"
    options = ["--output", str(folder), "--steps", "4", "--train-images", "16", "--val-images", "4"]
    assert main(["demo", *options]) == 0
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Tiny models that are sure of their classes, by task: folders."""
    directories = {}
    for task in ("panoptic", "instance", "semantic"):
        queries = 3 if task == "panoptic" else 12  # few do not cover each other
        model = tiny_model(num_queries=queries, seed=3, task=task, stuff_label_ids=STUFF if task == "panoptic" else [])
        with torch.no_grad():
            model.class_predictor.weight.mul_(40)
            model.mask_head[-1].weight.mul_(6)
        model.set_attn_mask_probs([0.0] * 2)
        model.save_pretrained(directories.setdefault(task, tmp_path_factory.mktemp(task)))
        EoMTImageProcessor(task=task, size=64, stuff_label_ids=STUFF).save_pretrained(directories[task])
    return directories


@pytest.fixture
def photos(tmp_path):
    """A folder of three small pictures (tests.predicting.SIZES)."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed, (name, (height, width)) in enumerate(SIZES.items()):
        noise = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC).save(folder / f"{name}.png")
    return folder
