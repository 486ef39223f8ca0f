"""Settings: a dataclass's fields from layers of plain values, each checked and with its origin."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from iqrl.errors import InputError, did_you_mean


def build(cls: type, prefix: str, layers: Sequence[tuple[str, Mapping[str, Any]]]) -> tuple[Any, dict[str, str]]:
    """An instance of a dataclass of `setting` fields from layers of values, and each value's origin.

    Raises:
        InputError: naming the dotted key, the value and what was expected.
    """
    fields = {f.name: f for f in dataclasses.fields(cls)}
    types = typing.get_type_hints(cls)
    values: dict[str, Any] = {}
    origins = {f"{prefix}.{name}": "default" for name in fields}
    for origin, layer in layers:
        for name, value in layer.items():
            if name not in fields:
                raise InputError(
                    f"{prefix}.{name}={short(value)}: no such key{did_you_mean(str(name), fields, prefix + '.')}"
                )
            values[name] = coerce(f"{prefix}.{name}", value, types[name], fields[name].metadata)
            origins[f"{prefix}.{name}"] = origin
    return cls(**values), origins


def stated(settings: Any) -> dict[str, Any]:
    """A dataclass of settings as plain data, without those that are omitted at their default."""
    unset = {
        f.name
        for f in dataclasses.fields(settings)
        if f.metadata.get("omit_default_from_identity") and getattr(settings, f.name) == f.default
    }
    return {k: v for k, v in dataclasses.asdict(settings).items() if k not in unset}


def coerce(key: str, value: Any, kind: Any, limits: Mapping[str, Any]) -> Any:
    """`value` as the type `kind`, within its field's limits.

    Raises:
        InputError: if it is of another type, or out of range.
    """
    if typing.get_origin(kind) is list:
        (inner,) = typing.get_args(kind)
        if not isinstance(value, list) or not value or len(value) > 64:
            raise InputError(f"{key}={short(value)}: expected a list of numbers, such as [8, 8]")
        return [_within(key, value, _scalar(key, v, inner), limits) for v in value]
    return _within(key, value, _scalar(key, value, kind), limits)


def _scalar(key: str, value: Any, kind: type) -> Any:
    if kind is bool and isinstance(value, bool):
        return value
    if kind is int and isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        if value == int(value):
            return int(value)
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    if kind is str and isinstance(value, str):
        return value
    if kind is str and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if kind is str and isinstance(value, bool):  # `compile=on` is true in YAML 1.1
        return "on" if value else "off"
    names = {bool: "true or false", int: "a whole number", float: "a finite number", str: "a word"}
    raise InputError(f"{key}={short(value)}: expected {names[kind]}")


def _within(key: str, whole: Any, value: Any, limits: Mapping[str, Any]) -> Any:
    low, high, choices = limits.get("low"), limits.get("high"), limits.get("choices")
    if choices is not None and value not in choices:
        raise InputError(f"{key}={short(whole)}: expected one of {', '.join(map(str, choices))}")
    if low is not None and value < low:
        raise InputError(f"{key}={short(whole)}: {limits.get('hint') or f'expected at least {low:g}'}")
    if high is not None and value > high:
        raise InputError(f"{key}={short(whole)}: expected at most {high:g}")
    return value


def short(value: Any) -> str:
    """A value in one line of a message."""
    text = " ".join(str(value).split())
    return text if len(text) <= 80 else text[:77] + "..."
