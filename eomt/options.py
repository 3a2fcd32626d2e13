"""The options of every command except `train` (see `training.options`). Free of torch, so that `--help` is quick.

The docstring under a field is its help text. The command line checks types and ranges.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Group, Parameter
from cyclopts.validators import Number

from .configuration.sizes import parse_size
from .training.options import TaskName, usable_cores

MODEL, DATA = Group("Model", sort_key=0), Group("Data", sort_key=1)
RULES, WRITTEN, MACHINE = Group("Segments", sort_key=2), Group("Output", sort_key=3), Group("Machine", sort_key=4)

SplitName = Literal["train", "val", "test"]
EngineName = Literal["openvino", "onnx"]
FloatType = Literal["float32", "bfloat16", "float16"]


def numbers(type_, tokens) -> tuple[int, ...]:
    """Parse "7,8" or "7" "8" to (7, 8)."""
    return tuple(int(part) for token in tokens for part in token.value.split(",") if part.strip())


def read_size(type_, tokens) -> int | tuple[int, int]:
    """Parse "640" or "480x640" to a side, or (height, width), in pixels."""
    return parse_size(*[token.value for token in tokens])


def read_sizes(type_, tokens) -> list[int | tuple[int, int]]:
    return [parse_size(token.value) for token in tokens]


def not_empty(type_, value) -> None:
    """Refuse "", which would be the current folder."""
    for one in value if isinstance(value, tuple | list) else [value]:
        if one is not None and not str(one).strip():
            raise ValueError("Empty; give a path or a name")


Words = Parameter(consume_multiple=True, validator=not_empty)
Positive = Annotated[int, Parameter(validator=Number(gte=1))]
Count = Annotated[int, Parameter(validator=Number(gte=0))]
Probability = Annotated[float, Parameter(validator=Number(gte=0, lte=1))]
Ids = Annotated[tuple[int, ...], Parameter(converter=numbers, consume_multiple=True)]
Size = Annotated[int | tuple[int, int] | None, Parameter(converter=read_size, consume_multiple=True, n_tokens=-1)]


@dataclass(kw_only=True)
class DeviceOptions:
    """Device and number type of a model."""

    device: Annotated[str | None, Parameter(group=MACHINE)] = None
    """cpu, cuda, cuda:1, mps; the best available by default."""
    dtype: Annotated[FloatType, Parameter(group=MACHINE)] = "float32"
    """Floating-point type of weights and activations."""


@dataclass(kw_only=True)
class BatchOptions(DeviceOptions):
    """Device, number type and batches of a model."""

    batch_size: Annotated[Positive, Parameter(group=MACHINE)] = 1
    """Images or tiles per batch."""
    workers: Annotated[Count, Parameter(group=MACHINE)] = field(default_factory=usable_cores)
    """Processes for reading images; 0 reads in the main process."""


@dataclass(kw_only=True)
class MaskingOptions:
    """Masked attention and token merging at inference."""

    masked: Annotated[bool | None, Parameter(group=MODEL)] = None
    """Masked attention on or off; as trained by default."""
    token_merging: Annotated[float | None, Parameter(group=MODEL, validator=Number(gt=0, lte=1))] = None
    """Merge tokens from this cosine similarity (ALGM, the paper's Table 9): faster, not exact."""
    merging_layers: Annotated[tuple[int, int], Parameter(group=MODEL)] = (1, 7)
    """Blocks in which tokens merge. They must lie before the blocks with queries."""


@dataclass(kw_only=True)
class PredictOptions(BatchOptions, MaskingOptions):
    """Options of `eomt predict`."""

    model: Annotated[str, Parameter(group=MODEL, validator=not_empty)]
    """Folder of save_pretrained or eomt export, or a hub name."""
    output: Annotated[Path, Parameter(group=WRITTEN, validator=not_empty)]
    """Folder for the results. The same command resumes an interrupted run."""
    task: Annotated[TaskName | None, Parameter(group=MODEL)] = None
    """The model's task by default."""
    compile: Annotated[bool, Parameter(group=MACHINE, negative="")] = False
    """Compile the model with torch.compile: slow to start, then faster."""
    threshold: Annotated[Probability | None, Parameter(group=RULES)] = None
    """Panoptic: least class probability of a segment (0.8). Instance: least score of a drawn instance (0.5);
    instances.json always holds the best 100."""
    tile: Annotated[Positive | None, Parameter(group=RULES)] = None
    """Side of tiles in pixels. Larger images are cut into tiles, segmented and joined. With the model's input size no
    pixel is lost. Semantic, by default: windows of the image resized to the model's input size."""
    overlap: Annotated[float, Parameter(group=RULES, validator=Number(gte=0, lte=0.5))] = 0.25
    """Share of a tile that its neighbor also covers."""
    confidence: Annotated[bool, Parameter(group=WRITTEN, negative="")] = False
    """Semantic: also write and draw a confidence map."""
    overlays: Annotated[bool, Parameter(group=WRITTEN)] = True
    """Draw the results over the images."""
    max_pixels: Annotated[Positive, Parameter(group=MACHINE)] = 200_000_000
    """Refuse larger images; an image needs about 12 bytes per pixel."""


@dataclass(kw_only=True)
class EvaluateOptions(BatchOptions, MaskingOptions):
    """Options of `eomt evaluate`."""

    data: Annotated[str, Parameter(group=DATA, validator=not_empty)]
    """Folder or zip of the data set."""
    predictions: Annotated[str | None, Parameter(group=DATA, validator=not_empty)] = None
    """Score these files instead of a model: COCO panoptic PNG and JSON, COCO results JSON with RLE, or label PNGs with
    the ids of the data set."""
    dataset: Annotated[str, Parameter(group=DATA)] = "auto"
    """Format of the data: coco, ade20k, cityscapes, yolo, voc, folder; detected by default."""
    task: Annotated[TaskName | None, Parameter(group=MODEL)] = None
    """The model's task by default; required with --predictions."""
    split: Annotated[SplitName, Parameter(group=DATA)] = "val"
    """Split to score."""
    ignore_ids: Annotated[Ids, Parameter(group=DATA)] = ()
    """Values of label images for unlabeled pixels, with commas: 0,255."""
    keep_empty: Annotated[bool, Parameter(group=DATA)] = True
    """Include images without annotations, as the official servers do. The authors exclude them."""
    crowds_as_instances: Annotated[bool, Parameter(group=DATA, negative="")] = False
    """Ignore iscrowd of COCO instances, as in training; CVAT sets it on every mask that it exports."""
    output: Annotated[Path | None, Parameter(group=WRITTEN, validator=not_empty)] = None
    """Write metrics.json, per_class.csv and confusion.png to this folder."""
    worst: Annotated[Count, Parameter(group=WRITTEN)] = 0
    """With --output: draw this number of worst images beside their ground truth."""
    save_predictions: Annotated[Path | None, Parameter(group=WRITTEN, validator=not_empty)] = None
    """Write predictions to this folder, in the formats of the official servers."""
    json: Annotated[bool, Parameter(group=WRITTEN, negative="")] = False
    """Print JSON instead of a table."""


@dataclass(kw_only=True)
class ExportOptions:
    """Options of `eomt export`."""

    format: Annotated[tuple[EngineName, ...], Parameter(group=MODEL, consume_multiple=True)] = ("onnx",)
    """Engines to export for."""
    precision: Annotated[Literal["fp32", "bf16", "fp16", "int8"], Parameter(group=MODEL)] = "fp32"
    """OpenVINO: fp32, bf16, int8. ONNX: fp32, fp16, int8."""
    image_size: Annotated[Size, Parameter(group=MODEL)] = None
    """Side or HEIGHTxWIDTH of the inputs in pixels; the image processor's by default."""
    dynamic_size: Annotated[bool, Parameter(group=MODEL, negative="")] = False
    """Accept any input size: sides from two patches to 4096 pixels, multiples of the patch (DINOv3 models)."""
    split_encoder: Annotated[bool, Parameter(group=MODEL, negative="")] = False
    """PMT: write encoder and decoder as two files, so that decoders of several tasks can share an encoder."""
    calibrate: Annotated[tuple[str, ...], Words, Parameter(group=DATA)] = ()
    """For int8: images or folders typical of later inputs; at most 100 images are used."""
    data: Annotated[str | None, Parameter(group=DATA, validator=not_empty)] = None
    """Data set for scoring the model and the files."""
    split: Annotated[SplitName, Parameter(group=DATA)] = "val"
    """Split of --data."""
    ignore_ids: Annotated[Ids, Parameter(group=DATA)] = ()
    """Values of label images for unlabeled pixels, with commas: 0,255."""
    max_drop: Annotated[float, Parameter(group=DATA, validator=Number(gte=0))] = 1.0
    """Fail if a file loses more points of PQ, AP or mIoU on --data."""
    force: Annotated[bool, Parameter(group=WRITTEN, negative="")] = False
    """Replace the output folder."""


@dataclass(kw_only=True)
class ConvertOptions:
    """Options of `eomt convert`."""

    task: Annotated[TaskName | None, Parameter(group=MODEL)] = None
    """From authors: task of the model; inferred from classes and queries by default."""
    labels: Annotated[str | None, Parameter(group=MODEL, validator=not_empty)] = None
    """From authors: class names. A data set (coco_panoptic, ade20k_semantic, …), a JSON file (a list, or {label:
    name}), or a text file of one name per line. By default the data set with that many classes, else LABEL_0, …"""
    stuff: Annotated[Ids | None, Parameter(group=MODEL)] = None
    """From authors, panoptic: labels of stuff classes, with commas."""
    image_size: Annotated[Size, Parameter(group=MODEL)] = None
    """From authors: side or HEIGHTxWIDTH; by default from square position embeddings (DINOv3: 640)."""
    heads: Annotated[Positive | None, Parameter(group=MODEL)] = None
    """From authors: attention heads; width / 64 by default."""
    backbone: Annotated[str | None, Parameter(group=MODEL, validator=not_empty)] = None
    """From authors, PMT's decoder alone: name of its encoder, of timm or the hub."""
    reference_backbone: Annotated[str | None, Parameter(group=MODEL, validator=not_empty)] = None
    """From authors: DINOv3 weights, if the checkpoint holds differences to them; by default the hub's of its size.
    PMT's decoder alone: weights of its encoder; by default those that --backbone names."""
    delta_from: Annotated[str | None, Parameter(group=MODEL, validator=not_empty)] = None
    """To authors: write the encoder as differences to these DINOv3 weights."""
    force: Annotated[bool, Parameter(group=WRITTEN, negative="")] = False
    """Replace an existing destination."""


@dataclass(kw_only=True)
class BenchmarkOptions(DeviceOptions, MaskingOptions):
    """Options of `eomt benchmark`."""

    image_size: Annotated[
        list[int | tuple[int, int]] | None,
        Parameter(group=MODEL, converter=read_sizes, consume_multiple=True, n_tokens=-1),
    ] = None
    """Sides or HEIGHTxWIDTH, all for every model. By default the model's own size, else 640."""
    task: Annotated[TaskName, Parameter(group=MODEL)] = "panoptic"
    """For backbones: task."""
    step: Annotated[tuple[Literal[0, 1, 2, 3, 4, 5], ...], Parameter(group=MODEL, consume_multiple=True)] = (5,)
    """For backbones: steps of the paper's Table 1, 0 (ViT-Adapter + Mask2Former) to 5 (EoMT)."""
    masked: Annotated[bool | None, Parameter(group=MODEL)] = None
    """Masked attention at inference. By default as in the paper: on in steps 0 to 4, off in step 5. Saved models: as
    trained."""
    images: Annotated[tuple[str, ...], Words, Parameter(group=DATA)] = ()
    """Images to count and time instead of noise. With token merging, their content decides the cost."""
    count_only: Annotated[bool, Parameter(group=MACHINE, negative="")] = False
    """Only count parameters and GFLOPs, without allocating weights."""
    batch_size: Annotated[Positive, Parameter(group=MACHINE)] = 1
    """Batch size for the throughput."""
    autocast: Annotated[bool, Parameter(group=MACHINE, negative="")] = False
    """Mixed precision, as in the paper: float32 weights, products in --dtype."""
    compile: Annotated[bool, Parameter(group=MACHINE, negative="")] = False
    """Use torch.compile, as in the paper."""
    warm_up: Annotated[Count, Parameter(group=MACHINE)] = 5
    """Untimed runs first."""
    repeats: Annotated[Positive, Parameter(group=MACHINE)] = 20
    """Timed runs."""
    json: Annotated[Path | None, Parameter(group=WRITTEN)] = None
    """Write the results to this file."""


@dataclass(kw_only=True)
class ServeOptions:
    """Options of `eomt serve`."""

    host: Annotated[str, Parameter(group=MACHINE)] = "127.0.0.1"
    """Address to listen on; only this machine by default."""
    port: Annotated[int, Parameter(group=MACHINE, validator=Number(gte=1, lte=65535))] = 7860
    """Port to listen on."""
    device: Annotated[str | None, Parameter(group=MACHINE)] = None
    """Device of PyTorch models; the best available by default."""
    max_upload: Annotated[Positive, Parameter(group=MACHINE)] = 50
    """Largest file in megabytes."""
    max_pixels: Annotated[Positive, Parameter(group=MACHINE)] = 50_000_000
    """Refuse larger images before decoding them."""
    requests: Annotated[Positive, Parameter(group=MACHINE)] = 2
    """Images segmented at the same time; others wait."""


@dataclass(kw_only=True)
class DemoOptions:
    """Options of `eomt demo`."""

    output: Annotated[Path, Parameter(validator=not_empty)] = Path("runs/demo")
    """Folder for data, model, drawn predictions and report.json."""
    steps: Positive = 700
    """Training steps of 16 images."""
    train_images: Positive = 1500
    """Synthetic training images."""
    val_images: Positive = 100
    """Held-out images."""
    masking: Literal["annealed", "always", "switched-off", "never"] = "annealed"
    """Masked attention, as in the paper's Table 7."""
    seed: int = 0
    """Seed of data and model."""
