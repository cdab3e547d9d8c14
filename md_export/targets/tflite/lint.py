"""Advice on a .tflite file: what the GPU engine is known to refuse, and what float16 may do to real activations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from md_export.errors import ArtifactError, RuntimeFault, UsageError
from md_export.spec.tensors import Arrays
from md_export.targets.advice import LintReport, OpAdvice, Verdict
from md_export.targets.tflite.flatbuffer import MALFORMED, read_model, weighted_ops
from md_export.targets.tflite.gpu.graph import GraphOp, ops_of
from md_export.targets.tflite.gpu.rules import RULES, VERSION
from md_export.targets.tflite.half.activations import write_float_weights
from md_export.targets.tflite.half.bounds import measure
from md_export.targets.tflite.half.rounded import emulated_db

ENGINE: Final = "LiteRT's GPU engine"
# The first that a rule gives is the op's verdict.
_ORDER: Final[tuple[Verdict, ...]] = ("unlikely", "likely", "unknown")
_LAYOUT: Final = frozenset({"RESHAPE", "TRANSPOSE", "PAD", "CONCATENATION", "SLICE", "SPLIT", "STRIDED_SLICE"})


def lint(path: Path, system: str | None = None, batches: Sequence[Arrays] = ()) -> LintReport:
    """Judge a file by what the GPU engine is known to do; with inputs, bound float16 arithmetic too.

    Args:
        path: the ``.tflite`` file, of any tool.
        system: for Core ML packages only.
        batches: sets of inputs, on which the file is executed in float32.

    Raises:
        ArtifactError: no readable file.
        UsageError: a system is given.
        RuntimeFault: inputs were given, and the file does not run on them.
    """
    if system is not None:
        raise UsageError(f"--os chooses rules for Core ML packages; leave it out for {path.name}")
    try:
        model = read_model(path)
        ops = ops_of(model)
        stored = {op.output: op.dtype for op in weighted_ops(model)}
    except RuntimeFault as error:
        raise ArtifactError(str(error)) from error
    except MALFORMED as error:
        raise ArtifactError(f"{path.name}: corrupted: {error}; export it again") from error
    advice = tuple(_advice(op, stored) for op in ops)
    fitting = {name for op in advice for name in op.rules}
    report = LintReport(
        file=path.name,
        system="ML Drift",
        rules_version=VERSION,
        rules=tuple(item.rule for item in RULES if item.rule.id in fitting),
        ops=advice,
        layout_bytes=sum(op.bytes for op in advice if op.kind in _LAYOUT),
        remarks=(),
        hazard_rules=(),
        cases=len(batches),
        engine=ENGINE,
    )
    return _with_float16(report, path, batches) if batches else report


def _with_float16(report: LintReport, path: Path, batches: Sequence[Arrays]) -> LintReport:
    with TemporaryDirectory(prefix="md-export-") as scratch:
        floats = Path(scratch) / path.name
        watched = floats if write_float_weights(path, floats) else path
        return replace(report, bounds=measure(watched, batches), emulated_db=emulated_db(watched, batches))


def _advice(op: GraphOp, stored: Mapping[str, str]) -> OpAdvice:
    fitting = [item.rule for item in RULES if item.fits(op, stored.get(op.outputs[0], ""))]
    said = {rule.verdict for rule in fitting}
    verdict: Verdict = next((item for item in _ORDER if item in said), "unknown")
    return OpAdvice(op.outputs[0], op.operator, op.module, verdict, tuple(rule.id for rule in fitting), _bytes(op))


def _bytes(op: GraphOp) -> int:
    """In float16, channels by fours as the engine stores them; constants are counted too."""
    return sum(2 * prod(shape[:-1]) * -(-shape[-1] // 4) * 4 for shape in op.shapes if shape)
