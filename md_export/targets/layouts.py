"""Layouts: names and shapes of an artifact's inputs and outputs, ours or those of Apple's Swift package.

Golden cases, the chain and the samplers use our names. :meth:`Layout.pack` converts inputs for an artifact of a layout,
and :meth:`Layout.adapt` adds the inverse conversion to the graph, so that the artifact computes the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from md_export.errors import RecipeError
from md_export.rewrites import find_rewrite
from md_export.spec.names import BORDER, chunk_number, whole_of
from md_export.spec.recipe import Recipe
from md_export.spec.tensors import Array, Arrays, TensorSpec


def _same(value: Any) -> Any:
    return value


@dataclass(frozen=True)
class Form:
    """Form of one input in an artifact.

    Attributes:
        name: name in the artifact.
        pack: converts our array to the artifact's.
        unpack: converts the artifact's tensor to ours, inside the graph.
    """

    name: str
    pack: Callable[[Array], Array] = _same
    unpack: Callable[[Tensor], Tensor] = _same

    def spec(self, ours: TensorSpec) -> TensorSpec:
        """Return name, shape and dtype in the artifact."""
        packed = self.pack(ours.zeros())
        return TensorSpec(self.name, packed.shape, str(packed.dtype))


@dataclass(frozen=True)
class Surface:
    """A component's file name without suffix, and its inputs and outputs that differ from ours, by our names."""

    file: str
    inputs: Mapping[str, Form] = field(default_factory=dict)
    outputs: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Layout:
    """Surfaces by component; components without a surface keep our names and shapes."""

    surfaces: Mapping[str, Surface]

    def file(self, component: str) -> str:
        """Return the name of the artifact, without suffix."""
        return self._surface(component).file

    def inputs(self, component: str, specs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
        """Return the artifact's inputs for our inputs, in the same order."""
        return tuple(self._form(component, spec.name).spec(spec) for spec in specs)

    def outputs(self, component: str, specs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
        """Return the artifact's outputs for our outputs."""
        names = self._surface(component).outputs
        return tuple(dataclasses.replace(spec, name=names.get(spec.name, spec.name)) for spec in specs)

    def pack(self, component: str, arrays: Arrays) -> dict[str, Array]:
        """Convert our arrays to the artifact's inputs."""
        forms = {name: self._form(component, name) for name in arrays}
        return {form.name: form.pack(arrays[name]) for name, form in forms.items()}

    def output_of(self, component: str, name: str) -> str:
        """Return our name of the artifact's output ``name``; raises KeyError if the layout has no such output."""
        outputs = {} if name.startswith(BORDER) else self._surface(component).outputs
        return {given: ours for ours, given in outputs.items()}[name] if outputs else name

    def adapt(self, component: str, module: nn.Module, specs: tuple[TensorSpec, ...]) -> None:
        """Make ``module`` read the artifact's inputs instead of ours (``specs``), in place; module paths stay."""
        unpacks = [self._form(component, spec.name).unpack for spec in specs]
        if all(unpack is _same for unpack in unpacks):
            return
        ours = type(module)

        def forward(self: nn.Module, *given: Tensor) -> Any:
            return ours.forward(self, *(unpack(value) for unpack, value in zip(unpacks, given, strict=True)))

        module.__class__ = type(f"Adapted{ours.__name__}", (ours,), {"forward": forward})

    def _surface(self, component: str) -> Surface:
        surface, number = self.surfaces.get(whole_of(component)), chunk_number(component)
        if surface is None:
            return Surface(component)
        return dataclasses.replace(surface, file=f"{surface.file}Chunk{number}") if number else surface

    def _form(self, component: str, name: str) -> Form:
        return self._surface(component).inputs.get(name) or Form(name)


# Apple's ml-stable-diffusion, swift/StableDiffusion/pipeline: TextEncoder.swift writes the ids to one Float32 array,
# StableDiffusionPipeline.swift converts the text to [B, C, 1, L], Decoder.swift divides by the scaling factor before.
# StableDiffusionPipeline+Resources.swift looks for UnetChunk1 and UnetChunk2 before Unet; Unet.swift passes the first
# one's outputs by name to the second, and all inputs to both.
_IDS: Final = Form("input_ids", lambda ids: ids.astype(np.float32), lambda ids: ids.to(torch.int32))
_TEXT: Final = Form(
    "encoder_hidden_states",
    lambda tokens: np.ascontiguousarray(tokens.swapaxes(1, 2)[:, :, None]),
    lambda channels: channels[:, :, 0].transpose(1, 2),
)
OWN: Final = Layout({})
LAYOUTS: Final[Mapping[str, Layout]] = {
    "swift": Layout(
        {
            "text_encoder": Surface("TextEncoder", {"input_ids": _IDS}),
            "unet": Surface("Unet", {"encoder_hidden_states": _TEXT}, {"out_sample": "noise_pred"}),
            "vae_decoder": Surface("VAEDecoder", {"latent": Form("z")}),
        }
    )
}


def layout_of(recipe: Recipe) -> Layout:
    """Return the recipe's layout; ours if it names none.

    Raises:
        RecipeError: a rewrite of the recipe removes an input or an output that the layout has.
    """
    if recipe.layout is None:
        return OWN
    folds = [name for name in recipe.rewrites if find_rewrite(name).drops or find_rewrite(name).output]
    if folds:
        raise RecipeError(
            f"recipe {recipe.name}: layout {recipe.layout} needs an input or output that {' and '.join(folds)} "
            "removes; leave out the layout or the rewrite"
        )
    return LAYOUTS[recipe.layout]
