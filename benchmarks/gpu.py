"""The paper's protocol (Section 4.1) on a GPU, ours beside the models built into transformers: fills docs/gpu.md.

python -m benchmarks.gpu                             # at most 8 minutes; call it again for the missing rows
python -m benchmarks.gpu --data DATA                 # and a default run of `eomt train` on this data
python -m benchmarks.gpu --tiny --page COPY          # tiny models, not compiled, to test the script

Batch 1, mixed precision, compiled for the shape, attention by sdpa (FlashAttention if the GPU has it), random weights.
Each row is written to the report and the page as soon as it is measured.
"""

import argparse
import gc
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch
import transformers
from torch import Tensor, nn
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

from eomt.cli import main as eomt
from eomt.configuration.recipes import REPORTED, Reported
from eomt.image_processing.inference import error_line
from eomt.speed.candidates import Candidate
from eomt.speed.measure import device_name, measure_seconds, peak_bytes
from eomt.training.callbacks import progress_line
from eomt.training.files import read_json, write_json

from .pages import fill_parts
from .paired import built_in
from .reproduce import BACKBONES, SIZES, ladder_step, peer_config, peer_size
from .speed import TASKS, postprocessing, rectangles

PRINTED = [  # (table, backbone, image size) of the measured rows of the paper
    ("Table 1", "ViT-L", "640²"),
    *(("Table 3", backbone, "640²") for backbone in ("ViT-S", "ViT-B", "ViT-g")),
    ("Table 4", "ViT-L", "1280²"),
    ("Table 4", "Swin-L", "800²"),
]
COMPARED = ("(", "EoMT", "Mask2Former")  # first letters of their methods; ViT-Adapter is measured as step 0 only
OURS, BUILT_IN = "ours", "built-in"
BATCH, TRAINING_BATCH, SEGMENTS = 32, 4, 12
TINY_SIDE = 64
TINY = {"hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4, "num_blocks": 2, "num_queries": 8}
TINY_MASK2FORMER = {
    "feature_size": 32, "mask_feature_size": 32, "hidden_dim": 32, "num_attention_heads": 2, "encoder_layers": 1,
    "decoder_layers": 2, "encoder_feedforward_dim": 32, "dim_feedforward": 32, "num_queries": 8,
}  # fmt: skip
TINY_LADDER = {
    "feature_size": 32, "decoder_attention_heads": 2, "encoder_layers": 1, "encoder_feedforward_dim": 32,
    "dim_feedforward": 32, "stem_width": 8,
}  # fmt: skip


@dataclass
class Row:
    """One measurement and its place on the page."""

    table: str
    name: str
    column: str  # OURS or BUILT_IN
    measure: Callable[[], dict]  # returns the figures
    printed: float | None = None  # images per second in the paper

    @property
    def key(self) -> str:
        return f"{self.table}: {self.name}, {self.column}"


class Bench:
    """The measurements on a device, of real or tiny models."""

    def __init__(self, device: torch.device, tiny: bool):
        self.device, self.tiny = device, tiny
        self.dtype = torch.float16 if device.type == "cuda" else torch.bfloat16  # of the mixed precision

    def rows(self) -> list[Row]:
        """All measurements, the most important ones first."""
        speed, rows = self.speed_rows(), []
        for task in TASKS:
            *calls, outputs = postprocessing(task, TINY_SIDE if self.tiny else 640)
            for column, process in zip((OURS, BUILT_IN), calls):
                rows.append(Row("post-processing", task, column, partial(self.post_processing, process, outputs)))
        large = self.candidate("ViT-L", "DINOv2", "640²", step=5)
        size, batch = large.image_size, 2 if self.tiny else BATCH
        for column, build in self.builders(large).items():
            rows.append(Row("training", "ViT-L, 640²", column, partial(self.training_step, build, size, column)))
            rows.append(Row("throughput", "ViT-L, 640²", column, partial(self.speed, build, size, batch)))
        return [*(r for r in speed if r.column == OURS), *rows, *(r for r in speed if r.column == BUILT_IN)]

    def speed_rows(self) -> list[Row]:
        rows = []
        for printed in printed_rows():
            name = f"{printed.method}, {printed.backbone}, {printed.image_size}"
            if printed.method == "Mask2Former":
                size = (TINY_SIDE, TINY_SIDE) if self.tiny else peer_size(printed)
                measure = partial(self.speed, self.mask2former, size)
                rows.append(Row("speed", name, BUILT_IN, measure, printed.fps))
                continue
            step = ladder_step(printed.method)
            candidate = self.candidate(printed.backbone, printed.pretraining, printed.image_size, step)
            for column, build in self.builders(candidate).items():
                if column == OURS or step == 5:
                    measure = partial(self.speed, build, candidate.image_size)
                    rows.append(Row("speed", name, column, measure, printed.fps))
        return rows

    def candidate(self, backbone: str, pretraining: str, image_size: str, step: int) -> Candidate:
        if self.tiny:
            fields = TINY if step >= 4 else {**TINY, **TINY_LADDER}
            return Candidate.find(BACKBONES["DINOv2"].format("small"), TINY_SIDE, step=step, **fields)
        name = BACKBONES[pretraining].format(SIZES[backbone])
        return Candidate.find(name, int(image_size.removesuffix("²")), step=step)

    def builders(self, candidate: Candidate) -> dict[str, Callable[[], nn.Module]]:
        ours = partial(candidate.load, self.device, torch.float32)
        return {OURS: ours, BUILT_IN: partial(built_in, candidate.config)}

    def mask2former(self) -> nn.Module:
        config = peer_config("Swin-L", 133)
        if self.tiny:
            stages = config.backbone_config.out_features
            swin = SwinConfig(embed_dim=8, depths=[1] * 4, num_heads=[1, 1, 2, 2], window_size=2, out_features=stages)
            config = Mask2FormerConfig(backbone_config=swin, **TINY_MASK2FORMER)
        return Mask2FormerForUniversalSegmentation(config).eval()

    def build(self, build: Callable[[], nn.Module]) -> nn.Module:
        torch.manual_seed(0)
        with self.device:  # on the CPU, the random weights of a large model take half a minute
            return build().to(self.device)

    def speed(self, build: Callable[[], nn.Module], size: tuple[int, int], batch: int = 1) -> dict:
        """The forward pass."""
        model = self.build(build)
        pixels = torch.rand(batch, 3, *size, device=self.device)
        compiled = model if self.tiny else torch.compile(model, dynamic=False)

        def run() -> None:
            with torch.inference_mode(), torch.autocast(self.device.type, self.dtype):
                compiled(pixel_values=pixels)

        return self.measured(run, 50) | {"images": batch, "bytes": peak_bytes(run, model, self.device)}

    def training_step(self, build: Callable[[], nn.Module], size: tuple[int, int], column: str) -> dict:
        """Forward, loss, backward and AdamW; masked attention in every block; not compiled."""
        model, batch = self.build(build).train(), 2 if self.tiny else TRAINING_BATCH
        model.attn_mask_probs.fill_(1)
        masks, labels = rectangles(SEGMENTS, size[0])
        masks = masks if column == OURS else masks.float()  # the built-in takes no bool masks
        inputs = {"pixel_values": torch.rand(batch, 3, *size, device=self.device)}
        inputs |= {"mask_labels": [masks.to(self.device)] * batch, "class_labels": [labels.to(self.device)] * batch}
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)

        def run() -> None:
            optimizer.zero_grad()
            with torch.autocast(self.device.type, torch.bfloat16):  # fp16 would need a scaler
                loss = model(**inputs).loss
            loss.backward()
            optimizer.step()

        return self.measured(run, 10) | {"images": batch, "bytes": peak_bytes(run, model, self.device)}

    def post_processing(self, process: Callable, outputs: SimpleNamespace) -> dict:
        """Logits on the device to the segments of a photo of 3 megapixels."""
        values = vars(outputs).items()
        placed = {name: v.to(self.device) if isinstance(v, Tensor) else v for name, v in values}
        return self.measured(partial(process, SimpleNamespace(**placed)), 20) | {"images": 1}

    def measured(self, run: Callable, repeats: int) -> dict:
        return measure_seconds(run, self.device, warm_up=1 if self.tiny else 3, repeats=2 if self.tiny else repeats)


def printed_rows() -> list[Reported]:
    """The measured rows of the paper, in its order."""
    rows = [row for row in REPORTED if (row.table, row.backbone, row.image_size) in PRINTED]
    return [row for row in rows if (row.dataset, row.metric) == ("coco", "PQ") and row.method.startswith(COMPARED)]


def training_run(data: str, weights: str | None, output: Path) -> dict:
    """A default run of `eomt train`, resumed if it was interrupted.

    Returns:
        {"seconds": per step, evaluations included, "steps", "results": metrics}.
    """
    done = max((int(path.name.removeprefix("checkpoint-")) for path in output.glob("checkpoint-*")), default=0)
    command = ["train", "--data", data, "--output-dir", str(output)]
    if weights:
        command += ["--backbone-weights", weights]
    if done:
        command.append("--resume")
    code = eomt(command)
    if code:
        raise RuntimeError(f"eomt train ended with exit code {code}")
    state = read_json(output / "trainer_state.json")
    seconds = next(entry["train_runtime"] for entry in reversed(state["log_history"]) if "train_runtime" in entry)
    steps = state["max_steps"]
    return {"seconds": seconds / max(1, steps - done), "steps": steps, "results": read_json(output / "results.json")}


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises `TimeoutError` in the `with` block after this time, also in a compiler."""

    def stop(*args) -> None:
        raise TimeoutError

    if seconds <= 0:
        stop()
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# --- the page --------------------------------------------------------------------------------------------------------


def page_parts(rows: list[Row], report: dict) -> dict[str, str]:
    """{mark on the page: table}, with "–" for rows that are not measured yet."""
    parts = {"machine": ", ".join(report["setting"].values())}
    for table in dict.fromkeys(row.table for row in rows):
        lines = ["| | ours | built-in | paper, H100 |", "|---|---:|---:|---:|"]
        own = [row for row in rows if row.table == table]
        for name in dict.fromkeys(row.name for row in own):
            printed = next(row.printed for row in own if row.name == name)
            cells = [figures(table, report["rows"].get(f"{table}: {name}, {column}")) for column in (OURS, BUILT_IN)]
            lines.append(f"| {name} | {cells[0]} | {cells[1]} | {f'{printed:g}' if printed else '–'} |")
        parts[table] = "\n".join(lines)
    if "run" in report:
        run = report["run"]
        parts["run"] = f"{run['steps']} steps, {run['seconds']:.2f} s each: {progress_line(run['results'])}"
    return parts


def figures(table: str, found: dict | None) -> str:
    """One cell: the speed in images per second as in the paper, the time and the memory."""
    if found is None:
        return "–"
    if "error" in found:
        return found["error"].replace("|", "/")
    rate = [f"**{found['images'] / found['median']:.1f}**"] if table in ("speed", "throughput") else []
    memory = [f"{found['bytes'] / 2**30:.2f} GiB"] if found.get("bytes") else []
    return ", ".join([*rate, f"{1e3 * found['median']:.1f} ms", *memory])


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/gpu"), help="for measurements and the run")
    parser.add_argument("--page", type=Path, default=Path("docs/gpu.md"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, default=8, help="for all rows of this call")
    parser.add_argument("--data", help="also train on this data, without a limit of time")
    parser.add_argument("--backbone-weights", help="for --data, if the default backbone cannot be downloaded")
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args(argv)
    device, file = torch.device(options.device), options.output / "rows.json"
    versions = {"torch": f"torch {torch.__version__}", "transformers": f"transformers {transformers.__version__}"}
    setting = {"device": device_name(device), **versions}
    report = read_json(file) if file.is_file() else {"setting": setting, "rows": {}}
    if report["setting"] != setting:
        raise ValueError(f"{file} is of {report['setting']}, this is {setting}; choose another --output")
    rows = Bench(device, options.tiny).rows()

    def save() -> None:
        write_json(file, report, indent=2)
        fill_parts(options.page, **page_parts(rows, report))

    end = time.monotonic() + 60 * options.minutes
    for row in rows:
        if "median" in report["rows"].get(row.key, {}):
            continue
        try:
            with time_limit(end - time.monotonic()):
                report["rows"][row.key] = row.measure()
        except TimeoutError:
            print("out of time; the same command measures the other rows", flush=True)
            break
        except Exception as error:  # a compiler may raise anything for one model; the others are still measured
            report["rows"][row.key] = {"error": error_line(error)}
        torch._dynamo.reset()
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        print(row.key, figures(row.table, report["rows"][row.key]), flush=True)
        save()
    if options.data and "run" not in report:
        report["run"] = training_run(options.data, options.backbone_weights, options.output / "train")
        save()


if __name__ == "__main__":
    main()
