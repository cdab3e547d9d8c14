"""What litert_torch makes of rewritten modules of diffusers and transformers: resident on the GPU engine, and right."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from md_export.spec.recipe_file import load_recipe
from md_export.spec.shipped_files import builtin_recipe
from md_export.targets.contract import LoweringJob
from md_export.targets.tflite.gpu.engine import execute_on_gpu
from rewrites.diffusers_models import fresh_subject, rewrite
from rewrites.forms import EXACT_DB
from rewrites.test_tflite_graphs import LEAST, graph_of
from rewrites.tflite_pieces import SCHEMES, Piece, target

pytestmark = pytest.mark.slow

FORMS = load_recipe(builtin_recipe("tflite", "int8")).rewrites
MODELS = ("sd1", "vae", "clip")
PRECISIONS = ("fp32", "int8")
# Of the attentions: those of several heads transpose query, key, value and result, those of one head the keys.
TRANSPOSES = {"sd1": 8 * 4, "vae": 1, "clip": 2 * 4}

Get = Callable[[str], Piece]


def lower(name: str, forms: tuple[str, ...], workdir: Path) -> Piece:
    case = fresh_subject(name)
    if forms:
        rewrite(case, *forms)
    job = LoweringJob(
        case.component, case.module, case.inputs, case.outputs, case.arrays, SCHEMES["fp32"], (case.arrays,), workdir
    )
    return Piece(job, target.lower(job), case.arrays, case.expected)


@pytest.fixture(scope="module")
def piece(tmp_path_factory: pytest.TempPathFactory) -> Get:
    """``piece(name)``, rewritten as the recipes do and lowered once."""
    made: dict[str, Piece] = {}

    def get(name: str) -> Piece:
        if name not in made:
            made[name] = lower(name, FORMS, tmp_path_factory.mktemp(name))
        return made[name]

    return get


@pytest.fixture(scope="module")
def naive(tmp_path_factory: pytest.TempPathFactory) -> Piece:
    """The decoder without rewrites."""
    return lower("vae", (), tmp_path_factory.mktemp("naive"))


@pytest.mark.parametrize("name", MODELS)
def test_only_what_the_engine_takes(piece: Get, name: str, tmp_path: Path) -> None:
    graph = graph_of(piece(name).save("int8", tmp_path / "x.tflite"))
    assert not {"BROADCAST_TO", "RESIZE_NEAREST_NEIGHBOR"} & set(graph.kinds)
    assert "FULLY_CONNECTED" not in graph.weighted
    assert max(graph.ranks) <= 4
    surface = 0 if name == "clip" else 2
    assert graph.kinds["TRANSPOSE"] == TRANSPOSES[name] + surface


def test_naive_has_what_the_rewrites_remove(naive: Piece, tmp_path: Path) -> None:
    graph = graph_of(naive.save("int8", tmp_path / "x.tflite"))
    assert graph.kinds["RESIZE_NEAREST_NEIGHBOR"] == 1
    assert "FULLY_CONNECTED" in graph.weighted
    assert graph.kinds["TRANSPOSE"] > 2


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_same_function_on_the_cpu(piece: Get, name: str, precision: str, tmp_path: Path) -> None:
    case = piece(name)
    (found,) = target.load(case.save(precision, tmp_path / "x.tflite")).run(case.arrays).values()
    assert case.snr_db(found) >= {**LEAST, "fp32": EXACT_DB}[precision]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.usefixtures("gpu_driver")
def test_resident_and_right_on_the_gpu_engine(piece: Get, name: str, precision: str, tmp_path: Path) -> None:
    case = piece(name)
    run = execute_on_gpu(case.save(precision, tmp_path / "x.tflite"), [case.arrays], limit_s=120)
    assert run.failure is None
    assert run.resident
    assert case.snr_db(run.outputs[0]["out"]) >= LEAST[precision]


@pytest.mark.usefixtures("gpu_driver")
def test_naive_is_not_resident(naive: Piece, tmp_path: Path) -> None:
    run = execute_on_gpu(naive.save("int8", tmp_path / "x.tflite"), [naive.arrays], limit_s=120)
    assert run.failure is not None or not run.resident
