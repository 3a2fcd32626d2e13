"""EoMT for Hugging Face Transformers: `import eomt`, and every EoMT checkpoint loads as this implementation.

In a checkout the sub-packages `eomt.configuration`, `eomt.image_processing`, `eomt.modeling_eomt` and `eomt.training`
are the top-level folders of the repository; a wheel holds them inside `eomt/`.
"""

from pathlib import Path

_root = Path(__file__).resolve().parent.parent
if not (_root / "eomt" / "configuration").is_dir() and (_root / "configuration").is_dir():
    __path__.append(str(_root))  # a checkout, installed or not: the folders lie beside this one

from eomt.auto import register  # noqa: E402  after the path is set
from eomt.configuration import EoMTConfig, EoMTDINOv3Config, EoMTEVA02Config  # noqa: E402
from eomt.image_processing import EoMTImageProcessor  # noqa: E402
from eomt.modeling_eomt import EoMTForUniversalSegmentation  # noqa: E402

register()

__version__ = "0.1.0"
__all__ = ["EoMTConfig", "EoMTDINOv3Config", "EoMTEVA02Config", "EoMTForUniversalSegmentation", "EoMTImageProcessor"]
