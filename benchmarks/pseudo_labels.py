"""A few labeled photographs against the same and pseudo-labels of the others: two runs for `benchmarks.results`.

    python -m benchmarks.pseudo_labels --data DATA --labeled 20 --weights FILE --output FOLDER [--steps 240]

Of a data set in Roboflow's layout (train/ and valid/, COCO json in each) the first images keep their labels. A model
trained on them labels the others, by `eomt predict --as-dataset`, and a second one starts as the first did and trains
for as many steps on both. The teacher's labels count from `--least-score` on; the rest of an image is ignored.
"""

import argparse
import shutil
from pathlib import Path

from eomt.cli import main as eomt
from eomt.inference.writing import read_json, write_json

from . import own_data

ANNOTATIONS = "_annotations.coco.json"


def split(data: Path, labeled: int, folder: Path) -> tuple[Path, Path]:
    """Copies: the data set with only the first `labeled` training images, and a folder of the other images alone."""
    few, others = folder / f"{data.name}-{labeled}", folder / "others"
    shutil.copytree(data / "valid", few / "valid")
    content = read_json(data / "train" / ANNOTATIONS)
    (few / "train").mkdir()
    others.mkdir()
    for number, image in enumerate(content["images"]):
        target = few / "train" if number < labeled else others
        shutil.copy(data / "train" / image["file_name"], target)
    content["images"] = content["images"][:labeled]
    kept = {image["id"] for image in content["images"]}
    content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] in kept]
    write_json(few / "train" / ANNOTATIONS, content)
    return few, others


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pseudo_labels", description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--weights", required=True, help="file with the backbone's weights")
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--labeled", type=int, default=20)
    parser.add_argument("--least-score", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--image-size", type=int, default=224)
    options = parser.parse_args(argv)
    options.output.mkdir(parents=True)
    few, others = split(options.data, options.labeled, options.output)
    teacher, pseudo = options.output / "teacher", options.output / "pseudo"
    common = ["--data", few, "--task", "instance", "--weights", options.weights, "--seed", options.seed]
    common += ["--steps", options.steps, "--image-size", options.image_size]
    run(["ours", *common, "--output", options.output / "ours", "--save", teacher])
    label = ["predict", others, "--model", teacher, "--output", options.output / "predicted", "--no-overlays"]
    if eomt([str(part) for part in [*label, "--as-dataset", pseudo, "--least-score", options.least_score]]):
        raise SystemExit(f"not all images of {others} could be labeled")
    run(["pseudo-labels", *common, "--output", options.output / "pseudo-labels", "--more-data", pseudo])


def run(arguments: list) -> None:
    own_data.main([str(part) for part in arguments])


if __name__ == "__main__":
    main()
