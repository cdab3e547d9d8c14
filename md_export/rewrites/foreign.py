"""What is known of diffusers' and transformers' layers, by name: neither library is imported here.

A layer of another library becomes one of ours in place: its class changes, its parameters stay where they are. What
calls it stays the other library's code, so hooks, which outlive further changes of class, translate the call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from torch import Tensor, nn

from md_export.errors import RewriteError

TypeName = tuple[str, str]

UNET: Final[TypeName] = ("diffusers.models.unets.unet_2d_condition", "UNet2DConditionModel")
CONTROLNET_MODEL: Final[TypeName] = ("diffusers.models.controlnets.controlnet", "ControlNetModel")
TIMESTEPS: Final[TypeName] = ("diffusers.models.embeddings", "Timesteps")
TIMESTEP_EMBEDDING: Final[TypeName] = ("diffusers.models.embeddings", "TimestepEmbedding")


def type_name(layer: nn.Module) -> TypeName:
    """Module and name of the layer's own class; subclasses have other names."""
    return type(layer).__module__, type(layer).__qualname__


def nothing_to_prepare(layer: Any) -> None:
    """The layer has all that our class needs."""


@dataclass(frozen=True)
class Adoption:
    """How a foreign layer becomes one of ours.

    Attributes:
        ours: the class it becomes.
        must_be: (dotted) attributes that decide whether ``ours`` computes the same: a value, a type of which the
            attribute is an instance, or a set of values. What a layer does not have counts as None.
        prepare: sets what ``ours`` reads and the foreign layer lacks.
        takes: parameters of the foreign ``forward`` that ``ours`` takes, in its order. Empty: only ours calls it.
        ignores: further parameters without influence on what ``ours`` computes.
        answer: makes of our result what the caller reads.
    """

    ours: type[nn.Module]
    must_be: Mapping[str, object] = field(default_factory=dict)
    prepare: Callable[[Any], None] = nothing_to_prepare
    takes: tuple[str, ...] = ()
    ignores: tuple[str, ...] = ()
    answer: Callable[[Tensor], object] | None = None

    def obstacles(self, layer: nn.Module) -> tuple[str, ...]:
        """Attributes of ``layer`` that ``ours`` cannot serve, as ``name=value``."""
        found = ((name, _attribute(layer, name), wanted) for name, wanted in self.must_be.items())
        return tuple(f"{name}={value!r}" for name, value, wanted in found if not _is(value, wanted))

    def apply(self, layer: nn.Module, path: str) -> None:
        """Change ``layer`` in place; ``path`` names it in errors."""
        self.prepare(layer)
        layer.__class__ = self.ours
        if self.takes:
            translate = partial(_translate, path, self.takes, self.ignores)
            layer.register_forward_pre_hook(translate, with_kwargs=True)
        if self.answer is not None:
            layer.register_forward_hook(partial(_answer, self.answer))


def _attribute(layer: Any, dotted: str) -> Any:
    value = layer
    for name in dotted.split("."):
        value = getattr(value, name, None)
    return value


def _is(value: object, wanted: object) -> bool:
    if isinstance(wanted, type):
        return isinstance(value, wanted)
    return value in wanted if isinstance(wanted, frozenset) else value == wanted


def _translate(
    path: str,
    takes: tuple[str, ...],
    ignores: tuple[str, ...],
    layer: nn.Module,  # noqa: ARG001 (the hook's signature)
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The foreign call → positional arguments of ours.

    Raises:
        RewriteError: the caller gives what the rewritten layer does not take, such as a mask.
    """
    more = {f"argument {index}": value for index, value in enumerate(args) if index >= len(takes)}
    rest = {name: value for name, value in (more | kwargs).items() if name not in takes + ignores}
    unserved = [name for name, value in rest.items() if value is not None]
    if unserved:
        raise RewriteError(f"{path} was rewritten for export and takes no {', '.join(unserved)}; leave it out")
    given = dict(zip(takes, args, strict=False)) | kwargs
    return tuple(given[name] for name in takes if name in given), {}


def _answer(
    answer: Callable[[Tensor], object],
    layer: nn.Module,  # noqa: ARG001 (the hook's signature)
    args: tuple[Any, ...],  # noqa: ARG001
    out: Tensor,
) -> object:
    return answer(out)
