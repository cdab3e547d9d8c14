"""The model graph: rows that refer to each other, and the walk over any backend."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from md_export.models.families import FAMILIES, family_named
from md_export.models.families.mobile_diffusion import MOBILE_DIFFUSION
from md_export.models.graph import Component, Family, Port
from md_export.models.sampling.sampler import Sampler
from md_export.models.tokenizers import LABELS_FOLDER
from md_export.models.values import GIVEN, NOISE, SAMPLER, Value, calls_in
from md_export.models.walk import Steps, Tensors, walk
from md_export.spec.sampler import OneStep
from md_export.spec.tensors import Array, Arrays
from md_export.targets.layouts import LAYOUTS

ONE = OneStep(999, 0.5, 1.0, 0.5, "sample")


def declared(*components: Component) -> Family:
    return Family(
        MOBILE_DIFFUSION.form,
        components,
        outside=(*GIVEN, *SAMPLER),
        denoised=MOBILE_DIFFUSION.denoised,
        encoded=MOBILE_DIFFUSION.encoded,
        image=MOBILE_DIFFUSION.image,
        tokens=MOBILE_DIFFUSION.tokens,
    )


def test_an_input_without_a_producer_is_refused() -> None:
    declared(*MOBILE_DIFFUSION.components)
    unet = MOBILE_DIFFUSION["unet"]
    nobody = Port("pooled", Value("text_encoder", "pooled_output", NOISE.kind))
    odd = Component("unet", "unet", unet.build, (*unet.inputs, nobody), unet.outputs, called="per step")
    rows = [odd if row.name == "unet" else row for row in MOBILE_DIFFUSION.components]
    with pytest.raises(ValueError, match=r"unet\.pooled needs text_encoder\.pooled_output, which no component"):
        declared(*rows)
    with pytest.raises(ValueError, match=r"controlnet\.encoder_hidden_states needs text_encoder\.last_hidden_state"):
        declared(*(row for row in MOBILE_DIFFUSION.components if row.name != "text_encoder"))
    with pytest.raises(ValueError, match="in the order text_encoder"):
        declared(*MOBILE_DIFFUSION.components[1:2], *MOBILE_DIFFUSION.components[:1], *MOBILE_DIFFUSION.components[2:])
    with pytest.raises(KeyError, match="pooled_output"):
        MOBILE_DIFFUSION["text_encoder"]["pooled_output"]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.form.name)
def test_a_family_is_found_by_its_name(family: Family) -> None:
    assert family_named(family.form.name) is family
    assert {row.folder for row in family.required} | {*family.tokens} < {*family.form.classes, LABELS_FOLDER}


def test_layouts_know_inputs_and_outputs_of_the_graph() -> None:
    for layout in LAYOUTS.values():
        for component, surface in layout.surfaces.items():
            assert set(surface.inputs) <= {port.name for port in MOBILE_DIFFUSION[component].inputs}
            assert set(surface.outputs) <= {output.name for output in MOBILE_DIFFUSION[component].outputs}


class Recorded:
    """A backend of numbers; ``broken`` computes nothing."""

    def __init__(self, broken: str = "") -> None:
        self.asked: list[tuple[str, int]] = []
        self.broken = broken

    def run(self, component: str, batches: Sequence[Arrays]) -> Sequence[Arrays]:
        self.asked.append((component, len(batches)))
        if component == self.broken:
            return []
        made: Array = np.zeros((1, 3, 4, 4), np.float32)
        names = {"text_encoder": "last_hidden_state", "unet": "out_sample", "vae_decoder": "image"}
        return [{names[component]: made} for _ in batches]

    def take(self, steps: Steps, pictures: Sequence[Tensors]) -> None:
        steps.take(self.run, pictures)


def begun(seed: int) -> Tensors:
    noise = np.random.default_rng(seed).standard_normal((1, 3, 4, 4)).astype(np.float32)
    return {"given.noise": noise, "given.input_ids": np.zeros((1, 5), np.int32)}


def test_each_component_is_asked_once_for_all_pictures() -> None:
    backend = Recorded()
    made = walk(MOBILE_DIFFUSION, MOBILE_DIFFUSION.required, backend, [begun(0), begun(1)], Sampler(ONE))
    assert backend.asked == [("text_encoder", 2), ("unet", 2), ("vae_decoder", 2)]
    for values, seed in zip(made, (0, 1), strict=True):
        assert np.array_equal(values["sampler.latent"], begun(seed)["given.noise"])
        assert values["made.picture"].shape == (4, 4, 3)


@pytest.mark.parametrize("broken", ["text_encoder", "unet", "vae_decoder"])
def test_what_follows_a_component_that_fails_is_visited_without_inputs(broken: str) -> None:
    backend = Recorded(broken)
    (values,) = walk(MOBILE_DIFFUSION, MOBILE_DIFFUSION.required, backend, [begun(0)], Sampler(ONE))
    place = [name for name, _ in backend.asked].index(broken)
    assert [count for _, count in backend.asked] == [1] * (place + 1) + [0] * (2 - place)
    assert "made.picture" not in values


def test_calls_are_counted_by_their_numbers() -> None:
    assert calls_in(["a.b.16", "a.b.3", "a.bc.1", "a.b"], "a.b") == (3, 16)
