"""Make the plan of a build from recipes and a checkpoint.

Runs in a worker process, because it opens the checkpoint and imports the rewrites.

Each cache key covers everything that a step's result depends on, and nothing else. A step is built again exactly when
its key changes.
"""

from __future__ import annotations

import dataclasses
import platform
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from md_export.checkpoint.derived import adapted
from md_export.engine import dependencies
from md_export.engine.chunks import bytes_of, cut_recipe
from md_export.engine.costs import artifact_cost, cases_cost, export_cost, space_of
from md_export.engine.keys import key_of, maker
from md_export.engine.plan import (
    ArtifactRequest,
    CalibrationRequest,
    ExportPlan,
    ExportRequest,
    GoldenRequest,
    Plan,
    PromptsRequest,
    Step,
)
from md_export.engine.request import lora_files, lora_inputs
from md_export.engine.swift_bundle import swift_tokenizer
from md_export.errors import RecipeError
from md_export.models.families import family_of, graph_of
from md_export.models.prompts import text_encoders
from md_export.models.sampling.advice import advice_on_steps
from md_export.models.sampling.sampler import steps_of
from md_export.parity.golden.folder import INDEX, read_index
from md_export.parity.golden.prepare import (
    STYLE_CASES,
    calibration_pairs,
    needs_calibration,
    planned_cases,
    present_golden,
)
from md_export.parity.lora_fusing import added_loras
from md_export.parity.styled_module import concerned, style_checkpoint
from md_export.rewrites import find_rewrite
from md_export.spec.loras import style_name
from md_export.spec.names import TEXT_ENCODERS, whole_of
from md_export.spec.recipe import Recipe
from md_export.spec.recipe_file import recipe_to_dict
from md_export.spec.style import StyleInput
from md_export.system.files import sha256_of
from md_export.targets import TARGETS, tools_of
from md_export.targets.layouts import layout_of

# Prompt and seed of each golden or calibration case.
_Pairs = list[tuple[str, int]]


def plan(recipes: list[Recipe], checkpoint_dir: Path, golden: Path | None, seen: Path | None = None) -> Plan:
    """Return the plan for the recipes; identical steps of different recipes are shared.

    ``seen``: as in :class:`md_export.engine.plan.Inputs`.

    Raises:
        MdExportError: a recipe cannot be carried out here, or the checkpoint or the golden cases cannot be read.
    """
    for recipe in recipes:
        check_recipe(recipe)
    with ExitStack() as folders:
        sources = _sources(recipes, checkpoint_dir, golden, seen, folders)
        made = _Planner()
        styles = {one.styles: _styles(one, checkpoint_dir, recipes) for one in recipes}
        exports = tuple(made.export(one, sources[one.loras], styles[one.styles]) for one in recipes)
        advice = [advice_on_steps(sources[one.loras].checkpoint.at(one.variant).config, one.sampler) for one in recipes]
        advice += [line for source in sources.values() for line in source.checkpoint.notes]
    return Plan(tuple(made.steps.values()), exports, tuple(dict.fromkeys(line for line in advice if line)))


def check_recipe(recipe: Recipe) -> None:
    """Check that a recipe can be carried out here: the target's libraries, the rewrites and the layout.

    Raises:
        MdExportError: MissingExtraError, RewriteError or RecipeError.
    """
    TARGETS[recipe.target].require()
    for name in recipe.rewrites:
        find_rewrite(name)
    layout_of(recipe)


def _sources(
    recipes: list[Recipe], checkpoint_dir: Path, golden: Path | None, seen: Path | None, folders: ExitStack
) -> dict[tuple[str, ...], dependencies.Source]:
    """Open the checkpoint once per set of LoRAs in the recipes, and read its files once for all of them.

    The results are valid while ``folders`` is open.
    """
    files, found = lora_files(recipes), dict[tuple[str, ...], dependencies.Source]()
    hash_of = cache(dependencies.hashing(seen))
    for loras in dict.fromkeys(recipe.loras for recipe in recipes):
        folder = folders.enter_context(adapted(checkpoint_dir, loras))
        variants = {recipe.variant for recipe in recipes if recipe.loras == loras}
        found[loras] = dependencies.source_of(folder, golden, variants, lora_inputs(loras, files), hash_of)
    return found


def _styles(recipe: Recipe, checkpoint_dir: Path, recipes: list[Recipe]) -> tuple[StyleInput, ...]:
    """Open the checkpoint with each style of a recipe, and return the styles.

    Raises:
        CheckpointError: a style does not fit the checkpoint.
    """
    found, inputs = [], lora_inputs(recipe.styles, lora_files(recipes))
    for text, (file, tail) in zip(recipe.styles, inputs, strict=True):
        with style_checkpoint(checkpoint_dir, text) as checkpoint:
            checkpoint.check()
            (lora,) = added_loras(checkpoint)
        found.append(StyleInput(style_name(text), file, tail, lora.sha256, lora.scale, lora.components))
    return tuple(found)


@dataclass(frozen=True)
class _Calibrated:
    """The step that makes calibration cases.

    Attributes:
        key: cache key of the step.
        asked: the settings that the cases depend on.
    """

    key: str
    asked: dict[str, object]


@dataclass
class _Planner:
    """Collects steps by cache key; steps of different exports with the same key are merged."""

    steps: dict[str, Step] = field(default_factory=dict)

    def export(self, recipe: Recipe, source: dependencies.Source, styles: tuple[StyleInput, ...]) -> ExportPlan:
        """Add an export and all steps that lead to it."""
        # With all of the checkpoint's components, and without LoRAs: they are in the checkpoint or in ``styles``.
        recipe = dataclasses.replace(recipe, loras=(), styles=()).completed(source.checkpoint.components)
        recipe = recipe.eased() if source.checkpoint.is_random else recipe
        # A recipe may also have schemes for components of other families.
        known = {name: scheme for name, scheme in recipe.schemes.items() if whole_of(name) in source.layers}
        named = {name: scheme.for_layers(source.layers[whole_of(name)]) for name, scheme in known.items()}
        recipe = dataclasses.replace(recipe, schemes={**recipe.schemes, **named})
        beside = [*source.checkpoint.loras_by_component()] if recipe.unfused else []
        beside += [name for style in styles for name in style.components]
        recipe = cut_recipe(recipe.with_branches(dict.fromkeys(beside)), source)
        weights = bytes_of(recipe, source)
        if recipe.layout == "swift":
            swift_tokenizer(source.checkpoint)
        golden, judging = self._golden(recipe, source, styles)
        calibrated = self._calibration(recipe, source, golden, judging)
        parts = tuple(
            self._artifact(recipe, name, source, golden, calibrated, concerned(styles, name)) for name in recipe.parts
        )
        parts += self._prompts(recipe, source, styles)
        content = {
            "step": "export",
            **source.common,
            "tools": tools_of(recipe.target, family_of(source.checkpoint.config).form.libraries),
            "recipe": recipe_to_dict(recipe),
            "parts": parts,
            "loras": [str(lora) for lora in source.checkpoint.loras],
            "golden": golden,
            **_alike(styles),
        }
        whole, calls = sum(weights.values()), dependencies.calls_of(recipe)
        schemes = [recipe.schemes[name] for name in recipe.parts]
        step = Step(
            key_of(content),
            f"{recipe.name}: verify",
            (golden, *parts),
            ExportRequest(recipe, source.loras, golden, parts, styles=styles),
            _cost_key("export", whole, len(judging), calls, recipe.target, recipe.size, *schemes),
            export_cost(recipe.target, whole, len(judging) * calls, source.area(recipe)),
        )
        space = sum(space_of(recipe.schemes[name], size) for name, size in weights.items())
        return ExportPlan(recipe.name, recipe.target, self._add(step), space)

    def _golden(
        self, recipe: Recipe, source: dependencies.Source, styles: tuple[StyleInput, ...]
    ) -> tuple[str, _Pairs]:
        """Add the step for the golden cases; return its key, and the prompt and seed of each case."""
        checkpoint = source.checkpoint.at(recipe.variant)
        given = present_golden(checkpoint, source.given, recipe.sampler, recipe.encodes)
        if given is not None:
            pairs = [(case.prompt, case.seed) for case in read_index(given).cases]
            origin: dict[str, object] = {"index": sha256_of(given / INDEX)}
        else:
            pairs = planned_cases(recipe, checkpoint)
            origin = {"pairs": pairs, "variant": dataclasses.asdict(recipe.variant)}
        changes = dependencies.changes_of(recipe)
        computed = (len(pairs) if given is None or changes.rewrites else 0) + STYLE_CASES * len(styles)
        step = Step(
            key_of(
                {
                    "step": "golden",
                    **source.common,
                    **dataclasses.asdict(changes),
                    **origin,
                    "encodes": recipe.encodes,
                    **_alike(styles),
                }
            ),
            "golden cases" if computed == 0 else f"{computed} golden cases by torch",
            (),
            GoldenRequest(dataclasses.replace(recipe, rewrites=changes.rewrites), source.loras, styles=styles),
            _cost_key("golden", source.all_weights, computed, recipe.size, dependencies.calls_of(recipe)),
            cases_cost(source.all_weights, computed * dependencies.calls_of(recipe), source.area(recipe)),
        )
        return self._add(step), pairs

    def _calibration(
        self, recipe: Recipe, source: dependencies.Source, golden: str, judging: _Pairs
    ) -> _Calibrated | None:
        """Add the step for calibration cases; None if the golden cases serve for calibration or none are needed."""
        plan = recipe.calibration
        if plan is None or not needs_calibration(recipe):
            return None
        pairs = calibration_pairs(recipe.name, plan, judging)
        asked = {
            **dataclasses.asdict(dependencies.changes_of(recipe)),
            "pairs": pairs,
            "variant": dataclasses.asdict(recipe.variant),
            "encodes": recipe.encodes,
        }
        step = Step(
            key_of({"step": "calibration", **source.common, **asked}),
            f"{len(pairs)} calibration cases by torch",
            (golden,),
            CalibrationRequest(recipe, source.loras, golden),
            _cost_key("calibration", source.all_weights, len(pairs), recipe.size, dependencies.calls_of(recipe)),
            cases_cost(source.all_weights, len(pairs) * dependencies.calls_of(recipe), source.area(recipe)),
        )
        return _Calibrated(self._add(step), asked)

    def _artifact(
        self,
        recipe: Recipe,
        name: str,
        source: dependencies.Source,
        golden: str,
        calibrated: _Calibrated | None,
        styles: tuple[StyleInput, ...],
    ) -> str:
        """Add the step for one artifact and return its key.

        The key excludes everything that the artifact does not depend on: thresholds, names, schemes of other
        components, rewrites that fire elsewhere, and weights of other components. The parts of their configs that it
        depends on are in the metadata.
        """
        scheme, checkpoint = recipe.schemes[name], source.checkpoint
        if (steps := steps_of(checkpoint.config, recipe.sampler)) is not None:
            steps.check_rewrites(recipe.rewrites)
        size = bytes_of(recipe, source)[name]
        notes = source.notes[dependencies.whole(recipe.variant)][whole_of(name)] | dependencies.steps_notes(
            checkpoint, recipe.sampler
        )
        part = dependencies.alone(recipe if styles else dataclasses.replace(recipe, style_rank=None), name)
        plain = recipe_to_dict(part)
        content = {
            "step": "artifact",
            "maker": maker(),
            "tools": tools_of(recipe.target, family_of(checkpoint.config).form.libraries),
            "notes": notes,
            **{field: plain.get(field) for field in dependencies.OF_AN_ARTIFACT},
            # A graph that onnxruntime fused for a processor is valid only on the machine where it was fused.
            "host": platform.node() if recipe.form else None,
            **_alike(styles),
        }
        cases = calibrated.key if calibrated and dependencies.is_calibrated(scheme) else None
        if calibrated and cases:
            before = dependencies.makers_of_inputs(
                graph_of(checkpoint.at(recipe.variant).config),
                checkpoint.file_hashes(),
                name,
                checkpoint.config.takes_picture,
            )
            content["calibrated on"] = {**calibrated.asked, "by": before}
        elif dependencies.is_calibrated(scheme):
            content["calibrated on"] = golden
        if dependencies.changes_of(part).rewrites:
            content["trained"] = checkpoint.trained_substitutions
        step = Step(
            key_of(content),
            f"{recipe.name}: {name}",
            (golden,) if cases is None else (golden, cases),
            ArtifactRequest(part, source.loras, name, notes, golden, cases, styles=styles),
            _cost_key("artifact", recipe.target, name, size, scheme, recipe.size),
            artifact_cost(recipe.target, name, scheme, size, source.area(recipe)),
        )
        return self._add(step)

    def _prompts(self, recipe: Recipe, source: dependencies.Source, styles: tuple[StyleInput, ...]) -> tuple[str, ...]:
        """Add the step for the stored text embeddings and return its key; nothing if the recipe stores none.

        Raises:
            RecipeError: the checkpoint has no text encoder, or a style changes one that the export leaves out.
        """
        if recipe.prompts is None:
            return ()
        changing = [style.name for style in styles if {*style.components} & {*TEXT_ENCODERS}]
        if changing and not recipe.prompts.text_encoder:
            raise RecipeError(
                f"recipe {recipe.name}: the style {changing[0]} changes the text encoder, which --no-text-encoder "
                "leaves out; leave out one of the two"
            )
        config = source.checkpoint.at(recipe.variant).config
        weights = [source.weights[row.name] for row in text_encoders(family_of(config))]
        if not weights:
            raise RecipeError(f"recipe {recipe.name}: the checkpoint has no text encoder; leave out [prompts]")
        texts = recipe.prompts.texts(steps_of(config, recipe.sampler))
        changes = dependencies.changes_of(recipe)
        asked = {**dataclasses.asdict(changes), "variant": dataclasses.asdict(recipe.variant), "texts": texts}
        step = Step(
            key_of({"step": "prompts", **source.common, **asked}),
            f"embeddings of {len(texts)} prompts by torch",
            (),
            PromptsRequest(recipe, source.loras),
            _cost_key("prompts", weights, len(texts)),
            cases_cost(sum(weights), len(texts)),
        )
        return (self._add(step),)

    def _add(self, step: Step) -> str:
        """Add a step unless one with its key exists, and return the key."""
        self.steps.setdefault(step.key, step)
        return step.key


def _alike(styles: tuple[StyleInput, ...]) -> dict[str, object]:
    """Return the part of a cache key for styles; empty without any. The names of the steps' inputs are left out."""
    fields = [(style.name, style.sha256, style.scale, style.components) for style in styles]
    return {"styles": fields} if styles else {}


def _cost_key(*what: Any) -> str:
    return key_of({"alike": [repr(one) for one in what]})
