"""What litert_torch makes of rewritten modules: only ops that LiteRT's GPU engine takes, at rank 4, and it is right.

On pieces of the components. The affines of fresh norms convert differently from those of trained ones: the UNet's
norms are fresh here, all others are as if trained.
"""

from __future__ import annotations

import collections
import secrets
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import pytest
from torch import nn

from md_export.models.config import ModelConfig
from md_export.spec.recipe_file import load_recipe
from md_export.spec.sampler import OneStep
from md_export.spec.shipped_files import builtin_recipe
from md_export.targets.tflite import lower
from md_export.targets.tflite.flatbuffer import operator_name, read_model, shape_of, weighted_ops
from md_export.targets.tflite.gpu.engine import execute_on_gpu
from rewrites.forms import EXACT_DB
from rewrites.tflite_pieces import PIECES, SCHEMES, Pieces, lower_piece, pieces, target

FORMS = load_recipe(builtin_recipe("tflite", "int8")).rewrites
# Decibels on random weights, which quantize worse than trained ones.
LEAST = {"fp32": 90.0, "fp16": 55.0, "int8": 20.0, "int8_weights": 25.0, "int8_static": 15.0}
# All precisions where the embedding table is, whose type decides; float and int8 elsewhere.
ON_GPU = [("text", precision) for precision in SCHEMES] + [(n, p) for n in ("unet", "vae") for p in ("fp32", "int8")]


@pytest.fixture(scope="module")
def piece(other_config: ModelConfig, step: OneStep, tmp_path_factory: pytest.TempPathFactory) -> Pieces:
    """Pieces rewritten as the recipes do."""
    return pieces(FORMS, other_config, step, tmp_path_factory)


@dataclass(frozen=True)
class Graph:
    """Ops by kind, kinds that hold a weight, ranks of what the ops return."""

    kinds: collections.Counter[str]
    weighted: set[str]
    ranks: set[int]


def graph_of(path: Path) -> Graph:
    model = read_model(path)
    (graph,) = model.subgraphs
    kinds = collections.Counter(operator_name(model, operator) for operator in graph.operators)
    ranks = {len(shape_of(graph.tensors[index])) for op in graph.operators for index in op.outputs}
    return Graph(kinds, {op.operator for op in weighted_ops(model)}, ranks)


@pytest.mark.parametrize("name", PIECES)
def test_only_what_the_engine_takes(piece: Pieces, name: str, tmp_path: Path) -> None:
    graph = graph_of(piece(name).save("int8", tmp_path / "x.tflite"))
    assert not {"BROADCAST_TO", "RESIZE_NEAREST_NEIGHBOR"} & set(graph.kinds)
    assert "FULLY_CONNECTED" not in graph.weighted
    assert max(graph.ranks) <= 4
    # One for each of query, key, value and result, and those at the surface; a single head needs that of the keys.
    assert graph.kinds["TRANSPOSE"] == {"unet": 8 + 2, "text": 4, "vae": 1 + 2}[name]


def test_naive_has_what_the_rewrites_remove(other_config: ModelConfig, step: OneStep, tmp_path: Path) -> None:
    """The counters above can see."""
    naive = lower_piece("vae", (), True, other_config, step, tmp_path)
    graph = graph_of(naive.save("int8", tmp_path / "x.tflite"))
    assert {"BROADCAST_TO", "RESIZE_NEAREST_NEIGHBOR"} <= set(graph.kinds)
    assert "FULLY_CONNECTED" in graph.weighted
    assert graph.kinds["TRANSPOSE"] > 2


@pytest.mark.parametrize(("name", "forms", "traces"), [("unet", FORMS, 0), ("vae", (), 1)])
def test_a_trace_that_is_left_out_changes_nothing(
    other_config: ModelConfig,
    step: OneStep,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    forms: tuple[str, ...],
    traces: int,
) -> None:
    """It is not left out where functions hide an upsampling, which would be lowered otherwise."""
    from litert_torch.fx_infra import CanonicalizePass

    trace, traced = CanonicalizePass.call, list[object]()

    def call(own: CanonicalizePass, program: object) -> object:
        traced.append(program)
        return trace(own, program)

    def made() -> bytes:
        piece = lower_piece(name, forms, True, other_config, step, tmp_path)
        return piece.save("fp32", tmp_path / f"{secrets.token_hex()}.tflite").read_bytes()

    monkeypatch.setattr(CanonicalizePass, "call", call)
    without = made()
    assert len(traced) == traces
    monkeypatch.setattr(lower, "_one_trace_less", nullcontext)
    assert made() == without
    assert len(traced) == traces + 1


@pytest.mark.parametrize("name", PIECES)
@pytest.mark.parametrize("precision", SCHEMES)
def test_same_function_on_the_cpu(piece: Pieces, name: str, precision: str, tmp_path: Path) -> None:
    case = piece(name)
    (found,) = target.load(case.save(precision, tmp_path / "x.tflite")).run(case.arrays).values()
    assert case.snr_db(found) >= {**LEAST, "fp32": EXACT_DB}[precision]


@pytest.mark.parametrize("name", PIECES)
def test_int8_means_the_norms_stay_float(piece: Pieces, name: str, tmp_path: Path) -> None:
    """Their constant convolutions too: int8 means would be the floor of the whole network's error."""
    case = piece(name)
    described = target.describe(case.save("int8", tmp_path / "x.tflite"))
    norms = {path for path, layer in case.job.module.named_modules() if isinstance(layer, nn.GroupNorm)}
    assert set(described.float_weights) == norms


@pytest.mark.parametrize(("name", "precision"), ON_GPU)
@pytest.mark.usefixtures("gpu_driver")
def test_resident_and_right_on_the_gpu_engine(piece: Pieces, name: str, precision: str, tmp_path: Path) -> None:
    case = piece(name)
    run = execute_on_gpu(case.save(precision, tmp_path / "x.tflite"), [case.arrays], limit_s=120)
    assert run.failure is None
    assert run.resident
    assert case.snr_db(run.outputs[0]["out"]) >= LEAST[precision]
