"""Run a module on fake tensors and record its parts, their outputs, and the inputs of every value.

A part is a module with submodules that only it calls. The levels of a UNet are not parts, but the modules in them are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves

from md_export.errors import UsageError
from md_export.spec.names import BORDER
from md_export.spec.tensors import TensorSpec

Shape = tuple[int, ...]
# Attribute of every level of a UNet, in diffusers' module and in ours.
_OF_LEVELS: Final = "resnets"


@dataclass(frozen=True)
class Call:
    """Output of one call of a part: its tensors, and the tree of containers around them."""

    path: str
    leaves: tuple[Any, ...]
    tree: TreeSpec


class Run(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """One run of a module on fake tensors.

    Attributes:
        calls: calls of each part; parts are in the order in which they end.
        values: the module's inputs by name, then the outputs of parts.
        makers: name of the part that returns each output.
        channels: shapes ``[B, C, H, W]`` of values that chunks exchange as tokens ``[B, H·W, C]``.
    """

    def __init__(self, module: nn.Module, inputs: Sequence[TensorSpec], plain: Mapping[str, Shape] = {}) -> None:
        """``plain``: shapes of the values in the module before rewrites."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.module, self.inputs = module, tuple(inputs)
        self._sources: dict[int, list[Tensor]] = {}
        self._kept: list[Tensor] = []  # keeps tensors alive, because ids are reused
        self._active: list[str] = []
        self.open = {"", *(path for path, layer in module.named_modules() if hasattr(layer, _OF_LEVELS))}
        calls: list[Call] = []
        hooks = []
        for path, layer in module.named_modules():
            hooks.append(layer.register_forward_pre_hook(partial(self._enter, path)))
            hooks.append(layer.register_forward_hook(partial(self._leave, path, calls)))
        try:
            with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
                given = [torch.zeros(spec.shape, dtype=getattr(torch, spec.dtype)) for spec in inputs]
                with self:
                    self.answer = module(*given)
        finally:
            for hook in hooks:
                hook.remove()
        self.values = {spec.name: value for spec, value in zip(inputs, given, strict=True)}
        self.calls: dict[str, list[Call]] = {}
        for call in calls:
            if call.path not in self.open and self.open.issuperset(_above(call.path)):
                self.calls.setdefault(call.path, []).append(call)
        self.order = tuple(self.calls)
        self.names = {id(value): name for name, value in self.values.items()}
        self.makers: dict[str, str] = {}
        for path, several in self.calls.items():
            for place, leaf in enumerate(leaf for call in several for leaf in call.leaves):
                if isinstance(leaf, Tensor) and id(leaf) not in self.names:
                    name = f"{BORDER}{path.replace('.', '_')}{f'_{place}' if place else ''}"
                    self.values[name], self.makers[name], self.names[id(leaf)] = leaf, path, name
        tokens = [name for name in self.makers if len(plain.get(name, ())) == 3 and self.values[name].ndim == 4]
        self.channels = {name: tuple(self.values[name].shape) for name in tokens}

    def _enter(self, path: str, _layer: nn.Module, _args: Any) -> None:
        self.open |= {above for above in _above(path) if above not in self._active}
        self._active.append(path)

    def _leave(self, path: str, calls: list[Call], _layer: nn.Module, _args: Any, out: Any) -> None:
        self._active.pop()
        leaves, tree = tree_flatten(out)
        self._kept += [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        calls.append(Call(path, tuple(leaves), tree))

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        for made in tree_leaves(out):
            if isinstance(made, Tensor):
                self._kept.append(made)
                self._sources.setdefault(id(made), []).extend(given)
        return out

    def spec(self, name: str) -> TensorSpec:
        """Return name, shape and dtype of a value as chunks exchange it."""
        value, shape = self.values[name], tuple(self.values[name].shape)
        if name in self.channels:
            shape = shape[0], shape[2] * shape[3], shape[1]
        return TensorSpec(name, shape, str(value.dtype).removeprefix("torch."))

    def reached(self, targets: Sequence[Tensor], chunk_of: Mapping[str, int], number: int) -> frozenset[int]:
        """Return ids of the tensors that ``targets`` depend on, back to inputs and values of earlier chunks."""
        seen, left = set[int](), [*targets]
        while left:
            value = left.pop()
            if id(value) in seen:
                continue
            seen.add(id(value))
            maker = self.makers.get(self.names.get(id(value), ""))
            if maker is not None and chunk_of[maker] > number:
                raise UsageError(
                    f"chunks: {maker} feeds a part that runs before it, so this model cannot be cut; leave out chunks"
                )
            if maker is None or chunk_of[maker] == number:
                left += self._sources.get(id(value), [])
        return frozenset(seen)


def _above(path: str) -> Iterator[str]:
    """Yield the paths of the modules that contain a module, without the root."""
    names = path.split(".")
    return (".".join(names[:count]) for count in range(1, len(names)))
