"""Estimates from random directions beside passes, on a small random model with text encoder, UNet and decoder."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from md_export.checkpoint import open_checkpoint
from md_export.checkpoint.architectures import write_checkpoint
from md_export.engine.search import hutchinson
from md_export.engine.search.frontier import Candidate, Form, Module
from md_export.engine.search.hutchinson import Estimator
from md_export.engine.search.rounding_errors import Error, Errors, errors_of
from md_export.engine.search.sensitivity import (
    Probing,
    input_sums,
    list_modules,
    noises_of,
    probe_of,
    scheme_of,
    storage_in,
    stored,
)
from md_export.engine.search.wiring import Wiring
from md_export.errors import RuntimeFault
from md_export.parity.golden.case import GoldenCase
from md_export.parity.golden.folder import write_golden
from md_export.parity.golden.prepare import golden_source
from md_export.spec.recipe_file import load_recipe
from md_export.spec.shipped_files import builtin_recipe
from md_export.spec.tensors import Arrays
from small_models import STABLE

DIRECTIONS = 16
# The mean of so many samples, relative to its expectation, is χ²₁₆/16; 1 in 20,000 is beyond these.
LEAST, MOST = 0.2, 3.0
PATHS = (
    "encoder.layers.0.self_attn.q_proj",
    "encoder.layers.1.mlp.fc2",
    "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k",
    "down_blocks.1.resnets.0.conv2",
    "mid_block.resnets.0.conv1",
    "up_blocks.1.resnets.0.conv1",
    "decoder.mid_block.resnets.0.conv1",
    "decoder.up_blocks.0.upsamplers.0.conv",
    "decoder.conv_out",
)


@pytest.fixture(scope="module")
def on(tmp_path_factory: pytest.TempPathFactory) -> Probing:
    """Measurements of int4 in a TFLite recipe with calibrated rounding and corrected biases."""
    folder = tmp_path_factory.mktemp("small")
    write_checkpoint(folder / "model", STABLE, seed=7, dtype="float32")
    (folder / "golden").mkdir()
    write_golden(golden_source(open_checkpoint(folder / "model")), [("a cat", 0), ("a dog", 1)], folder / "golden")
    recipe = load_recipe(builtin_recipe("tflite", "int4"))
    schemes = {
        name: dataclasses.replace(scheme, rounding="gptq", bias_correction=True, keep_float=())
        for name, scheme in recipe.schemes.items()
    }
    recipe = dataclasses.replace(recipe, schemes=schemes)
    forms = (Form("int4"), Form("float32"))
    return Probing(folder / "model", recipe, recipe.components, folder / "golden", 1, folder / "golden", forms)


@pytest.fixture(scope="module")
def listed(on: Probing) -> tuple[Module, ...]:
    return tuple(module for module in list_modules(on) if module.path in PATHS)


@pytest.fixture(scope="module")
def ratios(on: Probing, listed: tuple[Module, ...]) -> Iterator[NDArray[np.float64]]:
    """``[2, modules, 2]``: estimates relative to passes, of the picture and of the output; of shuffled errors, too."""

    def doubled(*args: Any) -> Errors:
        errors = errors_of(*args)
        torch.manual_seed(0)
        return Errors({name: tuple(map(beside, each)) for name, each in errors.by_component.items()}, 2 * errors.count)

    def beside(one: Error) -> Error:
        shuffled = one.values[:, torch.randperm(one.values.shape[1])]
        return Error(one.tensor, torch.cat([one.values, shuffled]), 2 * one.start)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hutchinson, "errors_of", doubled)
        estimator = Estimator(probe_of(on), listed)
        taken = [estimator.sample(number) for number in range(DIRECTIONS)]
    means = np.mean([(one.noise, one.own_noise) for one in taken], axis=0).reshape(2, len(listed), 2)
    passes = [noises_of(probe_of(on), module.component, module.path, Form("int4")) for module in listed]
    yield means.transpose(2, 1, 0) / np.array(passes)


def test_estimates_are_what_passes_measure(ratios: NDArray[np.float64]) -> None:
    assert ratios.shape[1] == len(PATHS)
    assert np.all(ratios[0] > LEAST)
    assert np.all(ratios[0] < MOST)
    assert ratios[0].mean() == pytest.approx(1, abs=0.3)


def test_other_errors_of_the_same_size_are_told_apart(ratios: NDArray[np.float64]) -> None:
    """The control: calibrated rounding leaves errors where outputs depend little on them, and shuffling moves them."""
    beyond = (ratios[1] < LEAST) | (ratios[1] > MOST)
    assert np.all(beyond.mean(axis=0) > 0.5)


def test_a_bias_that_takes_all_of_an_error_off_leaves_no_noise(on: Probing) -> None:
    """All cases have one timestep, so the first layer that reads it has one input; the control corrects no bias."""
    (one,) = [module for module in list_modules(on) if module.path == "time_embedding.linear_1"]
    plain = {
        name: dataclasses.replace(scheme, rounding="nearest", bias_correction=False)
        for name, scheme in on.recipe.schemes.items()
    }
    other = dataclasses.replace(on, recipe=dataclasses.replace(on.recipe, schemes=plain))
    corrected, uncorrected = (Estimator(probe_of(each), [one]).sample(0).own_noise for each in (on, other))
    assert corrected[0] < 1e-8 * uncorrected[0]


def stored_in(form: Form, module: Module) -> Module:
    """The module with one form, whatever its bytes."""
    return dataclasses.replace(module, candidates=(Candidate(form, 1, 0.0, 0.0),))


def test_a_sample_is_a_finite_difference(on: Probing, listed: tuple[Module, ...]) -> None:
    """In one direction: (v·Δ)², Δ the decoder's output with a module stored less the one without, exact to first order.

    The control is another direction, whose sample is another number.
    """
    probe = probe_of(on)
    decoder = tuple(stored_in(Form("int8"), module) for module in listed if module.component == "vae_decoder")
    part, case = probe.parts["vae_decoder"], probe.cases[0]
    golden: Any = part.run(part.inputs_of(case))
    samples = [Estimator(probe, decoder).sample(number) for number in (0, 2)]
    v = torch.randn(golden.shape, generator=torch.Generator().manual_seed(0)).numpy()
    for place, module in enumerate(decoder):
        layer = part.module.get_submodule(module.path)
        scheme = scheme_of(on.recipe.schemes["vae_decoder"], Form("int8"))
        storage = storage_in(probe, "vae_decoder", module.path, Form("int8"))
        assert storage is not None
        with stored(layer, storage, scheme, input_sums(probe, "vae_decoder", [module.path]).get(module.path)):
            change = part.run(part.inputs_of(case)) - golden
        expected = float((v * change).sum()) ** 2 / float((golden**2).mean()) / golden.size
        assert samples[0].own_noise[place] == pytest.approx(expected, rel=0.1)
        assert samples[1].own_noise[place] != pytest.approx(expected, rel=0.1)


def test_the_model_stays_as_it_was(on: Probing, listed: tuple[Module, ...]) -> None:
    """No gradient, hook or recomputation is left, so passes after an estimate measure the same."""
    part = probe_of(on).parts["unet"]
    before = part.run(part.inputs_of(probe_of(on).cases[0]))
    Estimator(probe_of(on), listed).sample(0)
    for name, value in (*part.module.named_parameters(), *part.module.named_buffers()):
        assert value.grad is None, name
        assert not value.requires_grad, name
    assert not any("forward" in vars(layer) for layer in part.module.modules())
    assert np.array_equal(part.run(part.inputs_of(probe_of(on).cases[0])), before)


def test_a_sample_does_not_depend_on_the_ones_before(on: Probing, listed: tuple[Module, ...]) -> None:
    """Directions may be taken by any worker, in any order."""
    probe, decoder = probe_of(on), tuple(module for module in listed if module.component == "vae_decoder")
    first, second = Estimator(probe, decoder), Estimator(probe, decoder)
    samples = [first.sample(number) for number in range(3)]
    assert second.sample(2) == samples[2]
    assert len({one.noise for one in samples}) == 3


@pytest.mark.parametrize("layout", [None, "swift"])
@pytest.mark.parametrize("component", ["text_encoder", "unet"])
def test_cotangents_go_back_as_values_come(on: Probing, component: str, layout: Literal["swift"] | None) -> None:
    """The adjoint's definition: ⟨u, A·x⟩ = ⟨Aᵀ·u, x⟩ for what lies between two components."""
    recipe = dataclasses.replace(load_recipe(builtin_recipe("coreml", "fp16")), layout=layout)
    probe = probe_of(dataclasses.replace(on, recipe=recipe))
    case, drawn = probe.cases[1], np.random.default_rng(1)
    shapes = {name: value.shape for name, value in probe.parts[component].wanted(case).items()}
    x = {name: drawn.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    zeros = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    offset: Any = probe.inputs_after(component, case, zeros)
    made: Any = probe.inputs_after(component, case, x)
    u = {name: torch.from_numpy(drawn.standard_normal(value.shape)).float() for name, value in made.items()}
    back = Wiring(probe, component, probe.cases[0]).pull_back(u)
    forth = sum(float((u[name].numpy() * (made[name] - offset[name])).sum()) for name in made)
    assert abs(forth) > 1
    assert sum(float((value.numpy() * x[name]).sum()) for name, value in back.items()) == pytest.approx(forth, rel=1e-4)


def test_other_wirings_are_refused(on: Probing, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each element of a mean depends on all elements."""
    probe = probe_of(on)

    def means(_component: str, _case: GoldenCase, outputs: Arrays) -> dict[tuple[str, str], Any]:
        return {("vae_decoder", "latent"): np.full(4, outputs["out_sample"].mean(), np.float32)}

    monkeypatch.setattr(probe, "inputs_after", means)
    with pytest.raises(RuntimeFault, match="unet feeds vae_decoder latent by more than a scale and an offset"):
        Wiring(probe, "unet", probe.cases[0])
