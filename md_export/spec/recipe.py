"""A recipe as data: target, scheme, rewrites, thresholds, golden prompts.

:mod:`md_export.spec.recipe_file` reads it. Thresholds except ``guidance_snr_db`` have no default: a recipe that lacks
one is refused.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from pydantic import ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from md_export.errors import RecipeError
from md_export.spec.calibration import CalibrationPlan, check_cases
from md_export.spec.loras import BRANCHES, label
from md_export.spec.names import (
    COMPONENT_NAMES,
    OPTIONAL_NAMES,
    ORDER,
    TEXT_ENCODERS,
    ComponentName,
    Method,
    part_names,
    whole_of,
)
from md_export.spec.prompts import PromptPlan
from md_export.spec.recipe_checks import CHECKS
from md_export.spec.sampler import SamplerPlan, sampler_of
from md_export.spec.scheme import QuantScheme as QuantScheme
from md_export.spec.tolerance import Regression as Regression
from md_export.spec.tolerance import Tolerance as Tolerance
from md_export.spec.variant import Chunks, Size, Variant
from md_export.system.files import is_plain_name

# Modules with the same name in the VAE encoder and decoder.
_OF_BOTH: Final = ("conv_in", "conv_out", "mid_block")
# Fields that recipes of older manifests do not have.
_LATER: Final = ("chunks", "unfused", "styles", "style_rank", "prompts")
_LONGEST_NAME: Final = 200
_EASED_DB: Final = 4.0
_FORBID: Final = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


@dataclass(frozen=True)
class GoldenPlan:
    """Prompts and seeds for golden cases of a checkpoint that has none.

    Attributes:
        prompts: one golden case for each prompt and seed.
        seeds: of the noise.
    """

    __pydantic_config__ = _FORBID

    prompts: tuple[str, ...]
    seeds: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        """Raise RecipeError, which names the field, for too many cases."""
        check_cases("golden", self.prompts, self.seeds)


@dataclass(frozen=True)
class Recipe:
    """Configuration of one export.

    Attributes:
        name: written into the manifest; the folder of a build's export.
        target: ``coreml``, ``tflite``, ``onnx`` or ``coreai``.
        components: components to export.
        schemes, tolerances: one entry per component.
        golden: prompts and seeds for golden cases of a checkpoint that has none.
        rewrites: names from REWRITES, applied in this order.
        allow_drift: allow rewrites that change the function and that the checkpoint was not trained with.
        deployment_target: oldest system that must load a Core ML package; None for iOS17.
        min_litert: oldest LiteRT version that apps run a TFLite file with (``2.1.6``); artifacts with a known fault in
            this or a later version are refused. None or ``any``: no artifact is refused.
        layout: ``swift`` for the input and output names and shapes of Apple's Swift package; None for ours.
        form: file that onnxruntime writes from an ONNX graph: ``ort`` for its mobile builds, ``cpu_fused`` with fused
            operations for this machine's processor; None for a portable graph.
        npu: chips from SOCS; each ONNX graph is also compiled for their NPUs.
        calibration: inputs for calibrating int8 activations and rounding; None for every other golden case.
        regression: limits for a comparison with an older export; a comparison needs it.
        size, timestep, clip_skip, chunks: as in :class:`md_export.spec.variant.Variant`; after :meth:`cut`, each chunk
            has an entry in ``schemes`` and ``tolerances``.
        sampler: many steps; None for one step.
        prompts: prompts whose text embeddings the export stores; None for none.
        loras: LoRAs to add to the checkpoint, each ``FILE`` or ``FILE:scale``; paths in a file are relative to it.
        unfused: LoRAs are computed beside the weights, which stay those of the checkpoint without them.
        styles: LoRAs that the app chooses by inputs of the artifacts, each ``FILE`` or ``FILE:scale``, as ``loras``.
        style_rank: rank of these inputs; None for that of the styles.
        optional_schemes, optional_tolerances: entries of a file for components that it does not list, for
            :meth:`widened`; not serialized.
    """

    __pydantic_config__ = _FORBID

    name: str
    target: str
    components: tuple[ComponentName, ...]
    schemes: dict[str, QuantScheme]
    tolerances: dict[str, Tolerance]
    picture_psnr_db: float
    golden: GoldenPlan
    rewrites: tuple[str, ...] = ()
    allow_drift: bool = False
    deployment_target: Literal["iOS17", "iOS18"] | None = None
    min_litert: str | None = None
    layout: Literal["swift"] | None = None
    form: Literal["ort", "cpu_fused"] | None = None
    npu: tuple[str, ...] = ()
    calibration: CalibrationPlan | None = None
    regression: Regression | None = None
    size: Size | None = None
    timestep: int | None = None
    clip_skip: int = 0
    sampler: SamplerPlan | None = None
    loras: tuple[str, ...] = ()
    chunks: Chunks | None = None
    unfused: bool = False
    styles: tuple[str, ...] = ()
    style_rank: int | None = None
    prompts: PromptPlan | None = None
    optional_schemes: Annotated[dict[str, QuantScheme], Field(exclude=True)] = dataclasses.field(default_factory=dict)
    optional_tolerances: Annotated[dict[str, Tolerance], Field(exclude=True)] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raise RecipeError, which names the field, for a recipe that no target can carry out."""
        if self.variant.timestep is not None and self.sampler is not None:
            raise RecipeError("timestep is for one step and [sampler] sets its timesteps; leave out one of the two")
        # The name is used in titles, where rich reads brackets as styles, and in names of files.
        if not is_plain_name(self.name) or self.name.startswith(".") or set(self.name) & set("[]"):
            raise RecipeError(f"name: {self.name!r:.80} could not name a file; take letters, digits, - and _")
        for check in CHECKS:
            check(self)

    @model_serializer(mode="wrap")
    def _serialized(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out later fields with their defaults, so that recipes from before they existed serialize unchanged."""
        plain: dict[str, Any] = handler(self)
        return {name: value for name, value in plain.items() if value or name not in _LATER}

    @property
    def variant(self) -> Variant:
        """Variant of the checkpoint to export; raises RecipeError if no checkpoint supports it."""
        guidance = None if self.sampler is None else self.sampler.guidance
        return Variant(self.size, self.timestep, self.clip_skip, guidance, self.chunks)

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the artifacts: the components, with the chunks of a component that is cut."""
        return part_names(self.components, self.chunks if isinstance(self.chunks, int) else 0)

    def cut(self, chunks: int | None) -> Recipe:
        """Return the recipe with ``chunks`` chunks, each with the scheme and tolerance of the component that was cut.

        Values between chunks may have 10 dB less, because the outputs that depend on them are checked in full.
        """
        recipe = dataclasses.replace(self, chunks=chunks)
        wholes = {part: whole_of(part) for part in recipe.parts if part not in self.schemes}
        asked = {part: self.tolerances[whole] for part, whole in wholes.items()}
        inner = {part: asked[part].of_inner_values() for part in [*asked][:-1]}
        return dataclasses.replace(
            recipe,
            schemes={**self.schemes, **{part: self.schemes[whole] for part, whole in wholes.items()}},
            tolerances={**self.tolerances, **asked, **inner},
        )

    def varied(self, variant: Variant) -> Recipe:
        """Return the recipe with the fields that ``variant`` sets, and with a suffix for them in its name."""
        return dataclasses.replace(
            self,
            name=f"{self.name}{variant.suffix}",
            size=variant.size or self.size,
            timestep=self.timestep if variant.timestep is None else variant.timestep,
            clip_skip=variant.clip_skip or self.clip_skip,
            chunks=variant.chunks or self.chunks,
        )

    def styled(self, styles: tuple[str, ...], rank: int | None = None) -> Recipe:
        """Return the recipe with additional styles; unchanged without any."""
        return dataclasses.replace(self, styles=(*self.styles, *styles), style_rank=rank or self.style_rank)

    def adapted(self, loras: tuple[str, ...], unfused: bool = False) -> Recipe:
        """Return the recipe with additional LoRAs, and with a suffix for them in its name; unchanged without any."""
        recipe = dataclasses.replace(self, unfused=unfused) if unfused else self
        if not loras:
            return recipe
        name = f"{self.name}{label(loras)}"[:_LONGEST_NAME]
        return dataclasses.replace(recipe, name=name, loras=(*self.loras, *loras))

    @property
    def fused(self) -> Recipe:
        """The recipe with LoRAs fused into the weights, as it was before :meth:`with_branches`."""
        schemes = {name: scheme.without(BRANCHES) for name, scheme in self.schemes.items()}
        return dataclasses.replace(self, unfused=False, schemes=schemes)

    def with_branches(self, components: Iterable[str]) -> Recipe:
        """Return the recipe for LoRAs beside the weights of ``components``: these LoRAs keep float."""
        schemes = {name: self.schemes[name].with_float(BRANCHES) for name in components if name in self.schemes}
        return dataclasses.replace(self, schemes={**self.schemes, **schemes})

    def sampled(
        self,
        steps: int | None,
        guidance: float | None,
        method: Method | None = None,
        negative: str | None = None,
    ) -> Recipe:
        """Return the recipe with this number of steps, and with the method in its name; None leaves it unchanged.

        Raises:
            RecipeError: guidance or a method for one step, or a rewrite that is valid for one step only.
        """
        plan = sampler_of(steps, guidance, method, self.sampler, negative)
        if plan is None or plan == self.sampler:
            return self
        name = self.name if self.sampler else f"{self.name}-{plan.kind or 'steps'}"
        return dataclasses.replace(self, name=name, sampler=plan)

    def eased(self) -> Recipe:
        """Return the recipe with thresholds for random weights, 4 dB lower.

        Outputs of random weights are sums of many small terms that cancel, so rounding errors are relatively larger.
        """
        tolerances = {
            name: dataclasses.replace(
                one,
                snr_db=one.snr_db - _EASED_DB,
                psnr_db=None if one.psnr_db is None else one.psnr_db - _EASED_DB,
            )
            for name, one in self.tolerances.items()
        }
        return dataclasses.replace(self, tolerances=tolerances, picture_psnr_db=self.picture_psnr_db - _EASED_DB)

    @property
    def encodes(self) -> bool:
        """Whether the recipe has the VAE encoder."""
        return "vae_encoder" in self.components

    def widened(self, components: tuple[str, ...]) -> Recipe:
        """Return the recipe with the optional components among ``components`` added.

        Each gets the scheme and tolerance of its counterpart in OPTIONAL_NAMES, without rules for single modules.
        """
        added = [name for name in components if name in OPTIONAL_NAMES and name not in self.components]
        schemes, tolerances = dict(self.schemes), dict(self.tolerances)
        for name in added:
            beside = OPTIONAL_NAMES[name]
            if beside not in self.schemes or beside not in self.tolerances:
                raise RecipeError(f"recipe {self.name}: [scheme.{name}] and [tolerance.{name}] are missing")
            schemes[name] = self.optional_schemes.get(name) or _alike(self.schemes[beside], beside, name)
            tolerances[name] = self.optional_tolerances.get(name) or self.tolerances[beside]
        kept = {*self.components, *added}
        return dataclasses.replace(
            self,
            components=tuple(name for name in ORDER if name in kept) if added else self.components,
            schemes=schemes,
            tolerances=tolerances,
        )

    def completed(self, components: tuple[str, ...]) -> Recipe:
        """Return the recipe with all components of a checkpoint, if it exports a whole model; else with its own.

        ``components``: those of the checkpoint. Components of other families, such as the UNet for a checkpoint with a
        transformer, are removed, and text encoders that stored prompts replace.
        """
        recipe = self
        if set(COMPONENT_NAMES) <= set(self.components):
            recipe = self.widened(components)
            recipe = recipe.narrowed(tuple(x for x in recipe.components if x in {*components, *OPTIONAL_NAMES}))
        if self.prompts is None or self.prompts.text_encoder:
            return recipe
        return recipe.narrowed(tuple(name for name in recipe.components if name not in TEXT_ENCODERS))

    def prompted(self, stored: tuple[str, ...], text_encoder: bool = True) -> Recipe:
        """Return the recipe with these prompts stored; without any, only ``text_encoder`` changes.

        Raises:
            RecipeError: no text encoder, and no prompts to replace it.
        """
        before = self.prompts
        if not stored and before is None:
            if text_encoder:
                return self
            raise RecipeError("--no-text-encoder needs stored prompts in its place; name them with --prompts FILE")
        kept = text_encoder and (before is None or before.text_encoder)
        return dataclasses.replace(self, prompts=PromptPlan(stored or (before.stored if before else ()), kept))

    def narrowed(self, components: tuple[str, ...]) -> Recipe:
        """Return the recipe with only the given components; unchanged if none are given.

        Raises:
            RecipeError: the recipe does not have a component.
        """
        for name in components:
            if name not in self.components:
                raise RecipeError(f"recipe {self.name} has no component {name!r}; it has {', '.join(self.components)}")
        kept = tuple(name for name in self.components if name in components)
        return dataclasses.replace(self, components=kept) if components else self


def _alike(scheme: QuantScheme, beside: str, name: str) -> QuantScheme:
    """Return the scheme without globs and rules for modules that only ``beside`` has."""
    old, new = f"{beside.removeprefix('vae_')}.", f"{name.removeprefix('vae_')}."
    globs = [glob.removeprefix(old) for glob in scheme.keep_float if glob.startswith(old)]
    kept = tuple(new + glob for glob in globs if glob.startswith(_OF_BOTH))
    return dataclasses.replace(scheme, keep_float=kept, rules=())
