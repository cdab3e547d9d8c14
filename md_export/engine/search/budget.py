"""Budget of a search, and parsing of ``--budget``."""

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
# Upper limits for valid input: float32 has 32 bits per weight, and no disk holds more than 10**15 bytes.
_MOST_BITS: Final = 32.0
_MOST_BYTES: Final = 10**15


@dataclass(frozen=True)
class Budget:
    """Limits of a search, all of which must hold; None means no limit.

    Attributes:
        picture_db: minimum PSNR of the picture in decibels.
        snr_db: minimum SNR of each component's output in decibels.
        score: minimum score from the judge for the built export; it is measured, not predicted.
        bytes: maximum size of all artifacts together, in bytes.
        bits: maximum of the average stored bits per weight over all modules with a choice.
    """

    picture_db: float | None = None
    snr_db: float | None = None
    score: float | None = None
    bytes: int | None = None
    bits: float | None = None

    @property
    def is_limited(self) -> bool:
        """Whether the size is limited: the search then maximizes quality, otherwise it minimizes bytes."""
        return self.bytes is not None or self.bits is not None

    @property
    def spelled(self) -> str:
        """Description of the budget in words, for a report."""
        words = (
            (self.picture_db, "picture at least {:g} dB"),
            (self.snr_db, "each component at least {:g} dB"),
            (self.score, "score at least {:g}"),
            (self.bytes, "at most {:,} bytes"),
            (self.bits, "at most {:g} bits per weight"),
        )
        return ", ".join(text.format(value) for value, text in words if value is not None)


def parse_budget(texts: Sequence[str], judge: str | None = None) -> Budget:
    """Parse the values of all ``--budget`` options into one budget.

    Args:
        judge: command that prints scores; required with a score, and only allowed with one.

    Raises:
        UsageError: no text, an unknown or repeated name, an invalid value, or only one of a score and a judge.
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


# Name before "=" in --budget → field of Budget, and the parser for the value.
_FIELDS: Final[dict[str, tuple[str, Callable[[str, str], float]]]] = {
    "picture": ("picture_db", _decibel),
    "snr": ("snr_db", _decibel),
    "score": ("score", _score),
    "bytes": ("bytes", _bytes),
    "bits": ("bits", _bits),
}
