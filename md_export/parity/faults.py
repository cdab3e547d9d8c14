"""What the gate finds wrong, and which of its checks found it."""

from __future__ import annotations

from enum import StrEnum


class Check(StrEnum):
    """The checks of the gate, which docs/parity.md describes; the value is the word that tables show."""

    MANIFEST = "manifest"
    GOLDEN = "golden files"
    BELONGING = "belonging"
    BYTES = "bytes"
    SURFACE = "names and shapes"
    EXECUTION = "execution"
    SHAPE = "shape"
    DTYPE = "dtype"
    FINITE = "finite"
    FIGURES = "figures"
    PICTURE = "picture"
    STORED = "stored type"
    CONSTANTS = "stored NaN"
    CLAIMS = "claims"
    OVERFLOW = "float16 overflow"
    ORIGIN = "origin"
    AUDIT = "weight audit"


class Fault(str):
    """One line of text that says what is wrong, and the check that wrote it."""

    check: Check

    def __new__(cls, check: Check, text: str) -> Fault:
        """``text`` is what a user reads."""
        line = super().__new__(cls, text)
        line.check = check
        return line

    def of(self, what: str) -> Fault:
        """The same, with what it is about put before it."""
        return Fault(self.check, f"{what}: {self}")
