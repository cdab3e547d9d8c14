"""Judge the results that come back from a device, by the metrics and thresholds of every other runtime.

    results/device.json                   device, system, driver, runtime, backend, date; identity of the export
    results/unet/000/out_sample.bin       outputs as raw values, as a kit has its tensors
    results/unet/failed.txt               instead of outputs: why the device did not run the component

The folder is untrusted: names and sizes follow from the export alone, and links are refused.
"""

from __future__ import annotations

import math
import os.path
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

import numpy as np
from pydantic import ConfigDict, StringConstraints, TypeAdapter, ValidationError

from md_export.errors import UsageError
from md_export.parity.device.kit import case_name
from md_export.parity.metrics import Check, Fault
from md_export.parity.opened_export import open_export
from md_export.parity.subject import Subject
from md_export.parity.verdict import ComponentVerdict, Verdict
from md_export.spec.given import MANIFEST
from md_export.spec.manifest import first_finding
from md_export.spec.tensors import Array
from md_export.system.files import read_limited, sha256_of
from md_export.system.terminal_text import first_control

DEVICE: Final = "device.json"
FAILED: Final = "failed.txt"
_LARGEST_TEXT: Final = 1 << 16
_AGAIN: Final = "run the kit's program again"

# One line, because "." does not match a line feed.
_Words = Annotated[str, StringConstraints(pattern="^.+$", max_length=200)]


@dataclass(frozen=True)
class Device:
    """Content of ``device.json``.

    Attributes:
        manifest_sha256, golden_cases: as in the kit that was run.
        device, os, driver, runtime, backend: as the device reports them; ``driver``: of its GPU.
        date: ISO 8601, UTC.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    schema: Literal[1]
    manifest_sha256: _Words
    golden_cases: int
    device: _Words
    os: _Words
    driver: _Words
    runtime: _Words
    backend: _Words
    date: _Words


@dataclass(frozen=True)
class DeviceReport:
    """A device and the verdict on its results; ``export_cases``: number of all golden cases of the export."""

    device: Device
    verdict: Verdict
    export_cases: int

    @property
    def extent(self) -> str:
        """Number of golden cases that were run, and of all: ``2 of 8``."""
        return f"{self.verdict.cases} of {self.export_cases}"


def judge_results(out: Path, results: Path) -> DeviceReport:
    """Judge a device's results for the export in ``out``.

    Raises:
        ArtifactError: the manifest is unreadable, or an artifact is missing.
        GoldenError: the golden cases are unreadable, altered, or of another checkpoint.
        UsageError: the results come from another export, or a file is missing, irregular or has another size.
    """
    export = open_export(out)
    manifest, cases = export.manifest, export.golden.cases
    device = _read_device(results)
    wanted = sha256_of(out / MANIFEST)
    if device.manifest_sha256 != wanted:
        raise UsageError(
            f"{results} holds results of another export (manifest {device.manifest_sha256:.12}, {out} has "
            f"{wanted:.12}); name that export, or run a kit of this one"
        )
    if not 1 <= device.golden_cases <= len(cases):
        raise UsageError(f"{results / DEVICE} has {device.golden_cases} golden cases, {out} {len(cases)}; {_AGAIN}")
    cases = cases[: device.golden_cases]
    verdicts = tuple(_judge(Subject(export, entry, cases), results) for entry in manifest.artifacts)
    runtime = f"{device.runtime}, {device.backend}"
    verdict = Verdict(manifest.target, manifest.recipe.name, len(cases), verdicts, runtime=runtime)
    return DeviceReport(device, verdict, len(export.golden.cases))


def _judge(subject: Subject, results: Path) -> ComponentVerdict[None]:
    component = subject.entry.component
    # exists() is false for a broken link; links are refused all the same.
    if os.path.lexists(results / component / FAILED):
        words = _text(results, component, FAILED).decode(errors="replace").split()
        fault = Fault(Check.EXECUTION, f"did not run on the device: {' '.join(words)[:400]}")
        return subject.verdict(None, [fault])
    made = [
        {name: _tensor(results, want, component, case_name(number), f"{name}.bin") for name, want in wanted.items()}
        for number, wanted in enumerate(subject.wanted())
    ]
    parity, faults = subject.compare(made)
    return subject.verdict(None, faults, parity)


def _tensor(results: Path, like: Array, *parts: str) -> Array:
    """Read the values of a tensor with the shape and dtype of ``like``; NaN and Inf are kept for the judge."""
    size = math.prod(like.shape) * like.dtype.itemsize
    path, found = _regular(results, *parts)
    if found != size:
        raise UsageError(f"{path} has {found:,} bytes instead of {size:,}; {_AGAIN}")
    content = read_limited(path, size, UsageError, _AGAIN)
    if len(content) != size:
        raise UsageError(f"{path} changed while it was read; {_AGAIN}")
    return np.frombuffer(content, like.dtype.newbyteorder("<")).reshape(like.shape).astype(like.dtype)


def _read_device(results: Path) -> Device:
    content = _text(results, DEVICE)
    path = results / DEVICE
    try:
        device = TypeAdapter(Device).validate_json(content, strict=True)
    except (ValidationError, RecursionError) as error:
        raise UsageError(f"{path} does not describe a device: {first_finding(error)}; {_AGAIN}") from error
    if (control := first_control(vars(device))) is not None:
        raise UsageError(f"{path}: {control} holds a control character; {_AGAIN}")
    return device


def _text(results: Path, *parts: str) -> bytes:
    path, _ = _regular(results, *parts)
    return read_limited(path, _LARGEST_TEXT, UsageError, _AGAIN)


def _regular(results: Path, *parts: str) -> tuple[Path, int]:
    """Return a file of the results and its size in bytes; a link anywhere below ``results`` is refused."""
    path = results
    for part in parts:
        path /= part
        try:
            found = path.lstat()
        except OSError as error:
            raise UsageError(f"{path} is missing; {_AGAIN}, and copy its whole results folder") from error
        if not (stat.S_ISREG if part == parts[-1] else stat.S_ISDIR)(found.st_mode):
            raise UsageError(f"{path} is a link or no {'file' if part == parts[-1] else 'folder'}; {_AGAIN}")
    return path, found.st_size
