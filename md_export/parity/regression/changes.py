"""Figures of two exports, each held against the budget of the newer one's recipe."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from md_export.budget import Regression
from md_export.parity.metrics import EXACT_DB
from md_export.parity.regression.snapshot import Snapshot

Figure = Literal["SNR dB", "PSNR dB", "bytes", "ops", "lint findings", "ops on the CPU"]


@dataclass(frozen=True)
class Change:
    """One figure of a component, or of the picture, in both exports.

    Attributes:
        worse_by: in the unit of the budget: dB, a share of the old figure, or a count; negative where it improved.
        at_most: the recipe's budget, from the field ``budget``.
        within: whether it keeps to that.
    """

    component: str
    figure: Figure
    old: float
    new: float
    worse_by: float
    budget: str
    at_most: float
    within: bool

    @property
    def spelled(self) -> tuple[str, str, str, str]:
        """Old and new figure, how much it changed (``+`` is more), and the budget, as text with units."""
        if self.figure in ("SNR dB", "PSNR dB"):
            old, new = ("exact" if value >= EXACT_DB else f"{value:.1f}" for value in (self.old, self.new))
            return old, new, f"{self.new - self.old:+.1f} dB", f"-{self.at_most:g} dB"
        old, new = f"{self.old:,.0f}", f"{self.new:,.0f}"
        if self.budget.endswith("_growth"):
            return old, new, f"{self.worse_by:+.1%}", f"+{self.at_most:.1%}"
        return old, new, f"{self.worse_by:+.0f}", f"+{self.at_most:g}"

    @property
    def fault(self) -> str | None:
        """What is wrong, where it is past the budget."""
        old, new, change, at_most = self.spelled
        line = f"{self.figure} {old} → {new} ({change}), past the recipe's {at_most} ({self.budget})"
        return None if self.within else line


def changes_of(old: Snapshot, new: Snapshot, budget: Regression) -> Iterator[Change]:
    """Every figure that both snapshots have, changed or not."""
    first, second = old.verification.result, new.verification.result
    for was, now in zip(first.components, second.components, strict=True):
        name = was.component
        if was.parity and now.parity:
            yield _loss(name, "SNR dB", was.parity.snr_db, now.parity.snr_db, "snr_db_loss", budget)
        yield _growth(name, "bytes", old.bytes[name], new.bytes[name], "bytes_growth", budget)
        had, has = sum(old.ops[name].values()), sum(new.ops[name].values())
        yield _growth(name, "ops", had, has, "ops_growth", budget)
        if old.lint is not None and new.lint is not None:
            yield _findings(name, old.lint[name], new.lint[name], budget)
        if old.cpu_ops is not None and new.cpu_ops is not None:
            was_on, is_on = old.cpu_ops[name], new.cpu_ops[name]
            yield _change(name, "ops on the CPU", was_on, is_on, is_on - was_on, "new_cpu_ops", budget)
    pictures = [result.picture.psnr_db for result in (first, second) if result.picture]
    if len(pictures) == 2 and pictures[0] is not None and pictures[1] is not None:
        yield _loss("picture", "PSNR dB", pictures[0], pictures[1], "picture_psnr_db_loss", budget)


def _loss(component: str, figure: Figure, old: float, new: float, field: str, budget: Regression) -> Change:
    return _change(component, figure, old, new, old - new, field, budget)


def _growth(component: str, figure: Figure, old: int, new: int, field: str, budget: Regression) -> Change:
    return _change(component, figure, old, new, (new - old) / max(old, 1), field, budget)


def _findings(component: str, old: dict[str, int], new: dict[str, int], budget: Regression) -> Change:
    """A rule that fits less does not pay for another that fits more."""
    more = sum(max(0, count - old.get(rule, 0)) for rule, count in new.items())
    figure: Figure = "lint findings"
    return _change(component, figure, sum(old.values()), sum(new.values()), more, "new_lint_findings", budget)


def _change(
    component: str, figure: Figure, old: float, new: float, worse: float, field: str, budget: Regression
) -> Change:
    at_most = getattr(budget, field)
    return Change(component, figure, old, new, worse, field, at_most, within=worse <= at_most)
