"""Read peft's config of a LoRA: alpha, rank and their patterns, from a file's metadata or adapter_config.json."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite, sqrt
from typing import Final

from pydantic_core import from_json

from md_export.checkpoint.files import TABLE_LIMIT, read_text, shown
from md_export.checkpoint.modules import MAX_TENSORS
from md_export.errors import CheckpointError
from md_export.spec.loras import PEFT_CONFIG, Lora

# diffusers' key for peft's config; its fields may have the component's name as a prefix.
_METADATA: Final = "lora_adapter_metadata"
_READ: Final = ("LORA", "LOHA", "LOKR")
_LARGEST_ALPHA: Final = 1e6
# peft reads the keys of patterns as regular expressions, and an untrusted one could run forever. Only names, anchors,
# ``.*`` and ``\d+`` are supported.
_PATTERN: Final = re.compile(r"\^?(?:[\w-]|\\?\.|\.\*|\\d\+)+\$?")
_MOST_WILDCARDS: Final = 1
_MOST_PATTERNS: Final = 100
_LONGEST_PATTERN: Final = 300


@dataclass(frozen=True)
class PeftConfig:
    """Fields of peft's config that set the strength of a change; empty if a file has no config.

    ``where``: the file and the place in it, for errors.
    """

    where: str
    fields: Mapping[str, object]

    @property
    def knows_alpha(self) -> bool:
        """Whether the config has an alpha for any module."""
        return any(name.endswith(("alpha", "alpha_pattern")) for name in self.fields)

    def decomposes(self, component: str) -> bool:
        """Return whether the LoRA of a component is a DoRA."""
        return any(self.fields.get(f"{prefix}use_dora") is True for prefix in (f"{component}.", ""))

    def scale(self, component: str, path: str, rank: int | None) -> float:
        """Return alpha / rank of a module without an alpha tensor; 1 if the config has neither.

        ``rank``: rank of its tensors; None if they have none, as a LoKr of two full matrices.

        Raises:
            CheckpointError: the config belongs to another file, or is damaged.
        """
        for prefix in (f"{component}.", ""):
            alpha = self._number(prefix, ("lora_alpha", "alpha"), "alpha_pattern", path)
            if alpha is None:
                continue
            own = self._number(prefix, ("r",), "rank_pattern", path)
            if rank is not None and own is not None and own != rank:
                raise CheckpointError(
                    f"{self.where}: r is {own:g} for {path}, but its tensors have rank {rank}: the config is of "
                    "another LoRA, give its own"
                )
            ranked = own if rank is None else rank
            if not ranked:
                return 1.0
            return alpha / (sqrt(ranked) if self.fields.get(f"{prefix}use_rslora") is True else ranked)
        return 1.0

    def _number(self, prefix: str, names: tuple[str, ...], patterns: str, path: str) -> float | None:
        value = next((self.fields[prefix + name] for name in names if prefix + name in self.fields), None)
        table = self.fields.get(prefix + patterns)
        wild = sum("*" in str(key) or "+" in str(key) for key in table) if isinstance(table, dict) else 0
        if isinstance(table, dict) and (len(table) > MAX_TENSORS or wild > _MOST_PATTERNS):
            raise CheckpointError(f"{self.where}: {prefix}{patterns} has {len(table):,} entries: replace it")
        if isinstance(table, dict):
            value = next((found for key, found in table.items() if self._matches(str(key), path)), value)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= _LARGEST_ALPHA:
            raise CheckpointError(f"{self.where}: {prefix}{names[0]} of {path} is {value!r:.40}, no number: correct it")
        return float(value) if isfinite(value) else None

    def _matches(self, pattern: str, path: str) -> bool:
        """Return whether peft's pattern matches a module: its whole path, or the end of it after a dot."""
        read = len(pattern) <= _LONGEST_PATTERN and _PATTERN.fullmatch(pattern)
        if not read or pattern.count("*") + pattern.count("+") > _MOST_WILDCARDS:
            raise CheckpointError(
                f"{self.where}: {shown(pattern)!r} is a regular expression that is not supported: write the modules' "
                "names"
            )
        paths = (path, f"text_model.{path}")
        if "*" in pattern or "+" in pattern:
            return any(re.fullmatch(rf"(?:.*\.)?(?:{pattern})", one) for one in paths)
        name = pattern.removeprefix("^").removesuffix("$").replace("\\", "")
        return any(one == name or (one.endswith(f".{name}") and pattern[0] != "^") for one in paths)


def peft_config(lora: Lora, metadata: Mapping[str, str]) -> PeftConfig:
    """Return the config in a file's metadata, else that in ``lora.config``, else an empty one.

    Raises:
        CheckpointError: the config is not a JSON object, or is for another kind of adapter.
    """
    text, where = metadata.get(_METADATA), f"{lora.name}: its {_METADATA}"
    if text is None and lora.config is not None:
        where = f"{lora.name}: its {PEFT_CONFIG}"
        text = read_text(lora.config, TABLE_LIMIT, where)
    text = "{}" if text is None else text
    try:
        values = from_json(text, allow_inf_nan=False) if len(text) <= TABLE_LIMIT else None
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise CheckpointError(f"{where} is not a JSON object; save it again")
    kind = values.get("peft_type", _READ[0])
    if kind not in _READ:
        raise CheckpointError(f"{where} says {kind!r:.40}, an adapter that is not supported; give {' or '.join(_READ)}")
    return PeftConfig(where, values)
