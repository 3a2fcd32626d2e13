"""`eomt convert`: an authors' checkpoint → a hub directory, and back. Same weights, bit for bit."""

import argparse
from pathlib import Path

from ..configuration import TASKS


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="eomt convert",
        description="Convert a checkpoint of the authors' code to a folder that transformers loads (model and image "
        "processor), or such a folder to an authors' file, which keeps the configuration. What a file does not say is "
        "inferred from its shapes and printed before anything is written.",
    )
    p.add_argument("source", help="authors' file or its folder; or a saved model's folder or hub name")
    p.add_argument("destination", type=Path, help="folder to create; or, from a saved model, a file such as eomt.bin")
    p.add_argument("--force", action="store_true", help="replace an existing destination")
    to_hub = p.add_argument_group("authors' → hub")
    to_hub.add_argument(
        "--task", choices=TASKS, help="task it was trained for (default: inferred from classes and queries)"
    )
    to_hub.add_argument(
        "--labels",
        help="class names: a data set (coco_panoptic, ade20k_semantic, …), a json file (a list, or label → name), or a "
        "text file with one name per line (default: the data set with that many classes, else LABEL_0, …)",
    )
    to_hub.add_argument("--stuff", type=int, nargs="*", metavar="LABEL", help="panoptic: labels that are stuff")
    to_hub.add_argument(
        "--image-size", nargs="+", metavar="PIXELS",
        help="side, or height and width (default: from the position embeddings, if square; DINOv3 has none: 640)",
    )  # fmt: skip
    to_hub.add_argument("--heads", type=int, help="attention heads (default: width / 64)")
    to_hub.add_argument("--reference-backbone", help="DINOv3 weights that the encoder weights are deltas to")
    p.add_argument("--delta-from", help="hub → authors': write the encoder as deltas to these DINOv3 weights")
    return p


def read(argv: list[str]) -> argparse.Namespace:
    return parser().parse_args(argv)


def run(args: argparse.Namespace) -> int:
    from ..convert import convert

    convert(args)
    return 0
