"""Configurations, backbones, label spaces, tasks and recipes, without torch.

Public names are imported on first use: the configurations import transformers and so torch, the recipes do not.
"""

import importlib
from collections.abc import Callable, Mapping


def lazy_names(package: str, module_of: Mapping[str, str]) -> tuple[Callable, Callable]:
    """`__getattr__` and `__dir__` of a package that imports its public names on first use.

    Args:
        module_of: {public name: its module}. A name equal to its module is the module itself.
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
    "PMTConfig": "pmt",
    "TASKS": "tasks",
    "TASK_ROWS": "tasks",
    "as_pair": "sizes",
    "find_backbone": "families",
}
__all__ = sorted(_MODULE_OF)
__getattr__, __dir__ = lazy_names(__name__, _MODULE_OF)
