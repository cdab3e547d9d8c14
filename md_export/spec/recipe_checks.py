"""Checks of a recipe for fields that contradict each other."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from md_export.errors import RecipeError
from md_export.spec.loras import LARGEST_RANK, style_name
from md_export.spec.names import CUTTABLE, SOCS, TEXT_ENCODERS

if TYPE_CHECKING:
    from md_export.spec.recipe import Recipe

# Fields that a recipe file writes as one table for all components.
TABLES: Final = {"schemes": "scheme", "tolerances": "tolerance"}
_OF_ONE_TARGET: Final = {
    "deployment_target": "coreml",
    "layout": "coreml",
    "form": "onnx",
    "npu": "onnx",
    "min_litert": "tflite",
}
# Lets a recipe that extends one with a version allow every version.
ANY_LITERT: Final = "any"
_VERSION: Final = re.compile(r"[0-9]{1,4}(\.[0-9]{1,4}){0,2}")


def _check_sampler(recipe: Recipe) -> None:
    if recipe.sampler is not None:
        recipe.sampler.check_rewrites(recipe.rewrites)


def _check_layout(recipe: Recipe) -> None:
    if recipe.layout is None:
        return
    if recipe.sampler is not None:
        raise RecipeError(
            f"recipe {recipe.name}: layout {recipe.layout} is for one step, and [sampler] takes "
            f"{recipe.sampler.steps}; leave out one of the two"
        )
    if recipe.variant.sides and len(set(recipe.variant.sides)) > 1:
        raise RecipeError(
            f"recipe {recipe.name}: layout {recipe.layout} is for square pictures; leave it out, or give one side"
        )
    if isinstance(recipe.chunks, int) and recipe.chunks != 2:
        raise RecipeError(
            f"recipe {recipe.name}: layout {recipe.layout} reads a UNet in one file or in 2 chunks, not in "
            f"{recipe.chunks}; give --chunks 2, or leave out one of the two"
        )
    if recipe.encodes:
        raise RecipeError(
            f"recipe {recipe.name}: layout {recipe.layout} has no place for a VAE encoder that returns the "
            "latent's mean; leave out one of the two"
        )


def _check_target(recipe: Recipe) -> None:
    for field, target in _OF_ONE_TARGET.items():
        if getattr(recipe, field) and recipe.target != target:
            raise RecipeError(f"recipe {recipe.name}: {field} is for the target {target}; leave it out")


def _check_min_litert(recipe: Recipe) -> None:
    if recipe.min_litert not in (None, ANY_LITERT) and not _VERSION.fullmatch(recipe.min_litert):
        raise RecipeError(
            f"min_litert: {recipe.min_litert!r:.40} is no version of LiteRT; write it as 2.1.6, or {ANY_LITERT!r} for "
            "files that known faults of GPUs may concern"
        )


def _check_chunks(recipe: Recipe) -> None:
    if recipe.chunks is not None and not set(CUTTABLE) & set(recipe.components):
        raise RecipeError(
            f"recipe {recipe.name}: chunks is for {' or '.join(CUTTABLE)}, it has {', '.join(recipe.components)}; "
            "leave it out"
        )
    if recipe.chunks is not None and recipe.npu:
        raise RecipeError(f"recipe {recipe.name}: npu compiles whole components, not chunks; leave out one of the two")


def _check_styles(recipe: Recipe) -> None:
    names = [style_name(text) for text in recipe.styles]
    if len(set(names)) < len(names):
        raise RecipeError(f"styles: two have the name {max(names, key=names.count)!r:.80}; rename one of the files")
    for field in ("loras", "chunks", "layout", "form"):
        if names and getattr(recipe, field):
            raise RecipeError(f"recipe {recipe.name}: styles cannot be combined with {field}; leave out one of the two")
    if recipe.style_rank is not None and not 1 <= recipe.style_rank <= LARGEST_RANK:
        raise RecipeError(f"style_rank: {recipe.style_rank} is not a rank; give 1 to {LARGEST_RANK}")


def _check_npu(recipe: Recipe) -> None:
    for soc in recipe.npu:
        if soc not in SOCS:
            raise RecipeError(f"npu: {soc!r:.40} is not a known chip; use {', '.join(SOCS)}")
    if recipe.npu and recipe.form:
        raise RecipeError(f"recipe {recipe.name}: the NPU's compiler cannot read form {recipe.form}; leave out one")
    if len(set(recipe.npu)) < len(recipe.npu):
        raise RecipeError(f"recipe {recipe.name}: npu names a chip twice: {', '.join(recipe.npu)}")


def _check_form(recipe: Recipe) -> None:
    halves = [name for name in recipe.components if getattr(recipe.schemes.get(name), "activations", "") == "float16"]
    if recipe.form and halves:
        raise RecipeError(
            f"recipe {recipe.name}: form {recipe.form} cannot compute {', '.join(halves)} in float16, since "
            "onnxruntime would write its casts to float32 into the graph; take float32 or int8 (--fp32, --int8)"
        )


def _check_prompts(recipe: Recipe) -> None:
    if recipe.prompts and not recipe.prompts.text_encoder and set(recipe.components) <= set(TEXT_ENCODERS):
        raise RecipeError(
            f"recipe {recipe.name}: without text encoders nothing is left of {', '.join(recipe.components)}; leave out "
            "--no-text-encoder, or export more components"
        )


def _check_components(recipe: Recipe) -> None:
    if len(set(recipe.components)) < len(recipe.components):
        raise RecipeError(f"recipe {recipe.name}: components names one twice: {', '.join(recipe.components)}")
    for name in recipe.components:
        for field, table in TABLES.items():
            if name not in getattr(recipe, field):
                raise RecipeError(f"recipe {recipe.name}: [{table}.{name}] is missing")


# Each check raises RecipeError, which names the field.
CHECKS: Final = (
    _check_sampler,
    _check_layout,
    _check_target,
    _check_min_litert,
    _check_chunks,
    _check_styles,
    _check_npu,
    _check_form,
    _check_prompts,
    _check_components,
)
