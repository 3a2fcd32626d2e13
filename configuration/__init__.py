"""What a model and a run are: no torch, no I/O.

Public names are imported on first use: the configurations cost transformers' import of torch, recipes do not.
"""

import importlib
from collections.abc import Callable, Mapping


def lazy_names(package: str, module_of: Mapping[str, str]) -> tuple[Callable, Callable]:
    """A package's name and the module in it that each public name is defined in → its `__getattr__` and `__dir__`.

    A name that is its own module stands for the module.
    """

    def __getattr__(name: str):
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = importlib.import_module(f".{module_of[name]}", package)
        return module if module_of[name] == name else getattr(module, name)

    def __dir__() -> list[str]:
        return sorted([*vars(importlib.import_module(package)), *module_of])

    return __getattr__, __dir__


_MODULE_OF = {
    "BACKBONES": "families",
    "Backbone": "families",
    "FAMILIES": "families",
    "EoMTConfig": "eomt",
    "EoMTDINOv3Config": "eomt",
    "EoMTEVA02Config": "eomt",
    "TASKS": "tasks",
    "TASK_ROWS": "tasks",
    "as_pair": "sizes",
    "find_backbone": "families",
}
__all__ = sorted(_MODULE_OF)
__getattr__, __dir__ = lazy_names(__name__, _MODULE_OF)
