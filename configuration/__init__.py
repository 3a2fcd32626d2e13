"""What a model and a run are: no torch, no I/O."""

from .backbones import BACKBONES, Backbone, find_backbone
from .eomt import EoMTConfig
from .families import EoMTDINOv3Config, EoMTEVA02Config
from .tasks import TASK_ROWS, TASKS
from .validation import as_pair

__all__ = [
    "BACKBONES",
    "TASKS",
    "TASK_ROWS",
    "Backbone",
    "EoMTConfig",
    "EoMTDINOv3Config",
    "EoMTEVA02Config",
    "as_pair",
    "find_backbone",
]
