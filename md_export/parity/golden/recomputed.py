"""Compare golden cases with torch's results for the checkpoint; cases that were taken from an artifact differ.

Each case is computed again from its prompt and seed by the code that computes golden cases for an export. If the
chain differs by more than the rounding of another machine, each component is also run on its golden inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from md_export.checkpoint import Checkpoint
from md_export.models.walk import Runners
from md_export.parity.golden.case import GoldenCase
from md_export.parity.golden.folder import GoldenSet, GoldenSource
from md_export.parity.golden.prepare import golden_source, planned_cases
from md_export.parity.metrics import Check, Finding, first_fault, snr_db
from md_export.spec.manifest import Manifest
from md_export.spec.recipe import Recipe
from md_export.spec.style import is_style_key
from md_export.spec.tensors import Array

# Thresholds for float32 rounding on another machine or in another version of torch: for a component on its golden
# inputs (measured: 110 dB and more), and after all sampler steps, which may amplify the difference. float16: 70 dB.
ALONE_DB: Final = 80.0
_CHAIN_DB: Final = 60.0


def reference_findings(
    checkpoint: Checkpoint,
    manifest: Manifest,
    golden: GoldenSet,
    progress: Callable[[str], None],
    style: str | None = None,
) -> Iterator[Finding]:
    """Yield a finding with the case's name for each golden tensor that differs from torch's result for the checkpoint.

    ``checkpoint`` must be of the recipe's variant. ``style``: the cases of
    this style, which the checkpoint has fused in; None: those without a style.
    One component is in memory at a time.

    Raises:
        RewriteError: the recipe's rewrites do not apply to this checkpoint.
    """
    recipe = manifest.recipe
    encodes = recipe.encodes or any(golden.cases[0].graph.encoded.key in case.values for case in golden.cases)
    source = golden_source(checkpoint, recipe.rewrites, recipe.allow_drift, recipe.sampler, encodes)
    if source.rewrites != golden.index.rewrites:
        text = f"its index has the rewrites {golden.index.rewrites}, the recipe applies {source.rewrites}"
        yield Finding("", Check.REFERENCE, text)
    differences, close = _Differences(), set[str]()
    cases = [case for case in golden.cases if case.style == style]
    for number, case in enumerate(cases):
        progress(f"torch on golden case {number + 1} of {len(cases)}")
        made = source.generate(case.prompt, case.seed)
        held = {key for key in case.values if not is_style_key(key)}
        for key in sorted(made.keys() | held):
            db = _agreement(case.values.get(key), made.get(key))
            differences.add(case, key, db, _CHAIN_DB)
            close |= {key.partition(".")[0]} if _CHAIN_DB <= db < ALONE_DB else set()
    for component in sorted(close & golden.cases[0].graph.rows.keys()):
        progress(f"torch on the golden inputs of {component}")
        for case in cases:
            _run_alone(source, component, case, differences)
    yield from differences.findings()


def _run_alone(source: GoldenSource, component: str, case: GoldenCase, differences: _Differences) -> None:
    """Run a component in torch on its golden inputs and compare the outputs with its golden outputs."""
    backend = source.pipeline.backend
    assert isinstance(backend, Runners)  # noqa: S101 (golden_source gives these)
    for call in case.calls(component):
        for name, value in backend.runners[component].run(call.inputs(component)).items():
            ending = "" if call.call is None else f".{call.call}"
            differences.add(
                case, f"{component}.{name}{ending}", _agreement(call.output(component, name), value), ALONE_DB
            )


def _agreement(held: Array | None, made: Array | None) -> float:
    """Return the SNR in dB of a golden value against torch's; -inf if one is missing or has another shape or dtype."""
    if held is None or made is None or first_fault(held, made):
        return -np.inf
    if np.issubdtype(made.dtype, np.integer):
        return np.inf if np.array_equal(held, made) else -np.inf
    return snr_db(held, made)


@dataclass
class _Differences:
    """Differing golden tensors by key, each with the case that differs most and the number of cases that differ."""

    worst: dict[str, tuple[float, str]] = field(default_factory=dict)
    wrong: dict[str, set[str]] = field(default_factory=dict)

    def add(self, case: GoldenCase, key: str, db: float, least_db: float) -> None:
        if db < least_db:
            self.worst[key] = min(self.worst.get(key, (db, case.name)), (db, case.name))
            self.wrong.setdefault(key, set()).add(case.name)

    def findings(self) -> Iterator[Finding]:
        for key, (db, name) in self.worst.items():
            many = len(self.wrong[key])
            more = f" (and in {many - 1} more cases)" if many > 1 else ""
            what = f"{db:.1f} dB from what" if np.isfinite(db) else "not what"
            text = (
                f"{name}: the golden {key} is {what} torch computes of the checkpoint{more}; the cases were not made "
                "from it, export again"
            )
            yield Finding(key.partition(".")[0], Check.REFERENCE, text)


def case_lines(expected: Iterable[tuple[str, int]], golden: GoldenSet) -> Iterator[str]:
    """Yield a line if ``expected`` golden cases are missing, or are in another order.

    Golden cases with other prompts were given at the export; they are not compared with the recipe's.
    """
    wanted, held = list(expected), [(case.prompt, case.seed) for case in golden.cases if case.style is None]
    if held != wanted and set(held) <= set(wanted):
        yield (
            f"it has {len(held)} golden cases; the recipe requires {len(wanted)} in its order; it was edited, export "
            "again"
        )
    names = [f"case-{number:03d}" for number in range(len(golden.cases))]
    if [case.name for case in golden.cases] != names:
        yield "its golden cases are not numbered from case-000 on; it was edited, export again"


def expected_cases(recipe: Recipe, checkpoint: Checkpoint | None = None) -> list[tuple[str, int]]:
    """Return prompt and seed of the golden cases that an export computes; without a checkpoint, those of the recipe."""
    if checkpoint is not None:
        return planned_cases(recipe, checkpoint)
    limit = recipe.sampler.cases if recipe.sampler else None
    return [(prompt, seed) for prompt in recipe.golden.prompts for seed in recipe.golden.seeds][:limit]
