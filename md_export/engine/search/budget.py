"""What a search must keep to: the texts of ``--budget``."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from md_export.errors import UsageError

_UNITS: Final = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}
_BYTES: Final = re.compile(r"([0-9]*\.?[0-9]+)\s*([kmg]?|[kmg]i(?=b))b?", re.IGNORECASE)
_DECIBEL: Final = re.compile(r"([0-9]*\.?[0-9]+)\s*(?:dB)?", re.IGNORECASE)
_NUMBER: Final = re.compile(r"([0-9]*\.?[0-9]+)")
_EXAMPLES: Final = "picture=34, snr=20, bytes=2.1MB, bits=4.5 or score=0.98"
# No checkpoint's weights take more than float32's bits, and no disk holds more bytes.
_MOST_BITS: Final = 32.0
_MOST_BYTES: Final = 10**15


@dataclass(frozen=True)
class Budget:
    """All of it must hold; None asks nothing.

    Attributes:
        picture_db: least PSNR of the picture.
        snr_db: least SNR of each component's output.
        score: least score that a judge gives to what was built; no model predicts it.
        bytes: most bytes of all artifacts together.
        bits: most stored bits per weight, on the average of all modules that are chosen for.
    """

    picture_db: float | None = None
    snr_db: float | None = None
    score: float | None = None
    bytes: int | None = None
    bits: float | None = None

    @property
    def is_limited(self) -> bool:
        """Whether size is limited: the best quality is wanted then, else the fewest bytes."""
        return self.bytes is not None or self.bits is not None

    @property
    def spelled(self) -> str:
        """In words, for a report."""
        words = (
            (self.picture_db, "picture at least {:g} dB"),
            (self.snr_db, "each component at least {:g} dB"),
            (self.score, "score at least {:g}"),
            (self.bytes, "at most {:,} bytes"),
            (self.bits, "at most {:g} bits per weight"),
        )
        return ", ".join(text.format(value) for value, text in words if value is not None)


def parse_budget(texts: Sequence[str], judge: str | None = None) -> Budget:
    """The budget that ``--budget`` texts name together, ``judge`` being the command that gives scores.

    Raises:
        UsageError: no text, an unknown or repeated name, a value that means nothing, or a score without a judge.
    """
    if not texts:
        raise UsageError(f"a search needs a --budget: {_EXAMPLES}; several may be given, and all must hold")
    values: dict[str, float] = {}
    for text in texts:
        name, _, value = text.partition("=")
        if name not in _FIELDS:
            raise UsageError(f"--budget {text!r:.60}: write {_EXAMPLES}")
        field, read = _FIELDS[name]
        if field in values:
            raise UsageError(f"--budget {name} is given twice; give it once")
        values[field] = read(text, value.strip())
    if "score" in values and judge is None:
        raise UsageError("--budget score=… needs a judge: add --judge COMMAND, which prints a score for an export")
    if judge is not None and "score" not in values:
        raise UsageError("--judge gives scores for --budget score=…; add that, or leave --judge out")
    return Budget(**values)  # type: ignore[arg-type]  # bytes is read as an int


def _bytes(text: str, value: str) -> int:
    match = _BYTES.fullmatch(value)
    wanted = float(match[1]) * _UNITS[match[2].lower()] if match else 0.0
    if not 1 <= wanted <= _MOST_BYTES:
        raise UsageError(f"--budget {text!r:.60}: write a size, as bytes=2.1MB, bytes=800kB or bytes=2MiB")
    return int(wanted)


def _decibel(text: str, value: str) -> float:
    match = _DECIBEL.fullmatch(value)
    if match is None or not 0 < float(match[1]) <= 200:
        raise UsageError(f"--budget {text!r:.60}: write decibels above 0 and up to 200, as picture=34 or snr=20")
    return float(match[1])


def _bits(text: str, value: str) -> float:
    match = _NUMBER.fullmatch(value)
    if match is None or not 0 < float(match[1]) <= _MOST_BITS:
        raise UsageError(f"--budget {text!r:.60}: write bits above 0 and up to {_MOST_BITS:g}, as bits=4.5")
    return float(match[1])


def _score(text: str, value: str) -> float:
    match = re.fullmatch(rf"-?{_NUMBER.pattern}", value)
    if match is None or not math.isfinite(float(value)):
        raise UsageError(f"--budget {text!r:.60}: write the least score that the judge may give, as score=0.98")
    return float(value)


# What a user writes before "=", the field it fills, and who reads what stands behind.
_FIELDS: Final[dict[str, tuple[str, Callable[[str, str], float]]]] = {
    "picture": ("picture_db", _decibel),
    "snr": ("snr_db", _decibel),
    "score": ("score", _score),
    "bytes": ("bytes", _bytes),
    "bits": ("bits", _bits),
}
