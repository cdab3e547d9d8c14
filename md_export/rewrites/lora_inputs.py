"""LoRAs as inputs of a component: an app changes the style between two calls, without another file of weights.

    tokens, vectors   x [.., in]         →  layer(x) + (x·down)·(up·scale),    down [.., in, r], up [.., r, out]
    maps              x [B, in, H, W]    →  layer(x) + (scale·up)·(down·cols), down [1, 1, r, k·k·in], up [1, 1, out, r]
    maps, last        the same with channels last, which TFLite's converter keeps without transposing

``cols`` are the inputs of each output pixel. A bias that a style changes has a ``shift``, which is scaled, too. With
zeros for all of them, and with a scale of 0, the outputs are those of the layer alone, bit for bit.
"""

# Principle: products of matrices run on every accelerator with operands that are known only at run time; convolutions
# with such a filter do not. LiteRT's GPU engine was reported wrong for operands of different ranks and for a sum of a
# product and a broadcast operand (LiteRT#8975, #8593), so factors have the rank of the layer's input, and the scale is
# multiplied with ``up``.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Final, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from md_export.rewrites.lora_branches import Factors, attach, is_vector, kernel_of
from md_export.spec.loras import SCALE_INPUT, lora_input
from md_export.spec.tensors import TensorSpec

Kind = Literal["vectors", "maps", "maps, last"]
_SCALE: Final = TensorSpec(SCALE_INPUT, (1, 1, 1, 1), "float32")


@dataclass(frozen=True)
class Slot:
    """Inputs for one layer.

    Attributes:
        path: path of the layer.
        rank: rank of the factors; those of a smaller rank are padded with zeros.
        ndim: number of axes of the factors.
        has_shift: whether a style changes the bias.
    """

    path: str
    kind: Kind
    ndim: int
    inputs: int
    outputs: int
    taps: int
    rank: int
    has_shift: bool

    @property
    def specs(self) -> tuple[TensorSpec, ...]:
        """Names, shapes and dtypes of the layer's inputs: ``down``, ``up`` and perhaps ``shift``."""
        columns, ones = self.inputs * self.taps, (1,) * (self.ndim - 2)
        sides = {"down": (columns, self.rank), "up": (self.rank, self.outputs)}
        if self.kind == "maps":
            sides = {name: pair[::-1] for name, pair in sides.items()}
        shapes = {name: (*ones, *pair) for name, pair in sides.items()}
        if self.has_shift:
            shapes["shift"] = (*ones, self.outputs, 1) if self.kind == "maps" else (*ones, 1, self.outputs)
        return tuple(TensorSpec(lora_input(self.path, part), shape, "float32") for part, shape in shapes.items())

    def packed(self, factors: Factors) -> dict[str, Tensor]:
        """Return the values of the inputs for one style, whose rank is at most the slot's."""
        down = factors.down.reshape(factors.rank, self.inputs, self.taps).transpose(1, 2).flatten(1).T
        up, more = factors.up.T, self.rank - factors.rank
        values = {"down": F.pad(down, (0, more)), "up": F.pad(up, (0, 0, 0, more))}
        if self.has_shift:
            shift = torch.zeros(self.outputs) if factors.shift is None else factors.shift
            values["shift"] = shift[None]
        turned = {name: value.T if self.kind == "maps" else value for name, value in values.items()}
        return {spec.name: value.reshape(spec.shape) for spec, value in zip(self.specs, turned.values(), strict=True)}


@dataclass
class Given:
    """Values of the inputs in the current call, by name; shared by all branches of a component."""

    values: Mapping[str, Tensor] = field(default_factory=dict)


class InputBranch(nn.Module):
    """The low-rank term of one layer, with factors from the component's inputs."""

    def __init__(self, layer: nn.Linear | nn.Conv2d, slot: Slot, given: Given) -> None:
        super().__init__()
        self._slot, self._given = slot, given
        self._kernel = None if is_vector(layer) else kernel_of(layer)

    def forward(self, x: Tensor) -> Tensor:
        """Input of the layer → what is added to its output."""
        slot, values = self._slot, self._given.values
        down, up, *shift = (values[spec.name] for spec in slot.specs)
        scale = values[SCALE_INPUT].reshape((1,) * slot.ndim)
        up, shift = up * scale, [one * scale for one in shift]
        if slot.kind == "vectors":
            return _plus(x @ down @ up, shift)
        if slot.kind == "maps":
            columns = _columns(x, 1, *self._kernel) if self._kernel else x
            made = _plus(up @ (down @ columns.flatten(2)[:, None]), shift)
            return made.reshape(x.shape[0], slot.outputs, *columns.shape[2:])
        columns = _columns(x.permute(0, 2, 3, 1), 3, *self._kernel) if self._kernel else x
        # All pixels of all pictures as rows: products of operands with the same first axes.
        rows = columns.reshape(1, 1, -1, columns.shape[-1])
        return _plus(rows @ down @ up, shift).reshape(*columns.shape[:3], slot.outputs).permute(0, 3, 1, 2)


def _plus(value: Tensor, shift: Sequence[Tensor]) -> Tensor:
    return value + shift[0] if shift else value


def _columns(x: Tensor, channels: int, size: Any, stride: Any, padding: Any) -> Tensor:
    """Return the input values of each output pixel, joined along the axis ``channels`` (1 or 3), tap by tap."""
    (rows, columns), (down, right) = padding, stride
    sides = (columns, columns, rows, rows)
    if any(sides):
        x = F.pad(x, sides if channels == 1 else (0, 0, *sides))
    height, width = (side for axis, side in enumerate(x.shape) if axis not in (0, channels))
    places = [
        (slice(row, height - size[0] + row + 1, down), slice(column, width - size[1] + column + 1, right))
        for row, column in product(range(size[0]), range(size[1]))
    ]
    taps = [x[:, :, row, column] if channels == 1 else x[:, row, column] for row, column in places]
    return taps[0] if len(taps) == 1 else torch.cat(taps, dim=channels)


def slots_of(
    module: nn.Module,
    example: Sequence[Tensor],
    styles: Sequence[Mapping[str, Factors]],
    rank: int,
    channels_last: bool,
) -> tuple[Slot, ...]:
    """Return a slot for each layer that any style changes, in order of the module's layers.

    Args:
        example: positional inputs of ``module``, which is run once for the number of axes that layers see.
        rank: rank of all slots.
        channels_last: whether the target's converter keeps maps with channels last.
    """
    paths = [path for path, _ in module.named_modules() if any(path in style for style in styles)]
    axes: dict[str, int] = {}

    def seen(path: str, given: tuple[Tensor, ...]) -> None:
        axes[path] = given[0].ndim

    hooks = {path: (lambda _, given, path=path: seen(path, given)) for path in paths}
    handles = [module.get_submodule(path).register_forward_pre_hook(hook) for path, hook in hooks.items()]
    with torch.no_grad():
        module(*example)
    for handle in handles:
        handle.remove()
    return tuple(_slot(module.get_submodule(path), path, axes[path], styles, rank, channels_last) for path in paths)


def _slot(
    layer: Any, path: str, ndim: int, styles: Sequence[Mapping[str, Factors]], rank: int, channels_last: bool
) -> Slot:
    has_shift = any(path in style and style[path].shift is not None for style in styles)
    kind, (outputs, inputs) = _kind_of(layer, channels_last), layer.weight.shape[:2]
    return Slot(path, kind, ndim, inputs, outputs, _taps_of(layer), rank, has_shift)


def slot_among(layer: Any, path: str, inputs: Sequence[TensorSpec], channels_last: bool) -> Slot | None:
    """Return the slot of a layer whose inputs are among those of an artifact; None if it has none."""
    shapes = {spec.name: spec.shape for spec in inputs}
    down = shapes.get(lora_input(path, "down"))
    if down is None:
        return None
    kind, taps = _kind_of(layer, channels_last), _taps_of(layer)
    rank = down[-2] if kind == "maps" else down[-1]
    has_shift = lora_input(path, "shift") in shapes
    return Slot(path, kind, len(down), layer.weight.shape[1], layer.weight.shape[0], taps, rank, has_shift)


def _kind_of(layer: nn.Module, channels_last: bool) -> Kind:
    return "vectors" if is_vector(layer) else "maps, last" if channels_last else "maps"


def _taps_of(layer: Any) -> int:
    return 1 if isinstance(layer, nn.Linear) else int(layer.weight[0, 0].numel())


def give_inputs(module: nn.Module, slots: Sequence[Slot]) -> tuple[TensorSpec, ...]:
    """Add inputs for all slots, and one for the scale, to the module's positional inputs, in place; return their specs.

    Paths and weights of the layers do not change.
    """
    given, ours = Given(), type(module)
    layers: dict[str, Any] = {slot.path: module.get_submodule(slot.path) for slot in slots}
    attach(module, {slot.path: InputBranch(layers[slot.path], slot, given) for slot in slots})
    specs = (*(spec for slot in slots for spec in slot.specs), _SCALE)

    def forward(self: Any, *values: Tensor) -> Any:
        own, more = values[: -len(specs)], values[-len(specs) :]
        self.lora_given.values = {spec.name: value for spec, value in zip(specs, more, strict=True)}
        try:
            return ours.forward(self, *own)
        finally:
            self.lora_given.values = {}

    module.lora_given = given  # type: ignore[assignment]  # the branches' own, also in a deep copy
    module.__class__ = type(f"{ours.__name__}WithStyles", (ours,), {"forward": forward})
    return specs


def values_of(slots: Sequence[Slot], factors: Mapping[str, Factors]) -> dict[str, Tensor]:
    """Return a style's values for all inputs; layers that it does not change get zeros, and the scale is 1."""
    values = {SCALE_INPUT: torch.ones(_SCALE.shape)}
    for slot in slots:
        own = factors.get(slot.path)
        values |= {spec.name: torch.zeros(spec.shape) for spec in slot.specs} if own is None else slot.packed(own)
    return values
