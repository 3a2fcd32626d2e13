"""Models, photos and hostile files for the page's tests."""

import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from eomt import EoMTImageProcessor
from tests.models import make_confident, tiny_model

STUFF = [3, 4]
NAMES = ("cat", "dog", "boat", "sky", "sea & sand")


def save_model(folder: Path, task: str = "panoptic", seed: int = 5) -> Path:
    """A tiny model that is sure of its classes: with this seed it finds two dogs by the sea."""
    stuff = STUFF if task == "panoptic" else []
    labels = {"id2label": dict(enumerate(NAMES)), "label2id": {name: i for i, name in enumerate(NAMES)}}
    model = tiny_model(num_queries=4, seed=seed, task=task, stuff_label_ids=stuff, num_labels=5, **labels)
    make_confident(model)
    model.set_attn_mask_probs([0.0] * 2)
    model.save_pretrained(folder)
    EoMTImageProcessor(task=task, size=64, stuff_label_ids=stuff).save_pretrained(folder)
    return folder


def photo(path: Path, size=(60, 80), seed: int = 0) -> Path:
    noise = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    Image.fromarray(noise).resize(size[::-1], Image.Resampling.BICUBIC).save(path)
    return path


def hostile(folder: Path) -> dict[str, Path]:
    """{what the page says: file}."""
    text, cut, bomb = folder / "text.jpg", folder / "cut.png", folder / "bomb.png"
    text.write_text("no image")
    cut.write_bytes(photo(folder / "whole.png").read_bytes()[:400])
    header = b"IHDR" + (12_000).to_bytes(4, "big") * 2 + b"\x08\x00\x00\x00\x00"
    chunks = [header, b"IDAT" + zlib.compress(b"\0" * 100_000), b"IEND"]
    body = b"".join((len(c) - 4).to_bytes(4, "big") + c + zlib.crc32(c).to_bytes(4, "big") for c in chunks)
    bomb.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return {"cannot read image 'text.jpg'": text, "cannot read image 'cut.png'": cut, "12000 × 12000 pixels": bomb}
