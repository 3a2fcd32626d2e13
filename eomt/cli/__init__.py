"""The `eomt` command: each sub-command is a module of this folder, imported when called.

Its `read(argv)` gives the options, checked as far as that goes without torch, and `run(options)` the exit code.
"""

import importlib
import os
import re
import sys

COMMANDS = {
    "demo": "train a small model on synthetic shapes, evaluate it, write pictures",
    "predict": "segment images; write overlays and machine-readable results",
    "train": "train a recipe of the paper, or fine-tune on your own data",
    "serve": "a page (and an HTTP API) to try models on photos",
    "evaluate": "compute PQ, AP or mIoU of a model or of a folder of predictions",
    "convert": "convert between the authors' checkpoints and the hub format",
    "export": "export to OpenVINO and ONNX, checked against the model",
    "benchmark": "compare models: parameters, GFLOPs, latency, throughput, memory",
}


AFTER_AN_INTERRUPTION = {
    "predict": "; the same command continues",
    "train": "; the same command with --resume continues from the last checkpoint",
}


def usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {what}" for name, what in COMMANDS.items()]
    return "\n".join(["usage: eomt COMMAND [OPTIONS]   (eomt COMMAND --help lists the options)", "", *lines])


def one_line(error: Exception) -> str:
    """The message on one line; for an error in a data-loading process the original message, without its traceback."""
    text = str(error)
    if "in DataLoader worker process" in text:
        text = re.split(r"^[\w.]*(?:Error|Exception): ", text, flags=re.MULTILINE)[-1]
    return " ".join(text.split())


def library_error(error: Exception) -> str | None:
    """What an error raised by a library means to a user; None where it may be our own bug."""
    if "ignore_mismatched_sizes" in str(error):
        return "the weights have other shapes than config.json gives; both must come from the same checkpoint"
    if isinstance(error, MemoryError) or any(sign in str(error) for sign in ("out of memory", "t allocate memory")):
        return f"out of memory; use a smaller batch or smaller images ({one_line(error)[:200]})"
    if re.search(r"DataLoader worker \(pid.*(killed|exited)", str(error)):
        return "a data-loading worker was killed, probably out of memory; use fewer workers, or 0"
    signs = ("Error while serializing", "PytorchStreamWriter", "unexpected pos", "No space left", "File too large")
    writing = any(sign in str(error) for sign in signs)  # of safetensors, torch, the system
    return f"a file could not be written, the disk may be full: {one_line(error)[:200]}" if writing else None


def main(argv: list[str] | None = None) -> int:
    """Run `eomt COMMAND …` and return the exit code: 0 success, 1 partial success, 2 bad input, 130 interrupted, 141
    broken pipe, as in `eomt … | head`."""
    try:
        try:
            return _run(sys.argv[1:] if argv is None else argv)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python flushes when it ends
        return 141


def _run(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0
    if argv[0] not in COMMANDS:
        print(f"eomt: there is no command {argv[0]!r}; choose from {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    try:
        command = importlib.import_module(f".{argv[0]}", __name__)
        options = command.read(argv[1:])
        from ..auto import register  # imports torch, which takes seconds: not before the options are known to be right

        register()
        return command.run(options)
    except BrokenPipeError:
        raise
    except (ValueError, OSError) as error:  # the user's input: one line that names the value and the fix
        print(f"eomt {argv[0]}: {one_line(error)}", file=sys.stderr)
        return 2
    except Exception as error:
        if (message := library_error(error)) is None:
            raise
        print(f"eomt {argv[0]}: {message}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"eomt {argv[0]}: interrupted{AFTER_AN_INTERRUPTION.get(argv[0], '')}", file=sys.stderr)
        return 130
