"""The `eomt` command: one function per subcommand. `main` turns every error into one line and an exit code.

Exit codes: 0 success, 1 some items failed, 2 bad input, 130 interrupted, 141 broken pipe (`eomt … | head`).
`EOMT_DEBUG=1` shows tracebacks and the logs of libraries.
"""

import os
import re
import sys
import warnings
from pathlib import Path
from typing import Annotated

from cyclopts import App, CycloptsError, Group, Parameter

from . import __version__
from .options import (
    BenchmarkOptions,
    ConvertOptions,
    DemoOptions,
    EvaluateOptions,
    ExportOptions,
    PredictOptions,
    ServeOptions,
    Words,
    not_empty,
)
from .training.options import DataOptions, ModelOptions, RunOptions, StockOptions

app = App(
    name="eomt",
    version=__version__,
    help="EoMT: panoptic, instance and semantic segmentation by a plain ViT.",
    default_parameter=Parameter(negative_iterable=()),
    suppress_keyboard_interrupt=False,
)
AFTER_AN_INTERRUPTION = {
    "predict": "; the same command continues",
    "train": "; the same command with --resume continues from the last checkpoint",
}
Flat = Parameter(name="*")
Name = Parameter(validator=not_empty)


@app.command
def demo(options: Annotated[DemoOptions, Flat] = DemoOptions()) -> int:  # noqa: B008 (cyclopts asks for it)
    """Train a small model on synthetic shapes, evaluate it and draw its predictions: minutes on a CPU.

    Makes a data set of shapes in COCO panoptic format, trains a small EoMT from scratch with mask annealing, evaluates
    it on held-out images without masked attention, saves it, and reloads it through the Auto classes and the pipeline.
    """
    from .demo import demo as run

    return run(options)


@app.command
def predict(*images: Annotated[str, Name], options: Annotated[PredictOptions, Flat]) -> int:
    """Segment images; write overlays and machine-readable results.

    Failures are listed at the end. An interrupted run resumes. Several processes share the work:
    torchrun --nproc_per_node 4 -m eomt predict …

    Parameters
    ----------
    images
        Image files, folders (searched recursively), globs, URLs.
    """
    from .predict import predict as run

    if not images:
        raise ValueError("give images to segment")
    return run(images, options)


@app.command
def train(
    *,
    data: Annotated[DataOptions | None, Parameter(name="*", group=Group("Data", sort_key=0))] = None,
    model: Annotated[ModelOptions, Parameter(name="*", group=Group("Model", sort_key=1))] = ModelOptions(),  # noqa: B008
    run: Annotated[RunOptions, Parameter(name="*", group=Group("Run", sort_key=2))] = RunOptions(),  # noqa: B008
    stock: Annotated[StockOptions, Parameter(name="*", group=Group("Trainer", sort_key=3))] = StockOptions(),  # noqa: B008
    resume: Annotated[bool, Parameter(negative="")] = False,
    list_recipes: Annotated[bool, Parameter(negative="")] = False,
    **others: str,
) -> int:
    """Train a recipe of the paper, or fine-tune on your own data.

    A run of the paper: eomt train --recipe coco_panoptic_eomt_large_640 --data COCO. Own data: eomt train --data DATA
    --task semantic --backbone small; add --check to check the data first. Several GPUs: torchrun --nproc_per_node 4
    --no-python eomt train …; a recipe keeps its 16 images per step. More launches: training/configs/README.md.

    Parameters
    ----------
    resume
        Resume from the last complete checkpoint, if there is one.
    list_recipes
        List the runs of the paper.
    others
        Any other field of transformers' TrainingArguments with its value: --full-determinism true.
    """
    from . import train as verb

    if list_recipes:
        return verb.list_recipes()
    if data is None:
        raise ValueError("--data is missing; give the folder of the data set")
    args = verb.arguments(data, model, run, stock, others)
    return verb.check(data, model, args) if data.check else verb.train(data, model, args, resume)


@app.command
def evaluate(model: Annotated[str | None, Name] = None, *, options: Annotated[EvaluateOptions, Flat]) -> int:
    """Compute PQ, AP or mIoU of a model, or of prediction files from any tool.

    Prints percent and writes fractions. Several processes share the work:
    torchrun --nproc_per_node 4 --no-python eomt evaluate runs/mine --data COCO

    Parameters
    ----------
    model
        Local folder or hub name. Leave it out with --predictions.
    """
    from .evaluate import evaluate as run

    return run(model, options)


@app.command
def convert(
    source: Annotated[str, Name],
    destination: Annotated[Path, Name],
    *,
    options: Annotated[ConvertOptions, Flat] = ConvertOptions(),  # noqa: B008
) -> int:
    """Convert an authors' checkpoint to a folder for transformers, or such a folder to an authors' checkpoint.

    Parameters
    ----------
    source
        Authors' file or its folder; or the folder or hub name of a saved model.
    destination
        Folder to create; for a saved model, a file such as eomt.bin.
    """
    from .convert import convert as run

    return run(source, destination, options)


@app.command
def export(
    model: Annotated[str, Name],
    output: Annotated[Path, Name],
    *,
    options: Annotated[ExportOptions, Flat] = ExportOptions(),  # noqa: B008
) -> int:
    """Export a model for OpenVINO or ONNX Runtime and check the files against the model.

    The files take any batch size, without masked attention. config.json and preprocessor_config.json lie beside them.

    Parameters
    ----------
    model
        Local folder or hub name.
    output
        Folder to create.
    """
    from .export import export as run

    return run(model, output, options)


@app.command
def benchmark(
    model: Annotated[list[str], Words],
    *,
    options: Annotated[BenchmarkOptions, Flat] = BenchmarkOptions(),  # noqa: B008
) -> int:
    """Compare models by parameters, GFLOPs, latency, throughput and memory.

    The protocol is the paper's (Section 4.1): batch 1, warm-up, median of synchronized runs. A multiply-add is one
    FLOP.

    Parameters
    ----------
    model
        Local folders, also of eomt export; hub names; or names of backbones (vit_large_patch14_reg4_dinov2) for an
        EoMT with random weights.
    """
    from .speed import benchmark as run

    return run(model, options)


@app.command
def serve(*models: Annotated[str, Name], options: Annotated[ServeOptions, Flat] = ServeOptions()) -> int:  # noqa: B008
    """Serve a web page and an HTTP API (endpoint /segment) to try models on images.

    Parameters
    ----------
    models
        Local folders, also of eomt export, or hub names.
    """
    from .serve import serve as run

    if not models:
        raise ValueError("give models to serve")
    return run(models, options)


def main(argv: list[str] | None = None) -> int:
    """Run `eomt COMMAND …` and return the exit code."""
    argv = sys.argv[1:] if argv is None else list(argv)
    command = f"eomt {argv[0]}" if argv and argv[0] in app else "eomt"
    debug = os.environ.get("EOMT_DEBUG") == "1"
    if not debug:
        quiet_libraries()
    try:
        try:
            return run_command(argv)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes stdout again at exit
        return 141
    except KeyboardInterrupt:
        print(f"{command}: interrupted{AFTER_AN_INTERRUPTION.get(command.removeprefix('eomt '), '')}", file=sys.stderr)
        return 130
    except Exception as error:
        if debug:
            raise
        print(f"{command}: {user_message(error)}", file=sys.stderr)
        return 2


def run_command(argv: list[str]) -> int:
    asks_for_help = bool({"-h", "--help", "--version"} & {*argv})
    if argv and argv[0] in app and not asks_for_help:
        app.parse_args(argv, exit_on_error=False, print_error=False)  # report bad options before the import of torch
        if argv[0] == "demo":  # beside other work, spinning threads would take each other's core
            os.environ.setdefault("GOMP_SPINCOUNT", "1000")
        from .auto import register

        register()
        if os.environ.get("EOMT_DEBUG") != "1":
            from transformers.utils.logging import disable_progress_bar

            disable_progress_bar()  # of loading and saving weights; commands have bars of their own
    return app(argv or ["--help"], exit_on_error=False, print_error=False, result_action="return_value") or 0


def user_message(error: Exception) -> str:
    """One line for any error. Where it may be a bug of ours, the line names EOMT_DEBUG."""
    text = str(error)
    if "in DataLoader worker process" in text:  # the original message, without its traceback
        text = re.split(r"^[\w.]*(?:Error|Exception): ", text, flags=re.MULTILINE)[-1]
    line = " ".join(text.split())
    if isinstance(error, MemoryError) or "out of memory" in text or "t allocate memory" in text:
        return f"out of memory; use a smaller batch or smaller images ({line[:200]})"
    if re.search(r"DataLoader worker \(pid.*(killed|exited)", text):
        return "a data-loading worker was killed, probably out of memory; use fewer workers, or 0"
    signs = ("Error while serializing", "PytorchStreamWriter", "unexpected pos", "No space left", "File too large")
    if any(sign in text for sign in signs):  # messages of safetensors, torch and the system
        return f"a file could not be written; the disk may be full ({line[:200]})"
    if isinstance(error, ValueError | OSError | ImportError | CycloptsError):
        return line or type(error).__name__
    return f"{type(error).__name__}: {line[:300]} (EOMT_DEBUG=1 shows the traceback)"


def quiet_libraries() -> None:
    """Silence the reports of libraries about loading, retries and probes."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # of torch's profiler, which measures memory
    warnings.filterwarnings("ignore")
