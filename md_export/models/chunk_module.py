"""Module of a chunk: the parts that it computes, and stand-ins for the parts of other chunks.

A chunk runs the ``forward`` of the whole module. Stand-ins return the values of earlier chunks, or zeros for values
that no output of the chunk depends on; converters remove the operations on these zeros.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_unflatten

from md_export.models.chunk_run import Run

# Largest finite float32.
_LARGEST: Final = torch.finfo(torch.float32).max


@dataclass
class BorderValues:
    """Values that enter and leave a chunk: their names, and the tensors while it runs."""

    given: tuple[str, ...]
    made: tuple[str, ...]
    values: dict[str, Tensor] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class _Leaf:
    """A tensor that a stand-in returns: one that entered the chunk, or zeros."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    def value_in(self, values: Mapping[str, Tensor]) -> Tensor:
        """Return the tensor with this name; zeros if ``values`` does not contain it."""
        return values[self.name] if self.name in values else torch.zeros(self.shape, dtype=self.dtype)


class _StandIn(nn.Module):
    """Stand-in for a part of another chunk, with the same attributes and outputs of the same shapes."""

    def __init__(self, part: nn.Module, border: BorderValues, path: str, run: Run) -> None:
        super().__init__()
        self.__dict__.update({name: value for name, value in vars(part).items() if name not in vars(self)})
        self._border, self._path = border, path
        self._outputs = [
            (tuple(_leaf(run, leaf) if isinstance(leaf, Tensor) else leaf for leaf in call.leaves), call.tree)
            for call in run.calls[path]
        ]

    def forward(self, *_args: Any, **_kwargs: Any) -> Any:
        """Return the outputs of the part's next call; arguments are ignored."""
        leaves, tree = self._outputs[_count_call(self._border, self._path)]
        return tree_unflatten(
            [leaf.value_in(self._border.values) if isinstance(leaf, _Leaf) else leaf for leaf in leaves], tree
        )


def _leaf(run: Run, value: Tensor) -> _Leaf:
    return _Leaf(run.names.get(id(value), ""), tuple(value.shape), value.dtype)


def _count_call(border: BorderValues, path: str) -> int:
    """Return how often a part was called before, and count this call."""
    border.calls[path] = border.calls.get(path, -1) + 1
    return border.calls[path]


@dataclass
class _KeepOutputs:
    """Forward hook that keeps the outputs that later chunks need; ``names``: names of the outputs of each call."""

    border: BorderValues
    path: str
    names: tuple[tuple[str, ...], ...]

    def __call__(self, _part: nn.Module, _args: Any, out: Any) -> None:
        """Keep the values that later chunks need."""
        names = self.names[_count_call(self.border, self.path)]
        self.border.values.update(
            {name: leaf for name, leaf in zip(names, tree_leaves(out), strict=True) if name in self.border.made}
        )


class ChunkModule(nn.Module):
    """A chunk of a module: the parts that it computes, and stand-ins for the parts of other chunks.

    ``returns_copies``: an operation copies the outputs. Without it, LiteRT's GPU engine returns one operand of a sum
    that is an output and is read again, as a skip connection is (google-ai-edge/LiteRT#8599).
    """

    def __init__(self, run: Run, border: BorderValues, others: Collection[str], reached: Collection[int]) -> None:
        """``reached``: ids of parameters that the chunk needs; it may contain ids of other values."""
        super().__init__()
        self.returns_copies = False
        self._border, self._channels = border, run.channels
        self._inputs = tuple(_leaf(run, run.values[spec.name]) for spec in run.inputs)
        whole = _copy_of(run.module, "", run, border, others, reached)
        # In a tuple, so that it does not become a submodule: parameters keep their paths in the whole module.
        self._whole = (whole,)
        self._modules, self._parameters, self._buffers = whole._modules, whole._parameters, whole._buffers
        self._non_persistent_buffers_set = whole._non_persistent_buffers_set

    def forward(self, *given: Tensor) -> Any:
        """Compute the border values ``made`` from the values ``given``; the last chunk returns the module's output."""
        border = self._border
        border.values.update(
            {
                name: value.transpose(1, 2).reshape(self._channels[name]) if name in self._channels else value
                for name, value in zip(border.given, given, strict=True)
            }
        )
        try:
            answer = self._whole[0](*(leaf.value_in(border.values) for leaf in self._inputs))
            left = {name: border.values[name] for name in border.made}
            made = [v.flatten(2).transpose(1, 2) if name in self._channels else v for name, v in left.items()]
            # Converters do not remove a minimum with a constant; in float16 the constant is infinite.
            return tuple(value.clamp(max=_LARGEST) if self.returns_copies else value for value in made) or answer
        finally:
            border.values.clear()
            border.calls.clear()


def _copy_of(
    module: nn.Module, path: str, run: Run, border: BorderValues, others: Collection[str], reached: Collection[int]
) -> nn.Module:
    """Return a copy of a module that shares its tensors, with stand-ins for ``others`` and hooks on other parts."""
    if path in others:
        return _StandIn(module, border, path, run)
    names = [tuple(run.names.get(id(leaf), "") for leaf in call.leaves) for call in run.calls.get(path, ())]
    if path not in run.open and not any(name in border.made for several in names for name in several):
        return module
    copied: nn.Module = object.__new__(type(module))
    # Copy the dicts of tensors, modules and hooks; share other objects, such as the config.
    own = {key: value.copy() for key, value in vars(module).items() if type(value) in (dict, OrderedDict)}
    copied.__dict__.update({**vars(module), **own})
    if path not in run.open:
        copied.register_forward_hook(_KeepOutputs(border, path, tuple(names)))
        return copied
    for name, value in module.named_parameters(recurse=False):
        if id(value) not in reached:
            del copied._parameters[name]
            copied.__dict__[name] = torch.zeros(value.shape)
    for name, child in module.named_children():
        inner = f"{path}.{name}" if path else name
        copied._modules[name] = _copy_of(child, inner, run, border, others, reached)
    return copied


def paths_of_other_chunks(module: nn.Module) -> tuple[str, ...]:
    """Return the paths of the parts that other chunks compute; empty for a whole component."""
    return tuple(path for path, layer in module.named_modules() if isinstance(layer, _StandIn))


def own_paths(module: nn.Module) -> list[str]:
    """Return the paths of the modules that a chunk computes, including levels of a UNet that have weights here."""
    layers = [(path, layer) for path, layer in module.named_modules() if not isinstance(layer, _StandIn)]
    return [path for path, layer in layers if not [*layer.children()] or [*layer.parameters()]]
