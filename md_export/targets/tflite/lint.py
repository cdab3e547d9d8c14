"""Advice on a .tflite file: operations that the GPU engine refuses, and float16 bounds for real activations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from md_export.errors import ArtifactError, RuntimeFault, UsageError
from md_export.spec.tensors import Arrays
from md_export.system.workspace import scratch_folder
from md_export.targets.lint.judge import judge
from md_export.targets.lint.report import LintReport
from md_export.targets.lint.rules import faults_of, rules_of
from md_export.targets.operations import Facts
from md_export.targets.tflite.describe import graph_ops
from md_export.targets.tflite.flatbuffer import MALFORMED
from md_export.targets.tflite.half.activations import write_float_weights
from md_export.targets.tflite.half.bounds import emulated_db, measure


def lint(path: Path, system: str | None = None, batches: Sequence[Arrays] = ()) -> LintReport:
    """Check a file against the rules for the GPU engine; with inputs, also bound the errors of float16 arithmetic.

    Args:
        path: the ``.tflite`` file, of any tool.
        system: must be None; only Core ML packages have systems.
        batches: sets of inputs to execute the file on, in float32.

    Raises:
        ArtifactError: the file cannot be read.
        UsageError: a system was given.
        RuntimeFault: the file does not run on the inputs.
    """
    if system is not None:
        raise UsageError(f"--os chooses rules for Core ML packages; leave it out for {path.name}")
    rules = rules_of("tflite")
    try:
        facts = Facts(tuple(graph_ops(path)))
        judged = judge(path.name, facts, rules, rules.systems[0], faults_of("tflite"))
    except RuntimeFault as error:
        raise ArtifactError(str(error)) from error
    except MALFORMED as error:
        raise ArtifactError(f"{path.name}: corrupted: {error}; export it again") from error
    report = replace(judged, cases=len(batches))
    return _with_float16(report, path, batches) if batches else report


def _with_float16(report: LintReport, path: Path, batches: Sequence[Arrays]) -> LintReport:
    with scratch_folder() as scratch:
        floats = scratch / path.name
        watched = floats if write_float_weights(path, floats) else path
        return replace(report, bounds=measure(watched, batches), emulated_db=emulated_db(watched, batches))
