"""Rule files, ``<target>/engine_rules.toml``: operations that an engine supports or refuses, and their costs.

``<target>/known_faults.toml``: faults of the runtime's published versions, with the same conditions.
"""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final, Literal, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from md_export.errors import ArtifactError
from md_export.targets.lint.faults import FaultReport, numbers
from md_export.targets.lint.report import Conditions, HazardRule, Rule

_STRICT: Final = ConfigDict(extra="forbid", strict=True)
_MANUAL: Final = "docs/"
# Targets with a file of known faults.
FAULT_TARGETS: Final = ("tflite", "coreml", "coreai")
_File = TypeVar("_File")


@dataclass(frozen=True)
class When(Conditions):
    """Conditions on an operation; a rule applies if all that are given hold.

    Attributes:
        kinds, other_than: globs that the operation's kind matches, or does not match.
        stored: globs on how its weight is stored: a dtype, or the kind of operation that decodes it.
        dtypes: one value that the operation reads or writes has one of these types.
        rank_over: a value that it reads or writes has more dimensions than this.
        output_rank: its output has exactly this many dimensions.
        dynamic: it reads or writes a value with a dimension that is known at run time only.
        last_axis_from, last_axis_below: least length, and upper limit, of the last axis of a value that it writes.
        moves_last_axis: the last axis of its output is not that of its input.
        axis_among_last: its axis is one of this many last axes.
        square: the last two axes of its output have equal length.
        several_heads: its output has scores of more than one head, with the keys on the last axis.
        broadcast_axis: it reads a value that has length 1 along this axis, where its output is longer, and the output's
            length along all others.
        mixed_ranks: it reads a computed value of lower rank than its output, whose first axis is longer than 1.
        computed_values: it reads at least this many values that are computed.
        batch_over: the first axis of its output is longer than this.
        wide: the last axis of its output is longer than the one before.
        last_axis_off: the length of the last axis of its output is no multiple of this.
        changes_outer_axes: an axis of its output, other than the last, is longer or shorter than that of its input.
        transposes: it exchanges the last two axes of one of these operands, ``x`` or ``y``, by a flag.
        after: globs on a kind of operation whose result it reads, with any but products in between.
        read_by: globs on a kind of operation that reads its output.
        returned: its output is one of the artifact's outputs.
        reads_twice: it reads one value more than once.
        stride_factor_over: a stride has a prime factor above this.
        stride_over, kernel_over, dilation_over, scale_over: the largest value of this parameter is above the limit.
        weight_inputs_over: its weight sums more input values than this for one output.
        infinite_constant: it reads a constant that contains an infinity.
        constant_over: it reads a constant, wider than float16, that contains a finite magnitude above this.
        number_up_to: it reads a constant of one element, of any rank, that is not zero and not above this in magnitude.
        scale_per_block: it decodes a weight whose scales each cover neither a whole axis nor a single element of it.
        weight_bytes_over: the artifact's weights have more bytes than this; for rules about a whole artifact.
    """

    kinds: tuple[str, ...] | None = None
    other_than: tuple[str, ...] | None = None
    stored: tuple[str, ...] | None = None
    dtypes: tuple[str, ...] | None = None
    rank_over: int | None = None
    output_rank: int | None = None
    dynamic: Literal[True] | None = None
    last_axis_from: int | None = None
    last_axis_below: int | None = None
    moves_last_axis: Literal[True] | None = None
    axis_among_last: int | None = None
    square: Literal[True] | None = None
    several_heads: Literal[True] | None = None
    broadcast_axis: int | None = None
    mixed_ranks: Literal[True] | None = None
    computed_values: int | None = None
    batch_over: int | None = None
    wide: Literal[True] | None = None
    last_axis_off: int | None = None
    changes_outer_axes: Literal[True] | None = None
    transposes: tuple[Literal["x", "y"], ...] | None = None
    after: tuple[str, ...] | None = None
    read_by: tuple[str, ...] | None = None
    returned: Literal[True] | None = None
    reads_twice: Literal[True] | None = None
    stride_factor_over: int | None = None
    stride_over: int | None = None
    kernel_over: int | None = None
    dilation_over: int | None = None
    scale_over: float | None = None
    weight_inputs_over: int | None = None
    infinite_constant: Literal[True] | None = None
    constant_over: float | None = None
    number_up_to: float | None = None
    scale_per_block: Literal[True] | None = None
    weight_bytes_over: int | None = None


@dataclass(frozen=True)
class EngineRule(Rule):
    """A rule with its condition."""

    when: When = dataclasses.field(default_factory=When)

    def bare(self) -> Rule:
        """Return the rule without its condition, as reports store it."""
        return Rule(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Rule)})


@dataclass(frozen=True)
class Remedy:
    """Advice for an operation that an engine refused or computed wrongly.

    Attributes:
        advice: recommended change.
        when: conditions on the operation; empty for any.
        reason: part of the engine's message.
    """

    __pydantic_config__ = _STRICT

    advice: str
    when: When = dataclasses.field(default_factory=When)
    reason: str = ""


@dataclass(frozen=True)
class RuleFile:
    """The rules of one target.

    Attributes:
        version: version of the file.
        engine: engine that the verdicts are about.
        systems: systems that load the target's artifacts, oldest first; ``since`` and ``until`` of rules refer to them.
        layout: kinds of operations that only move data.
        rule, hazard: rules about operations; rules about measured values.
        remedy: advice for operations that an engine refused; the first that applies is used.
    """

    __pydantic_config__ = _STRICT

    version: int
    engine: str
    systems: tuple[str, ...]
    layout: tuple[str, ...]
    rule: tuple[EngineRule, ...]
    hazard: tuple[HazardRule, ...] = ()
    remedy: tuple[Remedy, ...] = ()

    def rules_for(self, system: str) -> list[EngineRule]:
        """Return the rules whose ``since`` and ``until`` include ``system``."""
        place = self.systems.index
        first, last = self.systems[0], self.systems[-1]
        return [rule for rule in self.rule if place(rule.since or first) <= place(system) <= place(rule.until or last)]


@dataclass(frozen=True)
class KnownFault(FaultReport):
    """A fault with its condition on operations; the condition is empty if no form of a graph causes the fault."""

    when: When = dataclasses.field(default_factory=When)

    def bare(self) -> FaultReport:
        """Return the fault without its condition, as reports store it."""
        return FaultReport(**{field.name: getattr(self, field.name) for field in dataclasses.fields(FaultReport)})


@dataclass(frozen=True)
class FaultFile:
    """The known faults of one target's runtime.

    Attributes:
        runtime: name of the runtime.
        versions: its published versions, oldest first; ``since`` and ``until`` of faults refer to them.
        backends: names that faults use.
        fault: the faults.
    """

    __pydantic_config__ = _STRICT

    runtime: str
    versions: tuple[str, ...]
    backends: tuple[str, ...]
    fault: tuple[KnownFault, ...]

    def safe_from(self, faults: Sequence[FaultReport]) -> str | None:
        """Return the least version that no fault but slow ones reaches; None without any, or if one has no end."""
        faults = [fault for fault in faults if fault.effect != "slow"]
        if not faults or any(fault.until is None for fault in faults):
            return None
        return next((version for version in self.versions if not any(fault.reaches(version) for fault in faults)), None)


_RULES: Final = TypeAdapter(RuleFile)
_FAULTS: Final = TypeAdapter(FaultFile)


def rule_path(target: str) -> Path:
    """Return the path of a target's rule file."""
    return Path(__file__).parent.parent / target / "engine_rules.toml"


def fault_path(target: str) -> Path:
    """Return the path of a target's known faults."""
    return rule_path(target).with_name("known_faults.toml")


@cache
def faults_of(target: str) -> FaultFile:
    """Return the known faults of a target's runtime; the file is read only once."""
    return load_faults(fault_path(target))


@cache
def rules_of(target: str) -> RuleFile:
    """Return the rules of a target; the file is read only once."""
    return load_rules(rule_path(target))


def load_rules(path: Path) -> RuleFile:
    """Read a rule file.

    Raises:
        ArtifactError: the file is not TOML, has an unknown, missing or wrong field, or a rule with a repeated id,
            without a source or condition, or for an unknown system; the message names file and rule.
    """
    rules = _read(path, _RULES)
    everything: tuple[EngineRule | HazardRule, ...] = (*rules.rule, *rules.hazard)
    _check_ids(path, everything)
    for rule in everything:
        if fault := _fault(rule, rules.systems):
            raise ArtifactError(f"{path}: rule {rule.id}: {fault}")
    return rules


def load_faults(path: Path) -> FaultFile:
    """Read a file of known faults.

    Raises:
        ArtifactError: as :func:`load_rules`; also for an unknown version or backend.
    """
    file = _read(path, _FAULTS)
    _check_ids(path, file.fault)
    for fault in file.fault:
        unknown = [version for version in (fault.since, fault.until) if version not in (None, *file.versions)]
        unknown += [backend for backend in fault.backends if backend not in file.backends]
        if unknown:
            raise ArtifactError(f"{path}: fault {fault.id}: {unknown[0]} is not a version or backend of the file")
        if fault.since and fault.until and numbers(fault.since) > numbers(fault.until):
            raise ArtifactError(f"{path}: fault {fault.id}: it ends before it begins")
        if not _has_source(fault):
            raise ArtifactError(f"{path}: fault {fault.id}: source is not an https address; a fault needs one")
    return file


def _read(path: Path, form: TypeAdapter[_File]) -> _File:
    try:
        return form.validate_json(json.dumps(tomllib.loads(path.read_text(encoding="utf-8"))))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ArtifactError(f"{path}: the rules cannot be read: {error}; install md-export again") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ArtifactError(f"{path}: {where}: {first['msg']}; correct the rule") from error


def _check_ids(path: Path, everything: Sequence[EngineRule | HazardRule | FaultReport]) -> None:
    ids = [rule.id for rule in everything]
    if repeated := sorted({name for name in ids if ids.count(name) > 1}):
        raise ArtifactError(f"{path}: two rules are called {repeated[0]}; rename one")


def _has_source(rule: EngineRule | HazardRule | FaultReport) -> bool:
    is_ours = rule.confidence == "measured" and rule.source.startswith(_MANUAL)
    return is_ours or rule.source.startswith("https://")


def _fault(rule: EngineRule | HazardRule, systems: tuple[str, ...]) -> str | None:
    if not _has_source(rule):
        return "source is not an https address; a rule needs one"
    if not rule.when.given():
        return "its condition is empty, so it would apply to everything"
    if isinstance(rule, HazardRule):
        return None
    if rule.when.weight_bytes_over is not None and len(rule.when.given()) > 1:
        return "weight_bytes_over is a condition on a package, not on an operation"
    unknown = [system for system in (rule.since, rule.until) if system not in (None, *systems)]
    return f"{unknown[0]} is not one of {', '.join(systems)}" if unknown else None
