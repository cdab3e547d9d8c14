"""Check the requirements of an export: versions, memory, disk, GPU driver, and each target on a small module."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

import numpy as np
import torch
from torch import Tensor, nn

from md_export import __version__
from md_export.diagnose.doctor.findings import (
    Diagnosis,
    Finding,
    disk_findings,
    memory_finding,
    memory_here,
    need_of,
    places_here,
    version_findings,
)
from md_export.errors import MissingExtraError
from md_export.parity.metrics import compare, first_fault
from md_export.spec.recipe import Recipe
from md_export.spec.scheme import QuantScheme
from md_export.spec.tensors import TensorSpec
from md_export.system.isolation import Ended, Limits, attempt
from md_export.targets import TARGETS
from md_export.targets.contract import Target
from md_export.targets.execution import answer_of
from md_export.targets.tflite.gpu.engine import find_driver

# Both sides compute in float32: a different order of sums costs a few units in the last place, about 130 dB.
LEAST_SNR_DB: Final = 90.0
_INPUT: Final = TensorSpec("sample", (1, 4, 8, 8), "float32")
_OUTPUT: Final = TensorSpec("out", (1, 64, 8), "float32")


class Canary(nn.Module):
    """Network of the layers that every component has: convolution, GroupNorm, attention, GELU."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 8, 3, padding=1)
        self.norm = nn.GroupNorm(4, 8)
        self.to_q, self.to_k, self.to_v = (nn.Linear(8, 8) for _ in range(3))
        self.out = nn.Linear(8, 8)

    def forward(self, sample: Tensor) -> Tensor:
        """``[1, 4, 8, 8]`` → ``[1, 64, 8]``, float32."""
        tokens = self.norm(self.conv(sample)).flatten(2).transpose(1, 2)
        scores = self.to_q(tokens) @ self.to_k(tokens).transpose(1, 2) / 8**0.5
        tokens = tokens + scores.softmax(-1) @ self.to_v(tokens)
        return cast(Tensor, self.out(nn.functional.gelu(tokens)))


@dataclass(frozen=True)
class CanaryResult:
    """Result of a canary: ``snr_db`` against torch; ``fault``: why there is no SNR."""

    snr_db: float | None
    fault: str = ""


def run_canary(target: Target, suffix: str) -> CanaryResult:
    """Convert and run the canary.

    Raises:
        MdExportError: the target failed.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = Canary().eval().requires_grad_(False)
        sample = torch.randn(_INPUT.shape)
    wanted, given = module(sample).numpy(), {_INPUT.name: sample.numpy()}
    made = answer_of(target, suffix, module, given, _OUTPUT, QuantScheme("float32", "float32"))
    fault = first_fault(np.asarray(made), wanted)
    return CanaryResult(None, str(fault)) if fault else CanaryResult(compare(made, wanted).snr_db)


def run_canary_of(name: str) -> CanaryResult:
    """Convert and run the canary of the named target."""
    return run_canary(TARGETS[name].open(), TARGETS[name].suffix)


CANARY_LIMIT_S: Final = 120.0
Progress = Callable[[str], None]


def examine(
    recipe: Recipe | None, checkpoint: Path, canaries: bool = True, progress: Progress = lambda _: None
) -> Diagnosis:
    """Check the requirements of an export.

    Args:
        recipe: predict memory and disk for this recipe and ``checkpoint``; None: use the least that any export needs.
        canaries: convert and run a small module on each target.
        progress: called with a line for each canary.

    Raises:
        CheckpointError, ConfigError: the checkpoint cannot be opened.
    """
    need = None if recipe is None else need_of(recipe, checkpoint)
    findings = [
        *version_findings(),
        memory_finding(memory_here(), need),
        *disk_findings(places_here(), need),
        gpu_finding(),
    ]
    if canaries:
        for target in TARGETS.values():
            progress(f"{target.name}: converting and running a canary")
            findings.append(canary_finding(target))
    system = f"{platform.system()} {platform.release()}, {platform.machine()}, {os.cpu_count()} cores"
    return Diagnosis(__version__, system, tuple(findings))


def gpu_finding() -> Finding:
    """Look for the Vulkan driver, which only ``verify --gpu`` needs."""
    try:
        return Finding("gpu", "Vulkan driver", "ok", str(find_driver().manifest))
    except MissingExtraError as error:
        return Finding("gpu", "Vulkan driver", "not installed", "for verify --gpu alone", str(error))


def canary_finding(target: Target) -> Finding:
    """Check that a target converts and computes, in an isolated process."""
    try:
        target.require()
    except MissingExtraError as error:
        return Finding("canary", target.name, "not installed", "-", str(error))
    started = time.perf_counter()
    ended = attempt(run_canary_of, target.name, Limits(seconds=CANARY_LIMIT_S))
    return canary_judged(target.name, ended, time.perf_counter() - started)


def canary_judged(name: str, ended: Ended[CanaryResult], seconds: float) -> Finding:
    """Return the finding for a canary's worker, from its result or its death; ``seconds``: wall time of the process."""
    again = f"pip install --force-reinstall 'md-export[{name}]'; if that does not help, report this"
    if ended.error is not None:
        return Finding("canary", name, "broken", f"{ended.error!s:.300}", again)
    if ended.result is None:
        last = (ended.log.strip().splitlines() or [""])[-1]
        return Finding("canary", name, "broken", f"{ended.death}: {last:.200}", again)
    snr_db = ended.result.snr_db
    if snr_db is None:
        return Finding("canary", name, "broken", f"its runtime's output has {ended.result.fault}", again)
    found = f"{min(snr_db, 999):.0f} dB SNR against torch in {seconds:.1f} s"
    if not snr_db >= LEAST_SNR_DB:
        return Finding("canary", name, "broken", f"{found}; {LEAST_SNR_DB:g} dB expected: its results are wrong", again)
    return Finding("canary", name, "ok", found)
