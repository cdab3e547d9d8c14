"""How one module's weights may be stored, in a recipe's words."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import ConfigDict

from md_export.scheme import Granularity, QuantScheme, WeightRule, Weights


@dataclass(frozen=True, order=True)
class Form:
    """One choice for one module; the fields are those of :class:`md_export.scheme.WeightRule`."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    weights: Weights
    granularity: Granularity = "channel"
    block_size: int | None = None
    group_size: int | None = None

    def __post_init__(self) -> None:
        """Refuse what no recipe could say. RecipeError names the field."""
        self.rule(("*",))

    @property
    def label(self) -> str:
        """Short words: ``int8``, ``int4 per block of 32``, ``palette4 per group of 16``."""
        size = self.block_size or self.group_size
        if self.granularity == "channel":
            return self.weights
        return f"{self.weights} per {self.granularity}" + (f" of {size}" if size else "")

    def rule(self, modules: tuple[str, ...]) -> WeightRule:
        """The rule that stores these modules so; globs on module paths."""
        return WeightRule(modules, self.weights, self.granularity, self.block_size, self.group_size)


def form_of(scheme: QuantScheme | WeightRule) -> Form:
    """What a scheme stores where none of its rules matches, or what a rule stores."""
    return Form(scheme.weights, scheme.granularity, scheme.block_size, scheme.group_size)
