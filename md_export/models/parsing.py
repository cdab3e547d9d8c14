"""``config.json`` → the config of one component, field by field."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, TypeVar

from pydantic import TypeAdapter, ValidationError

from md_export.errors import ConfigError


class Config(Protocol):
    """A dataclass of the fields of a ``config.json`` that change what is computed.

    Attributes:
        IGNORED: fields that say nothing our modules do not do anyway.
        REQUIRED: fields with the only value that is read; another would change the function.
    """

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]
    IGNORED: ClassVar[tuple[str, ...]]
    REQUIRED: ClassVar[Mapping[str, Any]]


ConfigT = TypeVar("ConfigT", bound=Config)


def parse_config(kind: type[ConfigT], folder: str, values: Mapping[str, Any]) -> ConfigT:
    """Turn ``folder/config.json`` into ``kind``; keys with a leading underscore are diffusers' own notes."""
    known = {field.name for field in dataclasses.fields(kind)}
    given = {k: v for k, v in values.items() if not k.startswith("_") and k not in kind.IGNORED}
    for key, required in kind.REQUIRED.items():
        if given.pop(key, required) != required:
            raise ConfigError(f"{folder}/config.json: only {key}={required!r} is supported, not {values[key]!r}")
    unknown = sorted(set(given) - known)
    if unknown:
        raise ConfigError(
            f"{folder}/config.json: unknown field {', '.join(unknown)}; known fields: {', '.join(sorted(known))}"
        )
    try:
        # Through JSON: strict mode then takes arrays for tuples and integers for floats, and nothing else.
        return TypeAdapter(kind).validate_json(json.dumps(given), strict=True)
    except ConfigError as error:
        raise ConfigError(f"{folder}/config.json: {error}") from error
    except (ValidationError, TypeError, ValueError) as error:
        raise ConfigError(f"{folder}/config.json: {_first_finding(error)}") from error


def _first_finding(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors()[0]
    return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}, not {first['input']!r}"
