"""EoMT for Hugging Face Transformers. After `import eomt`, the Auto classes load every EoMT checkpoint with it.

In a checkout the sub-packages `eomt.configuration`, `eomt.image_processing`, `eomt.modeling_eomt` and `eomt.training`
are the top-level folders of the repository; a wheel holds them inside `eomt/`.
"""

import sys
from pathlib import Path

_root = Path(__file__).resolve().parent.parent
if not (_root / "eomt" / "configuration").is_dir() and (_root / "configuration").is_dir():
    __path__.append(str(_root))  # a checkout, installed or not: the folders lie beside this one

from .configuration import lazy_names  # noqa: E402 (found on the path above only)

_MODULE_OF = {
    "EoMTConfig": "configuration",
    "EoMTDINOv3Config": "configuration",
    "EoMTEVA02Config": "configuration",
    "EoMTImageProcessor": "image_processing",
    "EoMTForUniversalSegmentation": "modeling_eomt",
    "PMTConfig": "configuration",
    "PMTForUniversalSegmentation": "modeling_eomt",
    "pipeline": "pipeline",
    "segment": "segmentation",
}
__version__ = "0.1.0"
__all__ = sorted(_MODULE_OF)
__getattr__, __dir__ = lazy_names(__name__, _MODULE_OF)


def _is_command() -> bool:
    """Whether this process is `eomt …` or `python -m eomt …`.

    The command line registers the models itself, just before a command runs: `--help` must not wait for torch.
    """
    program = Path((getattr(sys, "argv", None) or [""])[0]).name
    if program == "-m":  # Python is still searching for the module
        started = sys.orig_argv
        return "-m" in started and started[started.index("-m") + 1 : started.index("-m") + 2] == [__name__]
    return program in ("eomt", "eomt.exe")


if not _is_command():
    from .auto import register

    register()
