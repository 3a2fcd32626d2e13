"""From photo to segments through `pipeline`: the built-in, this implementation, exported engines, cheaper models.

Each row runs in a process of its own. Writes docs/benchmarks.md, and its excerpt in the README.
"""

import io
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from .engine_rows import DTYPES, ENGINE_ROWS, FULL, MODEL_ROWS, MODELS, OTHER_ROWS, Row
from .engines_page import write
from .inference import confident, photo
from .models import pair

BACKBONE = "vit_base_patch14_reg4_dinov2"
PHOTOS = ((427, 640), (1500, 2000))  # height, width
RULES = {"threshold": 0.8, "overlap_mask_area_threshold": 0.0}  # masks of random weights overlap more than 0.8
FOLDER_PHOTOS = 50


def exported_folder(folder: Path, model: str, engine: str, precision: str) -> Path:
    """Where a row's files lie: bf16 is computed from the fp32 file."""
    kind = "int8" if precision == "int8" else "fp32"
    return folder / f"{list(MODELS).index(model)}-{engine}-{kind}"


def export_all(folder: Path) -> None:
    """The same weights for every engine; other models have random ones of their own."""
    from transformers import EomtImageProcessor

    from eomt import EoMTConfig, EoMTForUniversalSegmentation, EoMTImageProcessor
    from eomt.export import export, exportable

    ours, theirs = pair(BACKBONE)
    theirs.save_pretrained(folder / "built-in")
    sizes = {"shortest_edge": 640, "longest_edge": 640}
    EomtImageProcessor(do_pad=True, size=sizes).save_pretrained(folder / "built-in")
    ours.save_pretrained(folder / "torch")
    EoMTImageProcessor(task="panoptic", size=640).save_pretrained(folder / "torch")
    for name, overrides in MODELS.items():
        if overrides:
            fields = {"image_size": 640, "num_labels": 133, "num_queries": 200, "layerscale_value": 1.0}
            ours = EoMTForUniversalSegmentation(EoMTConfig.for_backbone(BACKBONE, **fields | overrides))
        side = overrides.get("image_size", 640)
        processor = EoMTImageProcessor(task="panoptic", size=side)
        confident(ours)
        calibration = [processor(photo(size), return_tensors="pt").pixel_values.numpy() for size in PHOTOS]
        for row in ENGINE_ROWS + MODEL_ROWS:
            if row.model != name or row.precision == "bf16" or row.engine not in ("onnx", "openvino"):
                continue
            target = exported_folder(folder, name, row.engine, row.precision)
            target.mkdir()
            export(exportable(ours), row.engine, target, (side, side), row.precision, calibration)
            ours.config.save_pretrained(target)
            processor.save_pretrained(target)


def load(folder: Path, row: Row):
    """The row's pipeline."""
    import transformers

    dtype = DTYPES.get(row.precision)
    if row.engine == "mask2former":
        model, processor = (
            mask2former(row.model),
            transformers.Mask2FormerImageProcessor(
                size={"shortest_edge": 640, "longest_edge": 640}, pad_size={"height": 640, "width": 640}
            ),
        )
    elif row.engine == "built-in":
        model = transformers.EomtForUniversalSegmentation.from_pretrained(folder / row.engine, dtype=dtype)
        model.attn_mask_probs.zero_()
        processor = transformers.EomtImageProcessor.from_pretrained(folder / row.engine)
    else:
        import eomt
        from eomt.engines import ExportedEoMT

        if row.engine == "torch":
            source = folder / row.engine
            model = eomt.EoMTForUniversalSegmentation.from_pretrained(source, dtype=dtype)
        else:
            source = exported_folder(folder, row.model, row.engine, row.precision)
            asked = None if row.precision == "int8" else row.precision
            model = ExportedEoMT.from_pretrained(source, engine=row.engine, dtype=asked)
        processor = transformers.AutoImageProcessor.from_pretrained(source)
    if isinstance(model, torch.nn.Module):
        confident(model.eval())
    return transformers.pipeline("image-segmentation", model=model, image_processor=processor)


def mask2former(swin: str):
    """transformers' Mask2Former with the published sizes and random weights."""
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

    stages = {"out_features": ["stage1", "stage2", "stage3", "stage4"]}
    backbone = {
        "Swin-T": SwinConfig(embed_dim=96, depths=[2, 2, 6, 2], num_heads=[3, 6, 12, 24], window_size=7, **stages),
        "Swin-L": SwinConfig(embed_dim=192, depths=[2, 2, 18, 2], num_heads=[6, 12, 24, 48], window_size=12, **stages),
    }[swin]
    queries = {"Swin-T": 100, "Swin-L": 200}[swin]
    config = Mask2FormerConfig(backbone_config=backbone, num_queries=queries, num_labels=133)
    return Mask2FormerForUniversalSegmentation(config)


def measure(folder: str, model: str, engine: str, precision: str, repeats: int = 5) -> None:
    """One row, in its own process: prints json with seconds and segments of each photo, and the peak memory."""
    row = Row(model, engine, precision)
    segment = load(Path(folder), row)
    found = {"seconds": [], "segments": []}
    with torch.inference_mode():
        for size in PHOTOS:
            image = photo(size)
            segments = segment(image, **RULES)
            found["segments"].append(len(segments))
            label_map = np.full(size, -1, np.int16)
            for index, entry in enumerate(segments):
                label_map[np.asarray(entry["mask"]) > 0] = index
            np.save(Path(folder, f"{'-'.join(asdict(row).values()).replace('/', '')}-{size[0]}.npy"), label_map)
            times = []
            for _ in range(repeats):
                started = time.perf_counter()
                segment(image, **RULES)
                times.append(time.perf_counter() - started)
            found["seconds"].append(statistics.median(times))
        if engine in ("onnx", "openvino") and model == FULL:
            found["throughput"] = throughput(exported_folder(Path(folder), model, engine, precision), segment.model)
    status = Path("/proc/self/status")  # Linux: the highest memory that the process had in use
    peak = re.search(r"VmHWM:\s+(\d+)", status.read_text()) if status.exists() else None
    found["memory"] = int(peak[1]) / 2**20 if peak else None  # GiB
    print(json.dumps(found))


def throughput(folder: Path, model) -> tuple[float, float] | None:
    """(images/s of `eomt predict` over a folder of photos, of the engine alone); the file's own number type."""
    from eomt.cli import main

    if model.engine.precision == "fp32" and model.engine.dtype != "fp32":
        return None  # `eomt predict` computes in what the file was exported for
    pixels = np.zeros((1, 3, *model.engine.size), np.float32)
    alone = []
    for _ in range(9):
        started = time.perf_counter()
        model.engine.run(pixels)
        alone.append(time.perf_counter() - started)
    with tempfile.TemporaryDirectory() as scratch:
        images = Path(scratch, "photos")
        images.mkdir()
        for index in range(FOLDER_PHOTOS):
            photo(PHOTOS[0]).save(images / f"{index}.jpg")
        said = io.StringIO()
        with redirect_stdout(said):
            main(["predict", str(images), "--model", str(folder), "--output", f"{scratch}/out", "--no-overlays"])
    rate = float(re.search(r"([\d.]+) images/s", said.getvalue())[1])
    return rate, 1 / statistics.median(alone)


def differing(folder: Path, row: Row) -> list[float]:
    """Share of pixels in another segment than the built-in's in fp32, of each photo."""
    name = "{}-{}-{}-{}.npy"
    shares = []
    for height, _ in PHOTOS:
        ours, theirs = (
            np.load(folder / name.format(r.model.replace("/", ""), r.engine, r.precision, height))
            for r in (row, ENGINE_ROWS[0])
        )
        shares.append(float((ours != theirs).mean()))
    return shares


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        export_all(Path(folder))
        found = {}
        for row in ENGINE_ROWS + MODEL_ROWS + OTHER_ROWS:
            arguments = ", ".join(map(repr, (folder, *asdict(row).values())))
            code = f"from benchmarks.engines import measure; measure({arguments})"
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"{row.title}, {row.precision}:\n{done.stderr}")
            found[row] = json.loads(done.stdout.splitlines()[-1])
            if row.model == FULL:
                found[row]["differing"] = differing(Path(folder), row)
            print(row.title, row.precision, found[row], flush=True)
    write(found)


if __name__ == "__main__":
    main()
