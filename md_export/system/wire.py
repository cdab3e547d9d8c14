"""Serialize dataclasses for another process: a JSON file by their annotations, and a file of arrays beside it."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, cast, get_type_hints

import numpy as np
from numpy.typing import NDArray
from pydantic import GetCoreSchemaHandler, TypeAdapter, ValidationInfo
from pydantic_core import CoreSchema, core_schema
from safetensors.numpy import load_file, save_file


class InArrayFile:
    """Pydantic annotation of array types: the JSON holds the array's number, the safetensors file the array."""

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        written = core_schema.plain_serializer_function_ser_schema(_put, info_arg=True)
        return core_schema.with_info_plain_validator_function(_get, serialization=written)


def _put(array: NDArray[np.generic], info: core_schema.SerializationInfo) -> str:
    arrays = cast(dict[str, NDArray[np.generic]], info.context)
    number = str(len(arrays))
    arrays[number] = np.asarray(array, order="C")
    return number


def _get(number: object, info: ValidationInfo) -> NDArray[np.generic]:
    arrays = cast(dict[str, NDArray[np.generic]], info.context)
    return arrays[str(number)]


def write(value: object, adapter: TypeAdapter[Any], path: Path) -> None:
    """Write ``value`` to ``path`` (JSON), and its arrays beside it; :func:`read` reads both."""
    arrays: dict[str, NDArray[np.generic]] = {}
    plain = adapter.dump_python(value, mode="json", context=arrays)
    if arrays:
        save_file(arrays, _arrays_of(path))
    path.write_text(json.dumps(plain), encoding="utf-8")


def read(adapter: TypeAdapter[Any], path: Path) -> Any:
    """Read a file that :func:`write` wrote; of the file's content, no name of another file is used."""
    arrays = load_file(_arrays_of(path)) if _arrays_of(path).is_file() else {}
    return adapter.validate_json(path.read_bytes(), context=arrays)


def _arrays_of(path: Path) -> Path:
    return path.with_suffix(".safetensors")


@cache
def adapters(function: Callable[[Any], Any]) -> tuple[TypeAdapter[Any], TypeAdapter[Any]]:
    """Return the pydantic adapters of a function's only argument and of its result."""
    hints = get_type_hints(function, include_extras=True)
    result = hints.pop("return")
    (request,) = hints.values()
    return TypeAdapter(request), TypeAdapter(result)
