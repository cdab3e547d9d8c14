"""Build the torch module to lower: a component of the checkpoint with the recipe's rewrites and layout."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from md_export.checkpoint import Checkpoint
from md_export.models.chunk_module import own_paths
from md_export.models.chunks import chunk_ends, cut, values_of_denoiser
from md_export.models.config import ModelConfig
from md_export.models.families import family_of
from md_export.models.graph import Component
from md_export.models.sampling.generate import run_torch
from md_export.models.sampling.sampler import one_step, steps_of
from md_export.parity.golden.case import GoldenCase
from md_export.parity.golden.prepare import calibration_cases
from md_export.parity.golden.surface import calibration_inputs, inputs_of, outputs_of
from md_export.parity.metrics import compare
from md_export.rewrites import REWRITES, Consent, apply_rewrites
from md_export.rewrites.lora_branches import Factors, factors_of, put_beside
from md_export.spec.artifact import RewriteRecord
from md_export.spec.names import chunk_number, whole_of
from md_export.spec.recipe import Recipe
from md_export.spec.scheme import QuantScheme, WeightStorage
from md_export.spec.tensors import Array, Arrays, TensorSpec, joined
from md_export.system.workspace import scratch_folder
from md_export.targets import TARGETS
from md_export.targets.contract import Target
from md_export.targets.layouts import layout_of
from md_export.targets.lowering import check_globs
from md_export.targets.quantization.adjust import adjust_weights


@dataclass(frozen=True)
class Rewritten:
    """A component in the form that is lowered.

    Attributes:
        module: in eval mode and float32; positional inputs in the order of ``inputs``, output a tensor or a tuple.
        inputs, outputs: specifications of an artifact made from it.
        records: rewrites that were applied.
        style_inputs: further inputs of an artifact of it, for styles; the module has none of them.
    """

    component: str
    recipe: Recipe
    module: nn.Module
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    records: tuple[RewriteRecord, ...]
    style_inputs: tuple[TensorSpec, ...] = ()

    @property
    def scheme(self) -> QuantScheme:
        """The component's scheme; a chunk's without globs for modules of other chunks."""
        scheme = self.recipe.schemes[self.component]
        return scheme.within(own_paths(self.module)) if chunk_number(self.component) else scheme

    def inputs_of(self, case: GoldenCase) -> Arrays:
        """Return a golden case's inputs under the artifact's names and in its layout, without a style."""
        return inputs_of(self.recipe, self, case) | {spec.name: spec.zeros() for spec in self.style_inputs}

    def output_of(self, case: GoldenCase) -> Array:
        """Return a golden case's expected output; several outputs become one array, see :func:`joined`."""
        return joined(self.wanted(case))

    def wanted(self, case: GoldenCase) -> dict[str, Array]:
        """Return a golden case's expected outputs by the artifact's names."""
        return outputs_of(self.recipe, self, case)

    def run(self, inputs: Arrays) -> Array:
        """Execute the torch module once and return its output; several outputs become one array, see :func:`joined`."""
        return joined(self.answers(inputs))

    def answers(self, inputs: Arrays) -> dict[str, Array]:
        """Execute the torch module once and return its outputs by the artifact's names."""
        return run_torch(self.module, [inputs[spec.name] for spec in self.inputs], self.outputs)

    def snr_db(self, case: GoldenCase) -> float:
        """Return the torch module's worst SNR in dB against the golden output, over the case's calls."""
        calls = case.calls(self.component)
        return min(compare(self.run(self.inputs_of(call)), self.output_of(call)).snr_db for call in calls)


def rewritten(checkpoint: Checkpoint, name: str, recipe: Recipe) -> Rewritten:
    """Build one component of ``checkpoint`` with the rewrites and layout of ``recipe``.

    Raises:
        RewriteError: a rewrite is refused, or fires nowhere.
        UsageError: the component cannot be cut into the recipe's chunks.
    """
    checkpoint, whole = checkpoint.at(recipe.variant), whole_of(name)
    if recipe.unfused and whole in checkpoint.loras_by_component():
        module, changed, records = _both(checkpoint, whole, recipe)
        put_beside(module, changed)
        del changed
    else:
        module = checkpoint.module(name)
        records = _apply(checkpoint, whole, recipe, module)
    row = family_of(checkpoint.config)[whole]
    given, made = surface(row, checkpoint.config, records)
    steps = steps_of(checkpoint.config, recipe.sampler)
    if steps is not None and steps.is_guided and row.called == "per step":
        given, made = guided(row, given), guided(row, made)
    layout = layout_of(recipe)
    layout.adapt(whole, module, given)
    inputs, outputs = layout.inputs(whole, given), layout.outputs(whole, made)
    if number := chunk_number(name):
        check_globs(whole, recipe.schemes[name], [path for path, _ in module.named_modules()])
        config = checkpoint.config
        chunk = cut(module, inputs, outputs, chunk_ends(config), values_of_denoiser(config))[number - 1]
        module, inputs, outputs = chunk.module, chunk.inputs, chunk.outputs
        chunk.module.returns_copies = recipe.target == "tflite"
    return Rewritten(name, recipe, module, inputs, outputs, records)


def _apply(
    checkpoint: Checkpoint, component: str, recipe: Recipe, module: nn.Module, other: nn.Module | None = None
) -> tuple[RewriteRecord, ...]:
    consent = Consent(checkpoint.trained_substitutions, recipe.allow_drift)
    return apply_rewrites(recipe.rewrites, component, module, one_step(checkpoint.config), consent, other)


def _both(
    checkpoint: Checkpoint, component: str, recipe: Recipe
) -> tuple[nn.Module, nn.Module, tuple[RewriteRecord, ...]]:
    """Return the rewritten component without and with the checkpoint's LoRAs, rewritten in the same way."""
    module, changed = checkpoint.without_loras(component)[0], checkpoint.module(component)
    return module, changed, _apply(checkpoint, component, recipe, module, changed)


def lora_factors(checkpoint: Checkpoint, component: str, recipe: Recipe) -> tuple[nn.Module, dict[str, Factors]]:
    """Return the rewritten component without the checkpoint's LoRAs, and what these add to each layer, by path.

    Raises:
        RewriteError: something that they change cannot be computed beside the weights.
    """
    module, changed, _ = _both(checkpoint.at(recipe.variant), component, recipe)
    return module, factors_of(module, changed)


def guided(component: Component, specs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
    """Return inputs or outputs for the empty prompt beside the prompt: batch 2, except for inputs that both share."""
    return tuple(
        spec if component.is_shared(spec.name) else dataclasses.replace(spec, shape=(2, *spec.shape[1:]))
        for spec in specs
    )


def surface(
    component: Component, config: ModelConfig, records: tuple[RewriteRecord, ...]
) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Return a rewritten component's inputs and outputs; a rewrite may remove an input or rename the output."""
    rewrites = [REWRITES[record.name] for record in records if record.fired]
    dropped = {name for rewrite in rewrites for name in rewrite.drops}
    outputs = component.output_specs(config)
    for name in (rewrite.output for rewrite in rewrites if rewrite.output):
        outputs = tuple(dataclasses.replace(output, name=name) for output in outputs)
    return tuple(spec for spec in component.input_specs(config) if spec.name not in dropped), outputs


def lowered_part(checkpoint: Checkpoint, component: str, recipe: Recipe, golden: Path) -> Rewritten:
    """Build the torch module whose weights an artifact of the recipe stores; ``golden``: the export's golden cases.

    Raises:
        RewriteError: a rewrite is refused, or fires nowhere.
        GoldenError: calibration needs the cases, and they cannot be read.
    """
    part = rewritten(checkpoint, component, recipe)
    if recipe.schemes[component].is_adjusted:
        with (
            scratch_folder() as scratch,
            calibration_cases(recipe, checkpoint, golden, scratch, lambda _: None) as made,
        ):
            adjust(part, TARGETS[recipe.target].open(), calibration_inputs(recipe, part, golden, made))
    return part


def adjust(part: Rewritten, target: Target, calibration: Sequence[Arrays]) -> tuple[str, ...]:
    """Adjust the weights of the part's module in place for its scheme's rounding; no change if the scheme needs none.

    The same module, calibration inputs and versions give the same weights, so an audit can compute them again.

    Returns:
        Paths of the modules that changed.
    """
    scheme = part.recipe.schemes[part.component]
    if not scheme.is_adjusted:
        return ()
    inputs = [tuple(torch.from_numpy(case[spec.name]) for spec in part.inputs) for case in calibration]
    return adjust_weights(part.module, scheme, storages(part, target), inputs)


def storages(part: Rewritten, target: Target) -> dict[str, WeightStorage]:
    """Return the storage of each module's weight in the target, by module path, without modules that stay float."""
    scheme = part.recipe.schemes[part.component]
    found = {
        path: target.weight_storage(path, layer, scheme.for_module(path))
        for path, layer in part.module.named_modules()
        if not scheme.keeps_float(path)
    }
    return {path: storage for path, storage in found.items() if storage is not None}
