"""What a model and a run are: no torch, no I/O.

Public names are imported on first use: the configurations cost transformers' import of torch, recipes do not.
"""

import importlib

_MODULE_OF = {
    "BACKBONES": "backbones",
    "Backbone": "backbones",
    "FAMILIES": "backbones",
    "EoMTConfig": "families",  # with its subclasses known to it
    "EoMTDINOv3Config": "families",
    "EoMTEVA02Config": "families",
    "TASKS": "tasks",
    "TASK_ROWS": "tasks",
    "as_pair": "validation",
    "find_backbone": "backbones",
}
__all__ = sorted(_MODULE_OF)


def __getattr__(name: str):
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
