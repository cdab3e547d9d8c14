"""Names and shapes at an artifact's surface: our own, or those that Apple's Swift package reads.

Golden cases, the chain and the samplers speak our names. :meth:`Layout.pack` translates what they give for an
artifact of that layout, and :func:`adapt` puts the way back into the graph, so that the artifact computes the same.
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
    """One input as an artifact takes it.

    Attributes:
        name: its name there.
        pack: array of ours → the artifact's.
        unpack: the artifact's tensor → ours, inside the graph.
    """

    name: str
    pack: Callable[[Array], Array] = _same
    unpack: Callable[[Tensor], Tensor] = _same

    def spec(self, ours: TensorSpec) -> TensorSpec:
        """Name, shape and dtype in the artifact."""
        packed = self.pack(ours.zeros())
        return TensorSpec(self.name, packed.shape, str(packed.dtype))


@dataclass(frozen=True)
class Surface:
    """One component's file name without suffix, and its inputs and outputs that differ, by our names."""

    file: str
    inputs: Mapping[str, Form] = field(default_factory=dict)
    outputs: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Layout:
    """Surfaces by component; one that has none keeps our own names and shapes."""

    surfaces: Mapping[str, Surface]

    def file(self, component: str) -> str:
        """Name of the artifact, without suffix."""
        return self._surface(component).file

    def inputs(self, component: str, specs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
        """Our inputs → the artifact's, in the same order."""
        return tuple(self._form(component, spec.name).spec(spec) for spec in specs)

    def outputs(self, component: str, specs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
        """Our outputs → the artifact's."""
        names = self._surface(component).outputs
        return tuple(dataclasses.replace(spec, name=names.get(spec.name, spec.name)) for spec in specs)

    def pack(self, component: str, arrays: Arrays) -> dict[str, Array]:
        """Our arrays → what the artifact takes."""
        forms = {name: self._form(component, name) for name in arrays}
        return {form.name: form.pack(arrays[name]) for name, form in forms.items()}

    def output_of(self, component: str, name: str) -> str:
        """Our name of the artifact's output ``name``; KeyError where the layout calls it otherwise."""
        outputs = {} if name.startswith(BORDER) else self._surface(component).outputs
        return {given: ours for ours, given in outputs.items()}[name] if outputs else name

    def adapt(self, component: str, module: nn.Module, specs: tuple[TensorSpec, ...]) -> None:
        """Make ``module`` take the artifact's inputs for ours, ``specs``, in place; module paths stay what they are."""
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


# Apple's ml-stable-diffusion, swift/StableDiffusion/pipeline: TextEncoder.swift fills one Float32 array with the ids,
# StableDiffusionPipeline.swift brings the text into [B, C, 1, L], Decoder.swift divides by the scaling factor before.
# StableDiffusionPipeline+Resources.swift looks for UnetChunk1 and UnetChunk2 before Unet; Unet.swift gives the second
# the first one's outputs by their names, and the inputs of both.
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
    """The recipe's layout; our own where it names none.

    Raises:
        RecipeError: a rewrite of the recipe takes away an input or an output that the layout has.
    """
    if recipe.layout is None:
        return OWN
    folds = [name for name in recipe.rewrites if find_rewrite(name).drops or find_rewrite(name).output]
    if folds:
        raise RecipeError(
            f"recipe {recipe.name}: layout {recipe.layout} has an input or output that {' and '.join(folds)} "
            "takes away; leave out one of the two"
        )
    return LAYOUTS[recipe.layout]
