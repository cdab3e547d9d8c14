"""Readers and metrics meet what nobody expects: about 11,000 cases, and nothing but our own errors.

A reader is given bytes: noise, and valid documents with places deleted or replaced (:mod:`hostile`). What it accepts
must be usable.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import save

from hostile import NOISE, as_json, spoiled
from md_export.errors import ArtifactError, GoldenError, RecipeError
from md_export.parity.golden.case import values_from_bytes
from md_export.parity.golden.folder import index_from_bytes
from md_export.parity.metrics import compare, first_fault, worst
from md_export.parity.subject import shortfalls
from md_export.spec.artifact import ArtifactEntry as Entry
from md_export.spec.artifact import Measured, Parity, RewriteRecord, artifact_path
from md_export.spec.manifest import SCHEMA, Manifest, manifest_from_bytes, manifest_to_dict
from md_export.spec.recipe import Tolerance
from md_export.spec.recipe_file import load_recipe, recipe_from_dict, recipe_from_toml, recipe_to_dict
from md_export.spec.shipped_files import builtin_recipe, nano_checkpoint
from md_export.spec.tensors import TensorSpec

HERE = Path("somewhere")
RECIPE = load_recipe(builtin_recipe("coreml", "w8a8"))
INDEX: dict[str, Any] = json.loads((nano_checkpoint() / "golden" / "index.json").read_text())
INDEX["cases"] = INDEX["cases"][:2]
ENTRIES = tuple(
    Entry(
        component=name,
        file=f"{name}.mlpackage",
        sha256="0" * 64,
        bytes=1,
        weights="int8",
        activations="int8_static",
        stored={"int8": 900},
        ops={"conv": 7},
        inputs=(TensorSpec("sample", (1, 8, 8, 8), "float32"),),
        outputs=(TensorSpec("out_sample", (1, 8, 8, 8), "float32"),),
        rewrites=(RewriteRecord("linear_to_conv2d", 3, True),),
        measured=Measured(1.0, 10**6),
        parity=Parity(41.5, 50.0, 0.999, 0.01),
    )
    for name in RECIPE.components
)
STEP = index_from_bytes(as_json(INDEX), HERE).one_step
MANIFEST = manifest_to_dict(Manifest(SCHEMA, "1", "coreml", RECIPE, "a", "b", {"torch": "2"}, STEP, ENTRIES, 36.1))


def many(count: int) -> settings:
    """Without a deadline: other work shares the machine."""
    return settings(max_examples=count, deadline=None, suppress_health_check=list(HealthCheck), database=None)


def use_manifest(content: bytes) -> None:
    manifest = manifest_from_bytes(content, HERE)
    for entry in manifest.artifacts:
        with pytest.raises(ArtifactError, match="is missing"):
            artifact_path(HERE, entry)
    assert manifest_from_bytes(as_json(manifest_to_dict(manifest)), HERE) == manifest


def test_the_documents_themselves_are_read() -> None:
    use_manifest(as_json(MANIFEST))
    assert len(index_from_bytes(as_json(INDEX), HERE).cases) == 2
    assert recipe_from_dict(recipe_to_dict(RECIPE), "x") == RECIPE


@many(2500)
@given(spoiled(MANIFEST).map(as_json) | NOISE)
def test_manifests(content: bytes) -> None:
    try:
        use_manifest(content)
    except (ArtifactError, RecipeError) as error:
        assert "\n" not in str(error)[:40]


@many(2500)
@given(spoiled(INDEX).map(as_json) | NOISE)
def test_golden_indices(content: bytes) -> None:
    try:
        index = index_from_bytes(content, HERE)
    except GoldenError:
        return
    assert index.cases


@many(1500)
@given(spoiled(recipe_to_dict(RECIPE)))
def test_recipes(values: Any) -> None:
    try:
        recipe = recipe_from_dict(values, "x")
    except RecipeError as error:
        assert str(error).startswith("x: ")
        return
    assert recipe_from_dict(recipe_to_dict(recipe), "x") == recipe


TOML = builtin_recipe("coreml", "w8a8").read_text().splitlines()
ODD_LINES = ("[", "[[scheme]]", "x = 1979-05-27", "snr_db = inf", "scheme = 1", '"\\ud800" = 1', "=" * 99)
LINES = st.sampled_from((*TOML, *ODD_LINES))


@many(1000)
@given(st.lists(st.tuples(st.integers(0, len(TOML) - 1), LINES), min_size=1, max_size=3), NOISE)
@example([], b"components = " + b"[" * 5000)
@example([], b"a." * 5000 + b"b = 1")
def test_recipe_files(edits: list[tuple[int, str]], noise: bytes) -> None:
    lines = list(TOML)
    for place, line in edits:
        lines[place] = line
    for content in ("\n".join(lines).encode(), noise):
        with suppress(RecipeError):
            assert recipe_from_toml(content, HERE).components


DTYPES = st.sampled_from((np.float32, np.float16, np.float64, np.int32, np.int8, np.uint8, np.bool_))
ODD = (0.0, -0.0, 1.0, -1.0, np.nan, np.inf, -np.inf, 1e-45, 1e-310, 5e-324, 3e38, 1.7e308, -1.7e308)
ODD_NAMES = ("extra", "unet.out_sample.3", "given.condition", "controlnet.residual_0")
GOLDEN: dict[str, NDArray[Any]] = {
    "given.input_ids": np.zeros((1, 7), np.int32),
    "given.noise": np.zeros((1, 8, 2, 2), np.float32),
    "sampler.timestep": np.zeros(1, np.float32),
    "text_encoder.last_hidden_state": np.zeros((1, 7, 5), np.float32),
    "unet.out_sample": np.zeros((1, 8, 2, 2), np.float32),
    "sampler.latent": np.zeros((1, 8, 2, 2), np.float32),
    "vae_decoder.image": np.zeros((1, 3, 4, 4), np.float32),
    "made.picture": np.zeros((4, 4, 3), np.float32),
}


SHAPES = st.sampled_from(((), (0,), (1,), (4,), (2, 2), (1, 4), (0, 3), (2, 1, 2)))
ODD_VALUES = st.lists(st.sampled_from(ODD), min_size=4, max_size=4)


def odd_array(dtype: Any, shape: tuple[int, ...], values: list[float]) -> NDArray[Any]:
    """Filled from the values that arithmetic trips over."""
    with np.errstate(all="ignore"):
        return np.resize(np.asarray(values), shape).astype(dtype)


ODD_ARRAYS = st.builds(odd_array, DTYPES, SHAPES, ODD_VALUES)


@many(2000)
@given(ODD_ARRAYS, ODD_ARRAYS, ODD_VALUES, st.booleans())
def test_metrics(value: NDArray[Any], other: NDArray[Any], values: list[float], alike: bool) -> None:
    reference = odd_array(value.dtype, value.shape, values) if alike else other
    if first_fault(value, reference) or first_fault(reference, value):
        broken = not value.size or not np.isfinite(value).all() or not np.isfinite(reference).all()
        assert broken or (value.shape, value.dtype) != (reference.shape, reference.dtype)
        return
    figures = compare(value, reference)
    assert np.isfinite([figures.snr_db, figures.psnr_db, figures.cosine, figures.max_abs]).all()
    if not np.array_equal(value, reference):
        assert figures.max_abs > 0
    assert worst([figures, figures]) == figures


@many(500)
@given(st.lists(st.sampled_from((np.nan, -np.inf, 0.0, 90.0)), min_size=3, max_size=3), st.sampled_from((np.nan, 0.0)))
def test_no_figure_that_is_none_passes(figures: list[float], largest: float) -> None:
    snr, psnr, cosine = figures
    parity = Parity(snr, psnr, cosine, largest)
    fell_short = {str(line).split()[0] for line in shortfalls(parity, Tolerance(50.0, 50.0, 0.5, 1.0))}
    values = {"snr": snr, "psnr": psnr, "cosine": cosine, "max": -largest}
    assert fell_short == {
        name for name, value in values.items() if not value >= {"cosine": 0.5, "max": -1.0}.get(name, 50.0)
    }


@many(1000)
@given(
    st.dictionaries(
        st.sampled_from((*GOLDEN, *ODD_NAMES)),
        ODD_ARRAYS | st.none(),
        max_size=2,
    ),
    st.data(),
)
def test_golden_files(edits: dict[str, NDArray[Any] | None], data: st.DataObject) -> None:
    found = {name: value for name, value in {**GOLDEN, **edits}.items() if value is not None}
    content = bytearray(save({name: np.asarray(value, order="C") for name, value in found.items()}))
    for _ in range(data.draw(st.integers(0, 2))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        values = values_from_bytes(bytes(content), HERE)
    except GoldenError:
        return
    assert values["vae_decoder.image"].ndim == 4
