"""Advice on a saved package: rules for the Neural Engine per operation, and float16 hazards of real activations."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from md_export.errors import ArtifactError, RuntimeFault, UsageError
from md_export.mil.loading import Package
from md_export.mil.values import decode
from md_export.spec.tensors import Array, Arrays
from md_export.targets.coreml.describe import value_of
from md_export.targets.coreml.hazard import measure
from md_export.targets.coreml.package import operands_of, read_modules
from md_export.targets.lint.judge import judge, judged
from md_export.targets.lint.report import LintReport
from md_export.targets.lint.rules import faults_of, rules_of
from md_export.targets.operations import Facts, Op

# Version of Core ML's model format in the first of the systems; each later system increased it by one.
_FIRST_VERSION: Final = 6


def read_facts(path: Path) -> Facts:
    """Read the facts of a saved ML program from any tool.

    Raises:
        ArtifactError: the path is not a readable ``.mlpackage`` that contains an ML program.
    """
    try:
        package = Package(path)
        ops = tuple(_ops(package))
    except RuntimeFault as error:
        raise ArtifactError(str(error)) from error
    weights = sum(file.stat().st_size for file in path.rglob("weights/*") if file.is_file())
    return Facts(ops, weights, int(package.spec.specificationVersion), package)


def _ops(package: Package) -> Iterator[Op]:
    function = package.function()
    operations = function.block_specializations[function.opset].operations
    held = {op.outputs[0].name: op.attributes["val"] for op in operations if op.type == "const"}
    executed = [op for op in operations if op.type != "const"]
    outputs = (output for op in executed if not _decodes(op) for output in op.outputs)
    values = {proto.name: value_of(proto) for proto in (*function.inputs, *outputs)}
    modules = read_modules(package.spec)
    for op in executed:
        reads = tuple(values[item.name] for item in operands_of(op) if item.name in values)
        writes = tuple(map(value_of, op.outputs))
        yield Op(
            kind=str(op.type),
            module=modules.get(writes[0].name, "") if writes else "",
            reads=reads,
            writes=writes,
            decodes=_decodes(op),
            bytes=0 if _decodes(op) else sum(value.padded_bytes for value in (*reads, *writes)),
            constants={role: partial(_decoded, proto, package) for role, proto in _constants(op, held)},
        )


def _decodes(op: Any) -> bool:
    return bool(op.type.startswith("constexpr_"))


def _constants(op: Any, held: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield each constant argument with its role; further arguments of a role are numbered: ``role/1``."""
    for role, place, name, given in operands_of(op):
        proto = held.get(name) if given is None else given
        if proto is not None:
            yield (f"{role}/{place}" if place else role), proto


def _decoded(proto: Any, package: Package) -> Array:
    return np.asarray(decode(proto, package.weights))


def lint(path: Path, system: str | None = None, batches: Sequence[Arrays] = ()) -> LintReport:
    """Check a package against the rules; with inputs, also run it and report its float16 hazards.

    Args:
        path: the ``.mlpackage``, of any tool.
        system: the system with the rules to apply (``iOS18``); None: the oldest that loads the package.
        batches: sets of inputs.

    Raises:
        ArtifactError: the package cannot be read.
        UsageError: the system is unknown, or too old for the package.
        RuntimeFault: the package does not run on the inputs.
    """
    facts, rules = read_facts(path), rules_of("coreml")
    system = _system(facts.version, system, path.name, rules.systems)
    report = judge(path.name, facts, rules, system, faults_of("coreml"))
    if not batches:
        return report
    return dataclasses.replace(report, hazards=judged(measure(path, batches), rules.hazard))


def _system(version: int, asked: str | None, name: str, systems: tuple[str, ...]) -> str:
    """Return the requested system, or the oldest that loads a package of that version."""
    oldest = min(max(version - _FIRST_VERSION, 0), len(systems) - 1)
    if asked is None:
        return systems[oldest]
    if asked not in systems:
        raise UsageError(f"unknown system {asked!r}; use one of {', '.join(systems)}")
    if systems.index(asked) < oldest:
        raise UsageError(f"{name} does not load before {systems[oldest]}; export for {asked}, or leave out --os")
    return asked
