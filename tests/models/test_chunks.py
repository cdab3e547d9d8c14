"""A module in chunks computes what it computes whole, bit by bit, and no weight is in two chunks."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping, Sequence

import pytest
import torch
from torch import Tensor, nn

from md_export.errors import UsageError
from md_export.models.chunks import Chunk, Part, borders, chunk_bytes, cut, parts_of, values_of_denoiser
from md_export.models.config import ModelConfig
from md_export.models.families import family_of
from md_export.models.sampling.sampler import one_step
from md_export.rewrites import Consent, apply_rewrites
from md_export.rewrites.adopt import adopt
from md_export.spec.recipe_file import load_recipe
from md_export.spec.shipped_files import builtin_recipe
from small_models import DIT, NANO, OTHER, PIXART, STABLE, XL_SHORT, random_inputs

CONFIGS = {"nano": NANO, "other": OTHER, "stable": STABLE, "xl": XL_SHORT, "pixart": PIXART, "dit": DIT}


def denoiser(config: ModelConfig) -> tuple[nn.Module, dict[str, Tensor], tuple[Part, ...]]:
    """The module, inputs for it, and its parts."""
    row = family_of(config)[family_of(config).denoised.node]
    torch.manual_seed(0)
    module = row.build(config).eval().requires_grad_(False)
    arrays = random_inputs(row.name, config, 0)
    parts = parts_of(lambda: row.build(config), row.input_specs(config))
    return module, {name: torch.from_numpy(value) for name, value in arrays.items()}, parts


def chunks_of(config: ModelConfig, module: nn.Module, parts: Sequence[Part], count: int) -> tuple[Chunk, ...]:
    row = family_of(config)[family_of(config).denoised.node]
    return cut(module, row.input_specs(config), row.output_specs(config), borders(parts, count))


def outputs_of(chunk: Chunk, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a chunk makes of ``values``, by name; of the shapes that it says."""
    made = chunk.module(*(values[spec.name] for spec in chunk.inputs))
    made = made if isinstance(made, tuple) else (made,)
    assert [tuple(value.shape) for value in made] == [spec.shape for spec in chunk.outputs]
    return {spec.name: value for spec, value in zip(chunk.outputs, made, strict=True)}


def in_turn(chunks: Sequence[Chunk], given: Mapping[str, Tensor], wiring: Mapping[str, str] = {}) -> Tensor:
    """Output of the last chunk; ``wiring``: names of values that take the place of others."""
    values = dict(given)
    for chunk in chunks:
        values |= outputs_of(
            chunk, {**values, **{name: values[other] for name, other in wiring.items() if other in values}}
        )
    return values["out_sample"]


@pytest.mark.parametrize("name", CONFIGS)
def test_chunks_compute_what_the_whole_computes(name: str) -> None:
    module, given, parts = denoiser(CONFIGS[name])
    whole = module(*given.values())
    own = dict(module.named_parameters())
    for count in (2, 3):
        chunks = chunks_of(CONFIGS[name], module, parts, count)
        assert torch.equal(in_turn(chunks, given), whole)
        held = [dict(chunk.module.named_parameters()) for chunk in chunks]
        assert sum(map(len, held)) == len(own), "no parameter is in two chunks"
        assert all(value is own[path] for of in held for path, value in of.items()), "under its own path"
    assert torch.equal(module(*given.values()), whole), "the module stays what it is"


def test_a_copy_of_a_chunk_is_whole() -> None:
    """As lowering in float16 copies it, and after a rewrite."""
    module, given, parts = denoiser(STABLE)
    adopt(module)
    whole = module(*given.values())
    first, second = chunks_of(STABLE, module, parts, 2)
    copies = (Chunk(copy.deepcopy(first.module), first.inputs, first.outputs), second)
    assert torch.equal(in_turn(copies, given), whole)
    assert torch.equal(in_turn((first, second), given), whole), "a copy holds nothing of the original"
    first.module.returns_copies = True
    assert torch.equal(in_turn((first, second), given), whole)


@pytest.mark.parametrize("target", ["coreml", "tflite"])
@pytest.mark.parametrize("name", ["stable", "pixart", "dit"])
def test_rewritten_chunks_give_each_other_what_those_of_the_whole_do(name: str, target: str) -> None:
    """Golden cases hold values between chunks of a module that is not rewritten."""
    config = CONFIGS[name]
    module, given, parts = denoiser(config)
    values = dict(given)
    for chunk in chunks_of(config, module, parts, 3):
        values |= outputs_of(chunk, values)
    row, recipe = family_of(config)[family_of(config).denoised.node], load_recipe(builtin_recipe(target, "fp16"))
    apply_rewrites(recipe.rewrites, row.name, module, one_step(config), Consent((), allow_drift=False))
    specs = row.input_specs(config), row.output_specs(config)
    for chunk in cut(module, *specs, borders(parts, 3), values_of_denoiser(config)):
        for own, made in outputs_of(chunk, values).items():
            assert made.shape == values[own].shape
            assert torch.allclose(made, values[own], rtol=1e-3, atol=1e-4)


def test_a_rewrite_of_what_crosses_a_border_is_refused() -> None:
    """SDXL's: it folds the timestep into what is added to the time embedding."""
    module, _, parts = denoiser(XL_SHORT)
    apply_rewrites(("fold_timestep",), "unet", module, one_step(XL_SHORT), Consent((), allow_drift=False))
    row = family_of(XL_SHORT)["unet"]
    inputs = [spec for spec in row.input_specs(XL_SHORT) if spec.name != "timestep"]
    with pytest.raises(UsageError, match="a rewrite of the recipe changes border_time_embedding"):
        cut(module, inputs, row.output_specs(XL_SHORT), borders(parts, 2), values_of_denoiser(XL_SHORT))


def test_exchanged_skip_connections_are_seen() -> None:
    module, given, parts = denoiser(STABLE)
    chunks = chunks_of(STABLE, module, parts, 2)
    skips = ("border_conv_in", "border_down_blocks_0_resnets_0")
    shapes = {spec.name: spec.shape for spec in chunks[1].inputs}
    assert shapes[skips[0]] == shapes[skips[1]]
    assert not torch.equal(
        in_turn(chunks, given, dict(zip(skips, reversed(skips), strict=True))), module(*given.values())
    )


def test_the_largest_chunk_is_as_small_as_can_be() -> None:
    sizes = (5, 0, 9, 3, 0, 7, 7, 1)
    parts = [Part(str(place), size) for place, size in enumerate(sizes)]
    for count in (2, 3, 4, 6):
        ends = borders(parts, count)
        held = chunk_bytes(parts, ends)
        assert len(held) == count
        assert sum(held) == sum(sizes)
        tried = itertools.combinations(range(1, len(sizes)), count - 1)
        cuts = ([sum(sizes[a:b]) for a, b in itertools.pairwise((0, *at, len(sizes)))] for at in tried)
        assert max(held) == min(map(max, cuts))


@pytest.mark.parametrize("count", [0, 1, 7])
def test_a_wrong_number_of_chunks_is_refused(count: int) -> None:
    parts = [Part(str(place), size) for place, size in enumerate((5, 0, 9, 3, 0, 7, 7, 1))]
    with pytest.raises(UsageError, match=f"chunks {count}: this model can be cut into 2 to 6"):
        borders(parts, count)


class Late(nn.Module):
    """A part that runs before another, whose state it takes: what no cut between them leaves in order."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        """``[1, 2]`` → ``[1, 2]``."""
        out: Tensor = self.a(self.b(self.a(x)))
        return out


def test_a_part_that_takes_what_comes_later_is_refused() -> None:
    row = family_of(NANO)["unet"]
    spec = row.output_specs(NANO)[0]
    given = type(spec)("x", (1, 2), "float32")
    with pytest.raises(UsageError, match="feeds a part that runs before it"):
        cut(Late().eval(), (given,), (type(spec)("y", (1, 2), "float32"),), ("a",))
