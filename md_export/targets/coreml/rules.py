"""The rule file, ``ane_rules.toml``: read, validated, and chosen from by system."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from md_export.errors import ArtifactError, UsageError
from md_export.targets.advice import HazardRule, Rule

RULE_FILE: Final = Path(__file__).with_name("ane_rules.toml")
# In order; specification version 6 of Core ML's model format came with iOS15, and each later one with the next.
SYSTEMS: Final = ("iOS15", "iOS16", "iOS17", "iOS18", "iOS26")
_FIRST_VERSION: Final = 6
_STRICT: Final = ConfigDict(extra="forbid", strict=True)


@dataclass(frozen=True)
class When:
    """What an operation must be for a rule to fit; all that is given must hold.

    Attributes:
        kinds, other_than: globs on the operation's kind.
        dtypes: MIL names; one value that the operation reads or writes has one of them.
        rank_over: of a value that it reads or writes.
        dynamic: it writes a value with a dimension that is known at run time only.
        last_axis_from, last_axis_below: length of the last axis of a value that it writes, first included.
        moves_last_axis: it writes a last axis that is not the one it reads.
        axis_among_last: its axis is one of so many last ones.
        stride_factor_over: a stride has a larger prime factor.
        stride_over, kernel_over, dilation_over, scale_over: the largest of that parameter is larger.
        infinite_constant: it reads a constant with an infinity in it.
        scale_per_block: a constexpr whose scales cover neither a whole axis nor one element of it.
        weight_bytes_over: of the package's weight files, for rules that speak of a package as a whole.
    """

    __pydantic_config__ = _STRICT

    kinds: tuple[str, ...] | None = None
    other_than: tuple[str, ...] | None = None
    dtypes: tuple[str, ...] | None = None
    rank_over: int | None = None
    dynamic: Literal[True] | None = None
    last_axis_from: int | None = None
    last_axis_below: int | None = None
    moves_last_axis: Literal[True] | None = None
    axis_among_last: int | None = None
    stride_factor_over: int | None = None
    stride_over: int | None = None
    kernel_over: int | None = None
    dilation_over: int | None = None
    scale_over: float | None = None
    infinite_constant: Literal[True] | None = None
    scale_per_block: Literal[True] | None = None
    weight_bytes_over: int | None = None

    def given(self) -> dict[str, object]:
        """The conditions that are set."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}


@dataclass(frozen=True)
class NeuralEngineRule(Rule):
    """A rule with its condition."""

    when: When = dataclasses.field(default_factory=When)

    def bare(self) -> Rule:
        """Without the condition, as reports carry it."""
        return Rule(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Rule)})

    def speaks_of(self, system: str) -> bool:
        """Whether ``system`` lies between ``since`` and ``until``."""
        place = SYSTEMS.index(system)
        first = SYSTEMS.index(self.since) if self.since else 0
        last = SYSTEMS.index(self.until) if self.until else len(SYSTEMS) - 1
        return first <= place <= last


@dataclass(frozen=True)
class RuleFile:
    """``ane_rules.toml``; ``layout`` names the kinds that only move data."""

    __pydantic_config__ = _STRICT

    version: int
    layout: tuple[str, ...]
    rule: tuple[NeuralEngineRule, ...]
    hazard: tuple[HazardRule, ...]


_RULES: Final = TypeAdapter(RuleFile)


def load_rules(path: Path = RULE_FILE) -> RuleFile:
    """Read a rule file.

    Raises:
        ArtifactError: not TOML, an unknown, missing or wrong field, or a rule that says nothing; names file and rule.
    """
    try:
        rules = _RULES.validate_json(json.dumps(tomllib.loads(path.read_text(encoding="utf-8"))))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ArtifactError(f"{path}: the rules cannot be read: {error}; install md-export again") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ArtifactError(f"{path}: {where}: {first['msg']}; correct the rule") from error
    for rule in rules.rule:
        _check(rule, path)
    for hazard in rules.hazard:
        _check(hazard, path)
    ids = [rule.id for rule in rules.rule] + [hazard.id for hazard in rules.hazard]
    if repeated := sorted({name for name in ids if ids.count(name) > 1}):
        raise ArtifactError(f"{path}: two rules are called {repeated[0]}; rename one")
    return rules


def _check(item: NeuralEngineRule | HazardRule, path: Path) -> None:
    if not item.source.startswith("https://"):
        raise ArtifactError(f"{path}: rule {item.id}: source is no https address; a rule needs one")
    if isinstance(item, HazardRule):
        if (item.overflows_over, item.largest_over, item.largest_below).count(None) != 2:
            raise ArtifactError(f"{path}: rule {item.id}: give exactly one limit")
        return
    if not item.when.given():
        raise ArtifactError(f"{path}: rule {item.id}: its condition is empty; it would fit everything")
    if item.when.weight_bytes_over is not None and len(item.when.given()) > 1:
        raise ArtifactError(f"{path}: rule {item.id}: weight_bytes_over speaks of a package, not of an operation")
    for system in (item.since, item.until):
        if system is not None and system not in SYSTEMS:
            raise ArtifactError(f"{path}: rule {item.id}: {system} is none of {', '.join(SYSTEMS)}")


def system_of(version: int, asked: str | None, name: str) -> str:
    """The system to judge a package for: the one that was asked for, or the oldest that loads it.

    Args:
        version: of the package's specification.
        asked: one of SYSTEMS, or None.
        name: of the package, for the message.

    Raises:
        UsageError: an unknown system, or one that is too old for the package.
    """
    oldest = min(max(version - _FIRST_VERSION, 0), len(SYSTEMS) - 1)
    if asked is None:
        return SYSTEMS[oldest]
    if asked not in SYSTEMS:
        raise UsageError(f"unknown system {asked!r}; use one of {', '.join(SYSTEMS)}")
    if SYSTEMS.index(asked) < oldest:
        raise UsageError(f"{name} does not load before {SYSTEMS[oldest]}; export for {asked}, or leave out --os")
    return asked
