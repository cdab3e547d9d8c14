"""Estimate the latency of a whole export; a worker reads each artifact, and nothing runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from md_export.diagnose.estimate import roofline
from md_export.diagnose.estimate.devices import LIKELY, Constants, Device, fit_of, knowledge
from md_export.errors import ArtifactError, UsageError
from md_export.models.families import family_named
from md_export.spec.artifact import ArtifactEntry, artifact_path
from md_export.spec.manifest import Manifest, read_manifest
from md_export.targets.execution import costs
from md_export.targets.operations import OpCost


@dataclass(frozen=True)
class ComponentEstimate:
    """Estimate of one call of an artifact.

    Attributes:
        ms: estimate in milliseconds; ``floor`` is the lower bound for any implementation.
        calls: number of calls for one picture.
        ops: number of executed operations without views.
        by_work, by_kind, by_pattern, by_module: time by group, largest first; patterns are of module paths.
        changes: possible changes, largest saving first.
    """

    component: str
    ms: float
    floor: roofline.Floor
    calls: int
    ops: int
    macs: int
    weight_bytes: int
    activation_bytes: int
    by_work: tuple[roofline.Group, ...]
    by_kind: tuple[roofline.Group, ...]
    by_pattern: tuple[roofline.Group, ...]
    by_module: tuple[roofline.Group, ...]
    changes: tuple[roofline.Change, ...]


@dataclass(frozen=True)
class Estimate:
    """The estimated latency of an export on a phone; nothing was measured on one.

    Attributes:
        likely_factor: the estimates of four of five published latencies that were left out of the fit are within this
            factor, up or down; half are within ``typical_factor``, and all within ``worst_factor``.
    """

    recipe: str
    device: str
    title: str
    unit: str
    likely_factor: float
    typical_factor: float
    worst_factor: float
    rows: int
    constants: Constants
    components: tuple[ComponentEstimate, ...]

    @property
    def ms(self) -> float:
        """Estimated milliseconds for one picture."""
        return sum(item.calls * item.ms for item in self.components)

    @property
    def floor_ms(self) -> float:
        """Lower bound in milliseconds for one picture."""
        return sum(item.calls * item.floor.ms for item in self.components)


def estimate(out: Path, device: str, progress: Callable[[str], None] = lambda _: None) -> Estimate:
    """Estimate every artifact of an export.

    Args:
        out: a folder that md-export wrote.
        device: a name in ``devices.toml``.
        progress: called with a line for each artifact.

    Raises:
        UsageError: the device is unknown, or does not execute the target's artifacts or their arithmetic.
        ArtifactError, RuntimeFault: the export cannot be read.
    """
    phone, manifest = knowledge().device(device), read_manifest(out)
    if manifest.target not in phone.unit.targets:
        fitting = [name for name, one in knowledge().devices.items() if manifest.target in one.unit.targets]
        others = f"devices for {manifest.target}: {', '.join(fitting)}" if fitting else "no known device does"
        raise UsageError(f"{phone.title} has data for {phone.unit.title}, not for {manifest.target}; {others}")
    fitted = fit_of(phone.unit.title)
    family, components = family_named(manifest.family), []
    for entry in manifest.artifacts:
        progress(f"estimate {entry.component}")
        calls = len(manifest.steps.steps) if manifest.steps and family[entry.component].called == "per step" else 1
        floor = roofline.floor_of(ops := costs_of(out, manifest, entry), phone, sum(entry.stored.values()))
        components.append(_component(entry.component, ops, phone, fitted.constants, floor, calls))
    return Estimate(
        recipe=manifest.recipe.name,
        device=phone.name,
        title=phone.title,
        unit=phone.unit.title,
        likely_factor=fitted.factor(LIKELY),
        typical_factor=fitted.factor(0.5),
        worst_factor=fitted.factor(1.0),
        rows=len(fitted.rows),
        constants=fitted.constants,
        components=tuple(components),
    )


def costs_of(out: Path, manifest: Manifest, entry: ArtifactEntry) -> tuple[OpCost, ...]:
    """Return arithmetic and memory traffic of the operations of one artifact; raises like :func:`estimate`."""
    return costs(manifest.target, artifact_path(out, entry), ArtifactError)


def _component(
    name: str, ops: Sequence[OpCost], device: Device, constants: Constants, floor: roofline.Floor, calls: int
) -> ComponentEstimate:
    executed = [op for op in ops if op.work != "view"]
    return ComponentEstimate(
        component=name,
        ms=1e3 * sum(roofline.seconds_of(op, device, constants) for op in executed),
        floor=floor,
        calls=calls,
        ops=len(executed),
        macs=sum(op.macs for op in executed),
        weight_bytes=sum(op.weight_bytes for op in executed),
        activation_bytes=sum(op.activation_bytes for op in executed),
        by_work=roofline.grouped(lambda op: op.work, executed, device, constants),
        by_kind=roofline.grouped(lambda op: op.kind, executed, device, constants),
        by_pattern=roofline.grouped(lambda op: roofline.pattern(op.module), executed, device, constants),
        by_module=roofline.grouped(lambda op: op.module, executed, device, constants),
        changes=roofline.changes(executed, device, constants),
    )
