"""What one module's weights do to the picture, measured on the nano checkpoint."""

from __future__ import annotations

import dataclasses
import pickle
from functools import cache
from typing import Any

import pytest
import torch

from md_export.engine.search.frontier import Candidate, Form, decibels
from md_export.engine.search.measurements import Pass
from md_export.engine.search.probe import Probe
from md_export.engine.search.quality import rehearse
from md_export.engine.search.request import STARTS
from md_export.engine.search.results import chosen_recipe
from md_export.engine.search.sensitivity import (
    PassRequest,
    Probing,
    list_modules,
    measure,
    noises_of,
    probe_of,
    stored_bytes,
)
from md_export.parity.golden.folder import read_golden
from md_export.spec.recipe import Recipe
from md_export.spec.recipe_file import load_recipe
from md_export.spec.scheme import WeightStorage
from md_export.spec.shipped_files import builtin_recipe, nano_checkpoint

MODULE = "decoder.up_blocks.0.resnets.0.conv1"
GOLDEN = nano_checkpoint() / "golden"


def recipe_of(target: str, rounding: Any = "nearest") -> Recipe:
    recipe = load_recipe(builtin_recipe(target, STARTS[target].precision))
    schemes = {
        name: dataclasses.replace(scheme, rounding=rounding, keep_float=()) for name, scheme in recipe.schemes.items()
    }
    return dataclasses.replace(recipe, schemes=schemes)


@cache
def measured(target: str, rounding: str = "nearest") -> tuple[Candidate, ...]:
    on = asked(recipe_of(target, rounding), STARTS[target].forms)
    (module,) = [module for module in list_modules(on) if module.path == MODULE]
    return tuple(
        one
        if one.form.is_float
        else Candidate(one.form, one.bytes, *noises_of(probe_of(on), "vae_decoder", MODULE, one.form))
        for one in module.candidates
    )


def asked(recipe: Recipe, forms: tuple[Form, ...] = (Form("int4"),)) -> Probing:
    return Probing(nano_checkpoint(), recipe, ("vae_decoder",), GOLDEN, 8, GOLDEN, forms)


@pytest.mark.parametrize("target", STARTS)
def test_more_bits_are_less_noise_and_float_is_none(target: str) -> None:
    found = measured(target)
    assert [one.form for one in found] == list(STARTS[target].forms)
    # The coarsest of each type of weights.
    by_type = {one.form.weights: one for one in sorted(found, key=lambda one: one.bytes, reverse=True)}
    noises = [one.noise for one in sorted(by_type.values(), key=lambda one: one.bytes)]
    assert noises == sorted(set(noises), reverse=True)
    assert noises[-1] == 0
    assert 20 < decibels(noises[0]) < 80


def test_compensated_rounding_is_less_noise() -> None:
    nearest, compensated = measured("onnx"), measured("onnx", "gptq")
    for one, other in zip(nearest[:2], compensated[:2], strict=True):
        assert other.own_noise < 0.8 * one.own_noise, one.form


def test_a_measurement_leaves_the_module_as_it_was() -> None:
    probe = Probe(nano_checkpoint(), recipe_of("tflite"), read_golden(GOLDEN).cases[:1])
    part = probe.parts["vae_decoder"]
    before = {name: value.clone() for name, value in part.module.state_dict().items()}
    upsampler = "decoder.up_blocks.0.upsamplers.0.conv"
    phases = part.module.get_buffer(f"{upsampler}.phases").clone()
    for path in (MODULE, upsampler):
        assert all(noise > 0 for noise in noises_of(probe, "vae_decoder", path, Form("int4")))
    after = part.module.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert torch.equal(phases, part.module.get_buffer(f"{upsampler}.phases"))


def test_a_rehearsal_of_one_module_is_what_was_measured_of_it() -> None:
    recipe, cases = recipe_of("onnx"), read_golden(GOLDEN).cases[:1]
    probe = Probe(nano_checkpoint(), recipe, cases)
    noise, own_noise = noises_of(probe, "vae_decoder", MODULE, Form("int4"))
    forms = {
        module.path: Form("int4" if module.path == MODULE else "float32") for module in list_modules(asked(recipe))
    }
    alone = dataclasses.replace(recipe, components=("vae_decoder",))
    quality = rehearse(nano_checkpoint(), chosen_recipe(alone, {"vae_decoder": forms}, "one"), cases, cases)
    assert quality.snr_db["vae_decoder"] == pytest.approx(decibels(own_noise), abs=0.01)
    # The chain rounds a little otherwise than golden inputs do.
    assert quality.picture_db == pytest.approx(decibels(noise), abs=0.1)


def test_modules_are_those_that_the_target_stores_small() -> None:
    recipe = recipe_of("onnx")
    kept = dataclasses.replace(recipe.schemes["vae_decoder"], keep_float=("decoder.conv_in",))
    recipe = dataclasses.replace(recipe, schemes={**recipe.schemes, "vae_decoder": kept})
    found = list_modules(dataclasses.replace(asked(recipe), components=("vae_decoder", "text_encoder")))
    assert {module.component for module in found} == {"vae_decoder", "text_encoder"}
    assert all(one.noise == one.own_noise == 0 < one.bytes for module in found for one in module.candidates)
    paths = {module.path for module in found}
    assert MODULE in paths
    assert "decoder.conv_in" not in paths
    assert not any("position_embedding" in path or "norm" in path for path in paths)


def test_measuring_takes_and_gives_what_travels_between_processes() -> None:
    request = PassRequest(asked(recipe_of("onnx")), "vae_decoder", MODULE, Form("int4"))
    found = pickle.loads(pickle.dumps(measure(pickle.loads(pickle.dumps(request)))))  # noqa: S301
    (expected,) = [one for one in measured("onnx") if one.form == Form("int4")]
    assert found == Pass("vae_decoder", MODULE, Form("int4"), expected.noise, expected.own_noise)


def test_stored_bytes_count_scales() -> None:
    layer = torch.nn.Linear(32, 4)
    assert stored_bytes(layer, WeightStorage(4, (4, 1), levels=7, scale_bits=32)) == 64 + 16
