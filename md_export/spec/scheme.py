"""Quantization schemes: how a component's weights are stored and its activations computed, and the bits this takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import prod
from typing import Final, Literal

from pydantic import ConfigDict

from md_export.errors import RecipeError

Weights = Literal["float32", "float16", "int8", "int4", "palette8", "palette6", "palette4", "palette3", "palette2"]
_PALETTE: Final = "palette"
Rounding = Literal["nearest", "mse", "gptq"]
Granularity = Literal["tensor", "channel", "block", "group"]
_REFINEMENTS: Final = ("block_size", "group_size", "sparsity")
# A recipe that a search wrote for the full-size model has 700 module paths of 60 characters.
_MOST_GLOBS: Final = 4096
_LONGEST_GLOB: Final = 256
_STORAGE: Final = ("weights", "granularity", "block_size", "group_size")


@dataclass(frozen=True)
class WeightRule:
    """Storage of the weights of some modules that differs from the rest of the component.

    Attributes:
        modules: globs on module paths.
        weights, granularity, block_size, group_size: as in :class:`QuantScheme`; none is inherited from the component.
        optional: globs may match nothing, in a recipe for models of several depths; otherwise that is an error.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    modules: tuple[str, ...]
    weights: Weights
    granularity: Granularity = "channel"
    block_size: int | None = None
    group_size: int | None = None
    optional: bool = False

    def __post_init__(self) -> None:
        """Raise RecipeError, which names the field, for values that contradict each other."""
        if not self.modules:
            raise RecipeError("[scheme] rules: modules is empty; give globs on module paths")
        _check_storage(self)

    def matches(self, module_path: str) -> bool:
        """Return whether one of the globs matches."""
        return any(fnmatchcase(module_path, pattern) for pattern in self.modules)


_ENDS: Final[Mapping[str, int]] = {"conv_in": 0, "conv_out": -1}


def _end_or(glob: str, paths: Sequence[str]) -> str:
    place = _ENDS.get(glob.rpartition(".")[2])
    known = place is None or not paths or any(fnmatchcase(path, glob) for path in paths)
    return glob if known or place is None else paths[place]


@dataclass(frozen=True)
class QuantScheme:
    """Storage of one component's weights and arithmetic of its activations.

    Attributes:
        weights: stored type of the weights; ``palette4`` stores indices of 4 bits into tables of 16 values.
        activations: type in which activations are computed; ``int8_dynamic`` scales them per call, ``int8_static`` and
            ``int16_static`` scale them by ranges calibrated on real inputs.
        granularity: elements that share a scale: a ``tensor``, an output ``channel`` or, within a channel, a
            ``block``; or that share a palette's table: a ``tensor`` or a ``group`` of output channels.
        keep_float: globs on paths of modules that keep float weights and activations.
        block_size: number of input channels that share a scale.
        group_size: number of output channels that share a table.
        sparsity: share of each weight's elements, the smallest ones, that become zero and are not stored.
        rules: other storage for some modules; the first matching rule applies, unless ``keep_float`` matches.
        rounding: ``nearest``: to the nearest level of a grid that reaches the largest value; ``mse``: of the grid with
            the smallest squared error on calibration inputs; ``gptq``: each error is compensated in the weights not
            yet rounded. The last two are computed on the calibration inputs, before lowering.
        bias_correction: subtract from the biases the mean error that rounding causes on the calibration inputs.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    weights: Weights
    activations: Literal["float32", "float16", "int8_dynamic", "int8_static", "int16_static"]
    granularity: Granularity = "channel"
    keep_float: tuple[str, ...] = ()
    block_size: int | None = None
    group_size: int | None = None
    sparsity: float | None = None
    rules: tuple[WeightRule, ...] = ()
    rounding: Rounding = "nearest"
    bias_correction: bool = False

    def __post_init__(self) -> None:
        """Raise RecipeError, which names the field, for values that contradict each other."""
        _check_storage(self)
        _check_globs((*self.keep_float, *(glob for rule in self.rules for glob in rule.modules)))
        if self.sparsity is not None and not 0 < self.sparsity < 1:
            raise RecipeError(f"[scheme] sparsity: {self.sparsity:g} is not between 0 and 1")
        if self.sparsity is not None and self.rounding != "nearest":
            raise RecipeError(
                f'[scheme] rounding: "{self.rounding}" would change weights that sparsity set to 0; leave out one'
            )

    @property
    def palette_bits(self) -> int | None:
        """Bits of an index into a palette's table; None for weights without a palette."""
        return palette_bits(self.weights)

    @property
    def keeps_weights(self) -> bool:
        """Whether all weights are stored as floats without compression."""
        return self.weights.startswith("float") and self.sparsity is None

    @property
    def is_static(self) -> bool:
        """Whether ranges of activations are calibrated."""
        return self.activations.endswith("_static")

    @property
    def is_adjusted(self) -> bool:
        """Whether weights or biases change before they are lowered."""
        return self.rounding != "nearest" or self.bias_correction

    @property
    def refinements(self) -> tuple[str, ...]:
        """Settings that not every target supports, as a recipe writes them: ``block_size = 32``."""
        asked = [f"{field} = {getattr(self, field)}" for field in _REFINEMENTS if getattr(self, field) is not None]
        return tuple(asked)

    def keeps_float(self, module_path: str) -> bool:
        """Return whether a glob of ``keep_float`` matches the module path (``up_blocks.0.resnets.1.conv_dw``)."""
        return any(fnmatchcase(module_path, pattern) for pattern in self.keep_float)

    def with_float(self, glob: str) -> QuantScheme:
        """Return the scheme with a glob on modules that keep float; unchanged if all weights are floats."""
        if glob in self.keep_float or (self.keeps_weights and self.activations.startswith("float")):
            return self
        return dataclasses.replace(self, keep_float=(*self.keep_float, glob))

    def without(self, glob: str) -> QuantScheme:
        """Return the scheme without this glob on modules that keep float."""
        return dataclasses.replace(self, keep_float=tuple(one for one in self.keep_float if one != glob))

    def for_layers(self, paths: Sequence[str]) -> QuantScheme:
        """Return the scheme with ``conv_in`` and ``conv_out`` in globs replaced by the paths of first and last layer.

        Recipes use the names of most models for these layers; some have others, such as ``decoder.layers.18``.

        Args:
            paths: paths of the component's convolutions and linear layers, in order.
        """

        def named(globs: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(dict.fromkeys(_end_or(glob, paths) for glob in globs))

        rules = tuple(dataclasses.replace(rule, modules=named(rule.modules)) for rule in self.rules)
        return dataclasses.replace(self, keep_float=named(self.keep_float), rules=rules)

    def within(self, paths: Sequence[str]) -> QuantScheme:
        """Return the scheme without globs that match none of ``paths``, the paths of a chunk's modules."""

        def kept(globs: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(glob for glob in globs if any(fnmatchcase(path, glob) for path in paths))

        rules = [dataclasses.replace(rule, modules=kept(rule.modules)) for rule in self.rules]
        return dataclasses.replace(
            self, keep_float=kept(self.keep_float), rules=tuple(rule for rule in rules if rule.modules)
        )

    def for_module(self, module_path: str) -> QuantScheme:
        """Return the scheme for one module, without rules: by the first matching rule, else that of the component.

        ``keep_float`` is not applied; see :meth:`keeps_float`.
        """
        rule = next((rule for rule in self.rules if rule.matches(module_path)), None)
        return self._stored_as(rule)

    @property
    def storages(self) -> tuple[QuantScheme, ...]:
        """All possible results of :meth:`for_module`: for the component, then for each rule."""
        return tuple(self._stored_as(rule) for rule in (None, *self.rules))

    def _stored_as(self, rule: WeightRule | None) -> QuantScheme:
        storage = {} if rule is None else {field: getattr(rule, field) for field in _STORAGE}
        return dataclasses.replace(self, rules=(), **storage)

    @property
    def all_weights(self) -> tuple[str, ...]:
        """All stored types of weights in the scheme, the component's first."""
        return tuple(dict.fromkeys((self.weights, *(rule.weights for rule in self.rules))))


def palette_bits(weights: str) -> int | None:
    """Return the bits of an index into a palette's table; None for weights without a palette."""
    return int(weights.removeprefix(_PALETTE)) if weights.startswith(_PALETTE) else None


def stored_type(weights: str) -> str:
    """Return the type of a scheme's weights in a file: ``palette4`` is stored as indices of type ``uint4``."""
    return weights.replace(_PALETTE, "uint")


def _check_globs(globs: tuple[str, ...]) -> None:
    """Limit number and length of globs, because each is matched with every module."""
    if len(globs) > _MOST_GLOBS or any(len(glob) > _LONGEST_GLOB for glob in globs):
        raise RecipeError(
            f"[scheme] keep_float, rules: more than {_MOST_GLOBS:,} globs, or one of more than "
            f"{_LONGEST_GLOB} characters; name fewer, or use *"
        )


def _check_storage(scheme: QuantScheme | WeightRule) -> None:
    for field, unit in (("block_size", "block"), ("group_size", "group")):
        size = getattr(scheme, field)
        if (size is not None) != (scheme.granularity == unit):
            raise RecipeError(f'[scheme] {field}: goes with granularity = "{unit}"; give both or neither')
        if size is not None and size < 2:
            raise RecipeError(f"[scheme] {field}: {size} is too few channels; give 2 or more")
    if palette_bits(scheme.weights) and scheme.granularity not in ("tensor", "group"):
        raise RecipeError('[scheme] granularity: a palette\'s table is for a "tensor" or for a "group" of channels')
    if not palette_bits(scheme.weights) and scheme.granularity == "group":
        raise RecipeError(f'[scheme] granularity: "group" is for palettes, the weights are {scheme.weights}')
    if scheme.weights.startswith("float") and scheme.granularity == "block":
        raise RecipeError(f'[scheme] granularity: "block" is for int8 and int4, the weights are {scheme.weights}')


@dataclass(frozen=True)
class WeightStorage:
    """Storage of a weight as integers times scales, or as indices into tables.

    Attributes:
        bits: bits of one element.
        groups: number of parts of each axis of the weight in torch's layout, a divisor of the axis; elements in the
            same part of all axes share a scale or a table.
        levels: the largest integer, 127 or 7 (the smallest is its negative); 0 for a table.
        entries: number of entries of a table; 0 for integers.
        scale_bits: bits of a scale or of an entry of a table.
    """

    bits: int
    groups: tuple[int, ...]
    levels: int = 0
    entries: int = 0
    scale_bits: int = 32

    def stored_bits(self, shape: tuple[int, ...]) -> int:
        """Return the bits of a weight of this shape, including scales and tables."""
        return self.bits * prod(shape) + prod(self.groups) * max(1, self.entries) * self.scale_bits


def per_channel(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the groups for one scale per output channel."""
    return (shape[0], *[1] * (len(shape) - 1))


def per_tensor(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the groups for one scale or table."""
    return (1,) * len(shape)


def largest_divisor(channels: int, wanted: int) -> int:
    """Return the largest divisor of ``channels`` in (wanted / 2, wanted]; ``channels`` if none exists."""
    return next((size for size in range(wanted, wanted // 2, -1) if channels % size == 0), channels)


def integer_storage(shape: tuple[int, ...], scheme: QuantScheme, scale_bits: int) -> WeightStorage:
    """Return the storage of a weight ``[out, in, *kernel]`` as symmetric integers.

    If the block size does not divide the input channels, the largest divisor above half of it is used, else the whole
    channel.
    """
    groups = per_tensor(shape) if scheme.granularity == "tensor" else per_channel(shape)
    if scheme.block_size is not None:
        groups = (shape[0], shape[1] // largest_divisor(shape[1], scheme.block_size), *groups[2:])
    bits = int(scheme.weights.removeprefix("int"))
    return WeightStorage(bits, groups, levels=2 ** (bits - 1) - 1, scale_bits=scale_bits)


def palette_storage(shape: tuple[int, ...], scheme: QuantScheme, scale_bits: int) -> WeightStorage:
    """Return the storage of a weight ``[out, in, *kernel]`` as indices into one table, or one per output channel group.

    If the group size does not divide the channels, another is chosen as for blocks in :func:`integer_storage`.
    """
    groups, bits = per_tensor(shape), scheme.palette_bits or 0
    if scheme.group_size is not None:
        groups = (shape[0] // largest_divisor(shape[0], scheme.group_size), *groups[1:])
    return WeightStorage(bits, groups, entries=2**bits, scale_bits=scale_bits)
