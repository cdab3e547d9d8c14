"""A shipping configuration as data: target, scheme, rewrites, thresholds, golden prompts.

It is read by :mod:`md_export.spec.recipe_file`. Thresholds have no default, but for ``guidance_snr_db``: a recipe that
lacks one is refused.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from pydantic import ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from md_export.errors import RecipeError
from md_export.spec.calibration import CalibrationPlan, check_cases
from md_export.spec.loras import label
from md_export.spec.names import COMPONENT_NAMES, OPTIONAL_NAMES, ORDER, ComponentName, Method, part_names, whole_of
from md_export.spec.recipe_checks import CHECKS
from md_export.spec.sampler import SamplerPlan, sampler_of
from md_export.spec.scheme import QuantScheme as QuantScheme
from md_export.spec.variant import Chunks, Size, Variant
from md_export.system.files import is_plain_name


@dataclass(frozen=True)
class Regression:
    """Most by which one component, or the picture, may get worse; improvements never fail.

    Attributes:
        snr_db_loss: of a component's SNR, in dB.
        picture_psnr_db_loss: of the picture's PSNR, in dB.
        bytes_growth, ops_growth: of an artifact's size and number of operations, as a share of the older one's.
        new_lint_findings: operations that a rule of lint speaks against and that were not there before.
        new_cpu_ops: operations that the GPU engine leaves to the CPU and did not before; judged with ``--gpu``.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    snr_db_loss: float
    picture_psnr_db_loss: float
    bytes_growth: float
    ops_growth: float
    new_lint_findings: int
    new_cpu_ops: int


# Modules that VAE encoder and decoder have under the same name.
_OF_BOTH: Final = ("conv_in", "conv_out", "mid_block")
_LONGEST_NAME: Final = 200
_EASED_DB: Final = 4.0
# Core AI's runtime computes nano's first chunk in float16 with 48.8 dB; the recipe's threshold for the UNet is 55 dB.
_INNER_DB: Final = 10.0
# A threshold of NaN or -Infinity would never fail.
_FORBID = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


@dataclass(frozen=True)
class Tolerance:
    """Least quality of one component's outputs, compared with the golden ones in float64.

    ``guidance_snr_db`` is for the difference between the outputs with the prompt and without it, which guidance
    multiplies (arXiv 2207.12598). At 10 dB the error is a third of the difference. It can be far larger than the error
    of each output: a published UNet with 8-bit weights had a difference of 0.009 instead of 0.175.
    """

    __pydantic_config__ = _FORBID

    snr_db: float
    psnr_db: float | None = None
    cosine: float | None = None
    max_abs: float | None = None
    guidance_snr_db: float = 10.0

    def of_inner_values(self) -> Tolerance:
        """Return the tolerance of values that a chunk gives to later chunks, of any scale and shape."""
        return Tolerance(self.snr_db - _INNER_DB, guidance_snr_db=self.guidance_snr_db)


@dataclass(frozen=True)
class GoldenPlan:
    """Prompts and seeds for golden cases of a checkpoint that has none."""

    __pydantic_config__ = _FORBID

    prompts: tuple[str, ...]
    seeds: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        """Refuse too many cases. RecipeError names the field."""
        check_cases("golden", self.prompts, self.seeds)


@dataclass(frozen=True)
class Recipe:
    """One shipping configuration.

    Attributes:
        schemes, tolerances: one entry per component.
        rewrites: names from REWRITES, applied in this order.
        allow_drift: take rewrites that the checkpoint was not trained with.
        deployment_target: oldest system that must load a Core ML package; iOS17 where a recipe names none.
        min_litert: oldest LiteRT that apps run a TFLite file with (``2.1.6``); an artifact that a known fault of this
            or of a later version concerns is refused; ``any``, as without it: none is.
        layout: whose names and shapes a Core ML package's surface has; our own where a recipe names none.
        form: what onnxruntime makes of an ONNX graph: a file for its mobile builds (``ort``), or one that is fused for
            the processor at hand (``cpu_fused``); a portable graph where a recipe names none.
        npu: chips from SOCS for whose NPUs each ONNX graph is compiled, too.
        calibration: what int8 activations and rounding are calibrated on; every other golden case where a recipe names
            nothing.
        regression: how much worse than an older export one may be; comparing needs it.
        size, timestep, clip_skip, chunks: as in :class:`md_export.spec.variant.Variant`; chunks have schemes and
            tolerances of their own in a recipe that a plan has :meth:`cut`.
        sampler: more steps than one.
        loras: added to the checkpoint, each ``FILE`` or ``FILE:scale``; in a file, paths are relative to it.
        optional_schemes, optional_tolerances: what a file says of components that it does not list, for
            :meth:`widened`; not written.
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
    optional_schemes: Annotated[dict[str, QuantScheme], Field(exclude=True)] = dataclasses.field(default_factory=dict)
    optional_tolerances: Annotated[dict[str, Tolerance], Field(exclude=True)] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse recipes that no target can carry out. RecipeError names the field."""
        if self.variant.timestep is not None and self.sampler is not None:
            raise RecipeError("timestep: it is for one step, and [sampler] has its own; leave out the one or the other")
        # Stands in titles, which read brackets as styles, and in names of files.
        if not is_plain_name(self.name) or self.name.startswith(".") or set(self.name) & set("[]"):
            raise RecipeError(f"name: {self.name!r:.80} could not name a file; take letters, digits, - and _")
        for check in CHECKS:
            check(self)

    @model_serializer(mode="wrap")
    def _serialized(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out chunks where there are none, as before recipes had them."""
        plain: dict[str, Any] = handler(self)
        return plain if self.chunks else {name: value for name, value in plain.items() if name != "chunks"}

    @property
    def variant(self) -> Variant:
        """Variant of the checkpoint that the recipe exports; raises RecipeError if no checkpoint supports it."""
        guidance = None if self.sampler is None else self.sampler.guidance
        return Variant(self.size, self.timestep, self.clip_skip, guidance, self.chunks)

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the artifacts: the components, or the chunks of a component that is cut."""
        return part_names(self.components, self.chunks if isinstance(self.chunks, int) else 0)

    def cut(self, chunks: int | None) -> Recipe:
        """Return the recipe for so many chunks, each with scheme and tolerance of the component that it is of.

        What a chunk gives to later chunks may have 10 dB less: the whole's tolerance judges what becomes of it.
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
        """Return the recipe with the fields that ``variant`` sets, which its name tells."""
        return dataclasses.replace(
            self,
            name=f"{self.name}{variant.suffix}",
            size=variant.size or self.size,
            timestep=self.timestep if variant.timestep is None else variant.timestep,
            clip_skip=variant.clip_skip or self.clip_skip,
            chunks=variant.chunks or self.chunks,
        )

    def adapted(self, loras: tuple[str, ...]) -> Recipe:
        """The same recipe with some LoRAs more, its name followed by them; none: as it is."""
        if not loras:
            return self
        return dataclasses.replace(self, name=f"{self.name}{label(loras)}"[:_LONGEST_NAME], loras=(*self.loras, *loras))

    def sampled(
        self,
        steps: int | None,
        guidance: float | None,
        method: Method | None = None,
        negative: str | None = None,
    ) -> Recipe:
        """The same recipe in so many steps, its name followed by the method; None: as it is.

        Raises:
            RecipeError: guidance or a method for one step, or a rewrite that is right for one step only.
        """
        plan = sampler_of(steps, guidance, method, self.sampler, negative)
        if plan is None or plan == self.sampler:
            return self
        name = self.name if self.sampler else f"{self.name}-{plan.kind or 'steps'}"
        return dataclasses.replace(self, name=name, sampler=plan)

    def eased(self) -> Recipe:
        """The same recipe with thresholds for random weights, a few dB lower.

        Outputs of random weights are sums of many small terms that cancel, so rounding is larger beside them.
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
        """Whether the VAE encoder is among its components."""
        return "vae_encoder" in self.components

    def widened(self, components: tuple[str, ...]) -> Recipe:
        """The same recipe with those of ``components`` that it lacks and that not every checkpoint has.

        Each has scheme and tolerance of the one that it stands beside, but for the rules for that one's modules.
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
        """The same recipe with all that a checkpoint's pictures need, where it is of a whole model.

        ``components``: what the checkpoint is made of; another family's, such as the UNet beside a transformer, goes.
        """
        if not set(COMPONENT_NAMES) <= set(self.components):
            return self
        widened = self.widened(components)
        return widened.narrowed(tuple(name for name in widened.components if name in {*components, *OPTIONAL_NAMES}))

    def narrowed(self, components: tuple[str, ...]) -> Recipe:
        """The same recipe for some of its components.

        Raises:
            RecipeError: a component that the recipe does not have.
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
