"""What `eomt train` asks for besides `EoMTTrainingArguments`: the data and the model."""

from dataclasses import dataclass, field


def option(text: str, default=None, **metadata):
    """A dataclass field with the text that `--help` shows for it."""
    return field(default=default, metadata={"help": text, **metadata})


@dataclass
class DataOptions:
    """The data set and its augmentation. None: the recipe's value, or the task's default."""

    data: str = field(
        metadata={"help": "Folder of the data set, or of its official zips; formats: docs/data-formats.md."}
    )
    more_data: str | None = option(
        "Other data sets of these classes, separated by commas, whose train splits are added, such as pseudo-labels "
        "of eomt predict --as-dataset."
    )
    dataset: str = option("auto, coco, ade20k, cityscapes, yolo or folder; auto detects the format.", "auto")
    class_names: str | None = option("Names of the label png's values 0, 1, …, separated by commas.")
    ignore_ids: str | None = option("Label png values to ignore, separated by commas; 255 is always ignored.")
    image_size: str | None = option(
        "Training crop: a side in pixels, or HEIGHTxWIDTH; default: the recipe's, else the images' longer side, "
        "more where objects are small, at most 640 (semantic: 512)."
    )
    scale_range: str | None = option(
        "Scale jitter LOW,HIGH relative to the crop; default: the recipe's, else 0.1,2.0 (semantic: "
        "0.5,2.0), or 0.5,1.5 for small images."
    )
    color_jitter: bool | None = option(
        "Jitter brightness, contrast, saturation and hue; default: the recipe's, else false."
    )
    augment: bool = option("Flip, scale and crop at random; false only resizes and pads, for overfitting tests.", True)
    keep_empty: bool | None = option(
        "Keep images without segments; default: true, but false for training with a recipe, as in the paper."
    )
    check: bool = option("Read every image, print statistics and draw augmented samples, without training.", False)


@dataclass
class ModelOptions:
    """The model to start from. None: the recipe's value, or the backbone's."""

    backbone: str | None = option(
        "Pre-trained ViT by timm's or the hub's name, or small, base, large or giant: DINOv2 with registers of that "
        "size; default: the recipe's, else base."
    )
    backbone_weights: str | None = option(
        "File or folder with the backbone's weights, or scratch; default: download by the backbone's name."
    )
    checkpoint: str | None = option(
        "EoMT to start from: a folder or hub name (save_pretrained) or an authors' .bin/.ckpt; "
        "class_head=new reinitializes its class head. Default: the recipe's, else none."
    )
    step: int | None = option(
        "Train a step of the paper's ladder instead of EoMT: 0 (ViT-Adapter + Mask2Former), 1, 2 or 3 (Section 3.2)."
    )
    num_queries: int | None = option(
        "Default: the recipe's, else by the segments of the fullest image; 100 for semantic segmentation."
    )
    num_blocks: int | None = option("Number of last blocks that process the queries; default: 3 (S, B), 4 (L), 5 (g).")
    patch_size: int | None = option("Patch size in pixels; default 16.")
    hidden_size: int | None = option(
        "Width, for a scaled model of the backbone's family; needs backbone_weights=scratch."
    )
    num_hidden_layers: int | None = option("Number of blocks of a scaled model.")
    num_attention_heads: int | None = option("Number of attention heads of a scaled model.")
    train_num_points: int | None = option(
        "Points sampled per mask for the loss; default: the recipe's 12544, else half the cells of a mask."
    )
    layerscale_value: float | None = option(
        "Initial layer scale; the backbone's 1e-5 is slow from scratch, where the default is 0.1."
    )

    def overrides(self) -> dict:
        """The configuration fields that were set."""
        others = ("backbone", "backbone_weights", "checkpoint", "step")
        return {name: value for name, value in vars(self).items() if value is not None and name not in others}


def listed(text: str | None, kind=str) -> list:
    """ "a, b" → ["a", "b"]."""
    if not text:
        return []
    try:
        return [kind(part.strip()) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"{text!r} is not a list of numbers separated by commas") from None
