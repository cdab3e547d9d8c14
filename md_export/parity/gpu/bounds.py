"""Float16 on a phone's GPU, which no runtime here computes: what follows from activations, in a line or two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from md_export.linting import lint_with
from md_export.targets.bounds import Float16Bound, worst_op
from md_export.tensors import Arrays


@dataclass(frozen=True)
class Float16Outlook:
    """What float16 arithmetic may do to one artifact. Expected figures are of single ops; errors add up.

    Attributes:
        cases: sets of inputs whose activations were measured, in float32.
        budget_db: that the counts are held against.
        ops: with sums, products or functions, which have a figure.
        overflows: names and modules of ops that may pass 65504 in the engine's default precision.
        below_by_default, below_with_float32_sums: ops whose own expected error is above the budget.
        worst_by_default, worst_with_float32_sums: the op with the least expected figure; None for a graph without one.
        emulated_db: the whole file with float16 values and float32 sums, against float32; None where nothing was run.
    """

    cases: int
    budget_db: float
    ops: int
    overflows: tuple[str, ...]
    below_by_default: int
    below_with_float32_sums: int
    worst_by_default: Float16Bound | None
    worst_with_float32_sums: Float16Bound | None
    emulated_db: float | None

    def __str__(self) -> str:
        """What the line under a table of measured figures says."""
        default, float32 = self.worst_by_default, self.worst_with_float32_sums
        if default is None or default.default is None or float32 is None or float32.float32_sums is None:
            return "float16 on a phone: nothing to bound"
        over = f"may overflow in {', '.join(self.overflows)}; " if self.overflows else "no overflow; "
        return (
            f"float16 on a phone: bounded, not measured: {over}by default {self.below_by_default} of {self.ops} ops "
            f"expected below {self.budget_db:g} dB, the worst {default.default.expected:.0f} dB in {_place(default)}; "
            f"with float32 sums {self.below_with_float32_sums}, the worst {float32.float32_sums.expected:.0f} dB in "
            f"{_place(float32)}; all of it emulated with float32 sums: {self.emulated_db or 0.0:.0f} dB"
        )


def float16_outlook(path: Path, batches: Sequence[Arrays], budget_db: float) -> Float16Outlook:
    """Bound float16 arithmetic in a .tflite file, in a process of its own.

    Args:
        batches: sets of inputs; one is enough for magnitudes of the usual kind.
        budget_db: what one op may lose; :func:`md_export.linting.budget_of` gives an export's.

    Raises:
        ArtifactError: the file cannot be read.
        RuntimeFault: it does not run on the inputs.
    """
    report = lint_with(path, batches, budget_db)
    bounds = report.bounds or ()
    known = [bound for bound in bounds if bound.default and bound.float32_sums]
    float32 = sum("loses" in bound.rules for bound in known)
    return Float16Outlook(
        cases=len(batches),
        budget_db=budget_db,
        ops=len(known),
        overflows=tuple(_place(bound) for bound in bounds if {"overflow", "sum-overflow"} & set(bound.rules)),
        below_by_default=float32 + sum("loses-by-default" in bound.rules for bound in known),
        below_with_float32_sums=float32,
        worst_by_default=worst_op(bounds, lambda bound: bound.default),
        worst_with_float32_sums=worst_op(bounds, lambda bound: bound.float32_sums),
        emulated_db=report.emulated_db,
    )


def _place(bound: Float16Bound) -> str:
    return f"{bound.kind} of {bound.module}" if bound.module else bound.kind
