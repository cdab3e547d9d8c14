"""A chunk of a module as a module: its own parts, and stand-ins of the others.

It runs the whole's own ``forward``. Stand-ins return the values of earlier chunks, and zeros where nothing reaches the
chunk's outputs; converters remove what is computed of these zeros.
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

# Of float32.
_LARGEST: Final = torch.finfo(torch.float32).max


@dataclass
class Crossing:
    """Values that enter and leave a chunk: their names, and the values themselves while it runs."""

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

    def among(self, values: Mapping[str, Tensor]) -> Tensor:
        """Find it."""
        return values[self.name] if self.name in values else torch.zeros(self.shape, dtype=self.dtype)


class _StandIn(nn.Module):
    """Returns what a part of another chunk returns; its attributes are the part's."""

    def __init__(self, part: nn.Module, crossing: Crossing, path: str, run: Run) -> None:
        super().__init__()
        self.__dict__.update({name: value for name, value in vars(part).items() if name not in vars(self)})
        self._crossing, self._path = crossing, path
        self._answers = [
            (tuple(_leaf(run, leaf) if isinstance(leaf, Tensor) else leaf for leaf in call.leaves), call.tree)
            for call in run.calls[path]
        ]

    def forward(self, *_args: Any, **_kwargs: Any) -> Any:
        """Whatever it is given does not matter."""
        leaves, tree = self._answers[_number(self._crossing, self._path)]
        return tree_unflatten(
            [leaf.among(self._crossing.values) if isinstance(leaf, _Leaf) else leaf for leaf in leaves], tree
        )


def _leaf(run: Run, value: Tensor) -> _Leaf:
    return _Leaf(run.names.get(id(value), ""), tuple(value.shape), value.dtype)


def _number(crossing: Crossing, path: str) -> int:
    """Return how often a part was called before, and count the call."""
    crossing.calls[path] = crossing.calls.get(path, -1) + 1
    return crossing.calls[path]


@dataclass
class _Tap:
    """A forward hook that keeps what leaves the chunk; ``names``: of the leaves of each call."""

    crossing: Crossing
    path: str
    names: tuple[tuple[str, ...], ...]

    def __call__(self, _part: nn.Module, _args: Any, out: Any) -> None:
        """Keep the values that later chunks need."""
        names = self.names[_number(self.crossing, self.path)]
        self.crossing.values.update(
            {name: leaf for name, leaf in zip(names, tree_leaves(out), strict=True) if name in self.crossing.made}
        )


class ChunkModule(nn.Module):
    """A chunk of a module: its own parts, and stand-ins of the others.

    ``returns_copies``: an operation copies what leaves the chunk. LiteRT's GPU engine returns one operand of a sum that
    is an output and is read again (google-ai-edge/LiteRT#8599), as skip connections are.
    """

    def __init__(self, run: Run, crossing: Crossing, strangers: Collection[str], reached: Collection[int]) -> None:
        """``reached``: ids of the parameters that the chunk needs, among others."""
        super().__init__()
        self.returns_copies = False
        self._crossing, self._channels = crossing, run.channels
        self._inputs = tuple(_leaf(run, run.values[spec.name]) for spec in run.inputs)
        whole = _twin(run.module, "", run, crossing, strangers, reached)
        # Not among the modules: the paths are the whole's, and so is every module but itself.
        self._whole = (whole,)
        self._modules, self._parameters, self._buffers = whole._modules, whole._parameters, whole._buffers
        self._non_persistent_buffers_set = whole._non_persistent_buffers_set

    def forward(self, *given: Tensor) -> Any:
        """Values of ``given`` names → those of ``made``, or the module's own answer."""
        crossing = self._crossing
        crossing.values.update(
            {
                name: value.transpose(1, 2).reshape(self._channels[name]) if name in self._channels else value
                for name, value in zip(crossing.given, given, strict=True)
            }
        )
        try:
            answer = self._whole[0](*(leaf.among(crossing.values) for leaf in self._inputs))
            left = {name: crossing.values[name] for name in crossing.made}
            made = [v.flatten(2).transpose(1, 2) if name in self._channels else v for name, v in left.items()]
            # No converter removes a minimum with a constant, which float16 arithmetic takes as infinite.
            return tuple(value.clamp(max=_LARGEST) if self.returns_copies else value for value in made) or answer
        finally:
            crossing.values.clear()
            crossing.calls.clear()


def _twin(
    module: nn.Module, path: str, run: Run, crossing: Crossing, strangers: Collection[str], reached: Collection[int]
) -> nn.Module:
    """Return a copy of a module that shares its tensors, with stand-ins and taps for parts."""
    if path in strangers:
        return _StandIn(module, crossing, path, run)
    names = [tuple(run.names.get(id(leaf), "") for leaf in call.leaves) for call in run.calls.get(path, ())]
    if path not in run.open and not any(name in crossing.made for several in names for name in several):
        return module
    twin: nn.Module = object.__new__(type(module))
    # Its tables of tensors, modules and hooks; a config is not for change.
    own = {key: value.copy() for key, value in vars(module).items() if type(value) in (dict, OrderedDict)}
    twin.__dict__.update({**vars(module), **own})
    if path not in run.open:
        twin.register_forward_hook(_Tap(crossing, path, tuple(names)))
        return twin
    for name, value in module.named_parameters(recurse=False):
        if id(value) not in reached:
            del twin._parameters[name]
            twin.__dict__[name] = torch.zeros(value.shape)
    for name, child in module.named_children():
        inner = f"{path}.{name}" if path else name
        twin._modules[name] = _twin(child, inner, run, crossing, strangers, reached)
    return twin


def strangers_in(module: nn.Module) -> tuple[str, ...]:
    """Return the paths of what other chunks hold; none for a whole component."""
    return tuple(path for path, layer in module.named_modules() if isinstance(layer, _StandIn))


def own_paths(module: nn.Module) -> list[str]:
    """Return the paths of the modules that a chunk computes: levels of a UNet count where they hold weights."""
    layers = [(path, layer) for path, layer in module.named_modules() if not isinstance(layer, _StandIn)]
    return [path for path, layer in layers if not [*layer.children()] or [*layer.parameters()]]
