"""Checks of values from JSON files against the annotated types of fields.

Every message has the form: FIELD is VALUE; it must be WANTED.
"""

import inspect
import types
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

DTYPES = ("float16", "bfloat16", "float32", "float64")


def wrong(field: str, value: Any, wanted: str) -> ValueError:
    text = repr(value)
    return ValueError(f"{field} is {text if len(text) < 80 else text[:76] + ' …'}; it must be {wanted}")


def check_types(hints: Mapping[str, Any] | type, values: Mapping[str, Any]) -> None:
    """Raise `ValueError` for a value from a JSON file that does not have the type of its field.

    Args:
        hints: {field: type}, or a dataclass.
    """
    if isinstance(hints, type):
        hints = field_types(hints)
    for field, value in values.items():
        hint = hints.get(field)
        if field in ("dtype", "torch_dtype"):
            if isinstance(value, str) and value not in DTYPES:
                raise wrong(field, value, f"one of {', '.join(DTYPES)}")
            is_json = isinstance(value, (str, int, float, list, dict))  # else a torch.dtype
            hint = str | None if is_json else None
        if hint is not None and not _fits(value, hint):
            raise wrong(field, value, inspect.formatannotation(hint))


@cache
def field_types(config_class: type) -> dict[str, Any]:
    """{field: type} of a dataclass. transformers' annotations are strings, which are resolved."""
    torch = types.SimpleNamespace(dtype=object)  # annotations name torch without importing it
    types_of = get_type_hints(config_class, localns={"torch": torch})
    return {field.name: types_of[field.name] for field in fields(config_class)} | {"num_labels": int | None}


def _fits(value, hint) -> bool:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, member) for member in arguments)
    if hint is None or hint is type(None):
        return value is None
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in arguments)
    if origin is list or origin is tuple:  # JSON has only lists
        return isinstance(value, (list, tuple)) and all(_fits(item, arguments[0]) for item in value)
    if origin is dict:
        if not isinstance(value, dict):
            return False
        keys_fit = all(isinstance(key, str) or _fits(key, arguments[0]) for key in value)
        return keys_fit and all(_fits(item, arguments[1]) for item in value.values())
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    return isinstance(value, hint) if isinstance(hint, type) else True
