"""One way to be wrong, as the table names it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from md_export.parity.faults import Check
from md_export.parity.selftest.answers import Distortion
from md_export.parity.selftest.sandbox import Sandbox


class Hashes(StrEnum):
    """How far the recorded hashes were brought to agree with the damage."""

    KEPT = "hashes kept"
    INDEX = "index agrees"
    ALL = "all agree"


@dataclass(frozen=True)
class Mutation:
    """One way to be wrong. Either ``damage`` changes files or ``distortion`` what the runtime answers.

    Attributes:
        name: in words.
        of: what is damaged: ``answer``, ``artifact``, ``golden``, ``index`` or ``manifest``.
        caught: the check that must notice, for each state of the hashes that is tried.
        components: whose artifact is damaged, the first that the export has.
        may_crash: the runtime is given a process of its own.
        audited: the stored weights are held against the checkpoint too.
    """

    name: str
    of: str
    caught: Mapping[Hashes, Check]
    components: tuple[str, ...]
    damage: Callable[[Sandbox], None] | None = None
    distortion: Distortion | None = None
    may_crash: bool = False
    audited: bool = False
