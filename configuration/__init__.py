"""What a model and a run are: no torch, no I/O.

Public names are imported on first use: the configurations cost transformers' import of torch, recipes do not.
"""

from .lazy_names import lazy_names

_MODULE_OF = {
    "BACKBONES": "backbones",
    "Backbone": "backbones",
    "FAMILIES": "backbones",
    "EoMTConfig": "families",  # with its subclasses known to it
    "EoMTDINOv3Config": "families",
    "EoMTEVA02Config": "families",
    "TASKS": "tasks",
    "TASK_ROWS": "tasks",
    "as_pair": "sizes",
    "find_backbone": "backbones",
}
__all__ = sorted(_MODULE_OF)
__getattr__, __dir__ = lazy_names(__name__, _MODULE_OF)
