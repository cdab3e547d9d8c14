"""The chain from prompt to picture: each artifact is judged, then runs on the outputs of the artifacts before it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic

import numpy as np

from md_export.errors import MachineError, MdExportError
from md_export.models.families import family_named
from md_export.models.sampling.sampler import Sampler
from md_export.models.values import MADE
from md_export.models.walk import Steps, Tensors, walk
from md_export.parity.golden.case import GoldenCase
from md_export.parity.golden.surface import each_call, unpacked
from md_export.parity.metrics import Check, Fault
from md_export.parity.opened_export import OpenedExport
from md_export.parity.subject import Subject, judge_picture
from md_export.parity.verdict import ComponentVerdict, Engine, PictureVerdict
from md_export.spec.manifest import Manifest
from md_export.spec.names import chunk_number, whole_of
from md_export.spec.tensors import Arrays, Float32
from md_export.targets.execution import Part, parts_of

# Judges an artifact by its golden cases and runs it on further inputs under our names. Returns the outputs for all
# inputs, or an empty sequence if the artifact cannot be judged.
Judge = Callable[[Subject, Sequence[Arrays]], tuple[ComponentVerdict[Engine], Sequence[Arrays]]]
# Runs many sampler steps with artifacts of a target, as :func:`md_export.targets.execution.take_steps` does.
Take = Callable[[str, Sequence[Part], Steps, Sequence[Tensors]], tuple[str, ...]]


@dataclass(frozen=True)
class ChainVerdicts(Generic[Engine]):
    """Verdicts on the artifacts in the manifest's order, the verdict on the picture, and the pictures."""

    verdicts: tuple[ComponentVerdict[Engine], ...]
    picture: PictureVerdict | None
    pictures: tuple[Float32, ...]


def judge_chain(
    export: OpenedExport,
    cases: Sequence[GoldenCase],
    judge: Judge[Engine],
    take: Take | None,
    tell: Callable[[str], None],
) -> ChainVerdicts[Engine]:
    """Judge all artifacts of an export and, if it has all components, the pictures that they make together.

    ``take``: runs many steps; if None, none are run and no pictures are made. ``tell``: receives each component's name.
    """
    manifest = export.manifest
    runner, names = _JudgingRunner(export, cases, judge, take, tell), [entry.component for entry in manifest.artifacts]
    family = family_named(manifest.family)
    rows = [row for row in family.components if row.name in names]
    # Without text encoders, the chain starts from golden embeddings, which those that are stored must equal.
    needed = {row.name for row in family.needed(bool(manifest.stored_prompts))}
    whole = needed <= set(names) and (take is not None or manifest.steps is None)
    begun = [_begin(manifest, case) for case in cases] if whole else []
    walked = walk(family, rows, runner, begun, Sampler(manifest.steps or manifest.one_step))
    pictures = tuple(np.asarray(values[MADE.key], np.float32) for values in walked if MADE.key in values)
    picture = judge_picture(manifest, cases, pictures) if whole else None
    return ChainVerdicts(tuple(runner.verdicts[name] for name in (*names, *runner.wholes)), picture, pictures)


def _begin(manifest: Manifest, case: GoldenCase) -> Tensors:
    """Return the golden values that the chain starts from: the given ones, and those that the export cannot compute."""
    made = {entry.component for entry in manifest.artifacts}
    lacked = [name for name in family_named(manifest.family).rows if name not in made]
    beginnings = tuple(f"{node}." for node in ("given", *lacked))
    return {key: value for key, value in case.values.items() if key.startswith(beginnings)}


@dataclass
class _JudgingRunner(Generic[Engine]):
    """Runner of the chain that judges each component before its first run."""

    export: OpenedExport
    cases: Sequence[GoldenCase]
    judge: Judge[Engine]
    take_many: Take | None
    tell: Callable[[str], None]
    verdicts: dict[str, ComponentVerdict[Engine]] = field(default_factory=dict)
    chunk_values: list[Arrays] = field(default_factory=list)
    wholes: tuple[str, ...] = ()

    def run(self, component: str, batches: Sequence[Arrays]) -> Sequence[Arrays]:
        """Judge a component and return its outputs for ``batches``; an empty list if it cannot be judged."""
        self.tell(component)
        subject = Subject(self.export, self.export.manifest.entry_for(component), self.cases)
        # A component that reads no other component's output gets its golden inputs.
        others = [] if family_named(self.export.manifest.family)[component].is_first else batches
        behind = self._chunk_inputs(component)
        self.verdicts[component], made = self.judge(subject, [*others, *behind])
        if chunk_number(component):
            self._keep_for_chunks(subject, made[-len(behind) :] if behind else made)
        made = made[: len(made) - len(behind)]
        chained = made[-len(batches) :] if batches else []
        return [unpacked(self.export.manifest.recipe, subject.entry, outputs) for outputs in chained]

    def _chunk_inputs(self, component: str) -> list[Arrays]:
        """Return a chunk's golden inputs, with the values of earlier chunks replaced by their artifacts' outputs."""
        calls = each_call(component, self.cases) if chunk_number(component) > 1 and self.chunk_values else []
        return [{**call.inputs(component), **made} for call, made in zip(calls, self.chunk_values, strict=bool(calls))]

    def _keep_for_chunks(self, subject: Subject, made: Sequence[Arrays]) -> None:
        """Keep a chunk's outputs for later chunks; after the last chunk, judge the whole component."""
        number, entry, last = chunk_number(subject.entry.component), subject.entry, self.export.manifest.recipe.chunks
        count = len(each_call(entry.component, self.cases))
        before = self.chunk_values if number > 1 else [{} for _ in range(count)]
        named = [unpacked(self.export.manifest.recipe, entry, outputs) for outputs in made[:count]]
        self.chunk_values = [{**old, **new} for old, new in zip(before, named, strict=False)]
        if number != last or not self.chunk_values:
            return
        whole = whole_of(entry.component)
        parity, faults = dataclasses.replace(subject, entry=dataclasses.replace(entry, component=whole)).compare(made)
        of_last_chunk = self.verdicts[entry.component]
        self.verdicts[whole] = dataclasses.replace(
            of_last_chunk, component=whole, file="all chunks", parity=parity, faults=tuple(faults)
        )
        self.wholes = (whole,)

    def take(self, steps: Steps, pictures: Sequence[Tensors]) -> None:
        """Run the only step; for many steps, first judge the components that the steps use."""
        if not steps.sampler.takes_many:
            steps.take(self.run, pictures)
            return
        names = [row.name for row in steps.components]
        for name in names:
            self.run(name, [])
        if self.take_many is None or not pictures or any(self.verdicts[name].parity is None for name in names):
            return
        last = self.verdicts[names[-1]]
        try:
            parts = parts_of(self.export.out, self.export.manifest, steps, pictures)
            hazards = self.take_many(self.export.manifest.target, parts, steps, pictures)
            faults = [Fault(Check.OVERFLOW, line) for line in hazards if line not in last.faults]
        except MachineError:
            raise
        except MdExportError as error:
            faults = [Fault(Check.EXECUTION, str(error))]
        self.verdicts[last.component] = dataclasses.replace(last, faults=(*last.faults, *faults))
