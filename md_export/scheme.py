"""How weights and activations are stored and computed: the vocabulary that recipes and targets share."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final, Literal

from pydantic import ConfigDict

from md_export.errors import RecipeError

Weights = Literal["float32", "float16", "int8", "int4", "palette8", "palette6", "palette4", "palette3", "palette2"]
_PALETTE: Final = "palette"
_REFINEMENTS: Final = ("block_size", "group_size", "sparsity")


@dataclass(frozen=True)
class QuantScheme:
    """How one component is stored and computed.

    Attributes:
        weights: stored type of the weights; ``palette4`` stores indices of 4 bits into tables of 16 values.
        activations: type in which activations are computed; ``int8_dynamic`` scales them per call,
            ``int8_static`` by ranges calibrated on the golden prompts.
        granularity: what shares a scale: a ``tensor``, an output ``channel`` or, within a channel, a ``block``; what
            shares a palette's table: a ``tensor`` or a ``group`` of output channels.
        keep_float: globs on module paths whose weights and activations stay in float.
        block_size: input channels that share a scale.
        group_size: output channels that share a table.
        sparsity: share of each weight's elements, the smallest ones, that become zero and are not stored.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    weights: Weights
    activations: Literal["float32", "float16", "int8_dynamic", "int8_static"]
    granularity: Literal["tensor", "channel", "block", "group"] = "channel"
    keep_float: tuple[str, ...] = ()
    block_size: int | None = None
    group_size: int | None = None
    sparsity: float | None = None

    def __post_init__(self) -> None:
        """Refuse what contradicts itself. RecipeError names the field."""
        for field, unit in (("block_size", "block"), ("group_size", "group")):
            size = getattr(self, field)
            if (size is not None) != (self.granularity == unit):
                raise RecipeError(f'[scheme] {field}: goes with granularity = "{unit}"; give both or neither')
            if size is not None and size < 2:
                raise RecipeError(f"[scheme] {field}: {size} is too few channels; give 2 or more")
        if self.palette_bits and self.granularity not in ("tensor", "group"):
            raise RecipeError('[scheme] granularity: a palette\'s table is for a "tensor" or for a "group" of channels')
        if not self.palette_bits and self.granularity == "group":
            raise RecipeError(f'[scheme] granularity: "group" is for palettes, the weights are {self.weights}')
        if self.weights.startswith("float") and self.granularity == "block":
            raise RecipeError(f'[scheme] granularity: "block" is for int8 and int4, the weights are {self.weights}')
        if self.sparsity is not None and not 0 < self.sparsity < 1:
            raise RecipeError(f"[scheme] sparsity: {self.sparsity:g} is no share between 0 and 1")

    @property
    def palette_bits(self) -> int | None:
        """Bits of an index into a palette; None for weights that have none."""
        return int(self.weights.removeprefix(_PALETTE)) if self.weights.startswith(_PALETTE) else None

    @property
    def refinements(self) -> tuple[str, ...]:
        """What it asks for beyond a scale per tensor or channel, in a recipe's words; not every target has these."""
        asked = [f"{field} = {getattr(self, field)}" for field in _REFINEMENTS if getattr(self, field) is not None]
        return tuple(asked)

    def keeps_float(self, module_path: str) -> bool:
        """Whether a glob of ``keep_float`` matches the module path (``up_blocks.0.resnets.1.conv_dw``)."""
        return any(fnmatchcase(module_path, pattern) for pattern in self.keep_float)


def stored_type(weights: str) -> str:
    """The type that weights of a scheme have in a file: ``palette4`` is stored as indices of type ``uint4``."""
    return weights.replace(_PALETTE, "uint")
