"""Attention at rank 4: the same function, and files whose products and sums stay at rank 4."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from torch import nn

from md_export.errors import RewriteError
from md_export.models.config import ModelConfig
from md_export.parity.metrics import compare
from md_export.rewrites.rank_4_attention import rank_4_attention
from md_export.rewrites.tokens_to_maps import tokens_to_maps
from md_export.spec.recipe_file import load_recipe
from md_export.spec.sampler import OneStep
from md_export.spec.shipped_files import builtin_recipe
from md_export.targets.tflite.describe import graph_ops
from md_export.targets.tflite.flatbuffer import operator_name, read_model, shape_of
from md_export.targets.tflite.gpu.engine import execute_on_gpu
from md_export.targets.tflite.lint import lint
from rewrites.forms import EXACT_DB, Subject, check_batch_of_two
from rewrites.tflite_pieces import PIECES, SCHEMES, Pieces, lower_piece, pieces, target

AT_RANK_4 = load_recipe(builtin_recipe("tflite", "int8")).rewrites
AT_RANK_3 = tuple(name for name in AT_RANK_4 if name != "rank_4_attention")
LEAST = {"fp32": 90.0, "int8": 20.0}


@pytest.mark.parametrize("component", ["text_encoder", "unet"])
def test_the_same_function(subject: Callable[[str, str], Subject], component: str) -> None:
    case = subject("nano", component)
    before = case.run()
    _, record = case.rewrite("tokens_to_maps", "rank_4_attention")
    assert record.fired > 0
    assert compare(case.run(), before).snr_db >= EXACT_DB


@pytest.mark.parametrize("context_dim", [None, 16])
def test_a_batch_of_two(step: OneStep, context_dim: int | None) -> None:
    def both(module: nn.Module, one_step: OneStep) -> int:
        tokens_to_maps(module, one_step)
        fired = rank_4_attention(module, one_step)
        assert fired == 2
        return fired

    check_batch_of_two(both, step, context_dim)


def test_before_tokens_to_maps_it_is_refused(subject: Callable[[str, str], Subject]) -> None:
    with pytest.raises(RewriteError, match="must come after tokens_to_maps"):
        subject("nano", "unet").rewrite("rank_4_attention", "tokens_to_maps")


def test_a_decoder_without_attention_passes(subject: Callable[[str, str], Subject]) -> None:
    records = subject("nano", "vae_decoder").rewrite("tokens_to_maps", "rank_4_attention")
    assert [(record.fired, bool(record.note)) for record in records] == [(0, True)] * 2


@pytest.fixture(scope="module")
def piece(other_config: ModelConfig, step: OneStep, tmp_path_factory: pytest.TempPathFactory) -> Pieces:
    """Pieces rewritten as the recipes do, with attention at rank 4."""
    return pieces(AT_RANK_4, other_config, step, tmp_path_factory)


def mixed_ranks(path: Path) -> tuple[set[int], set[str]]:
    """Ranks of the results of products, and elementwise operations that read values of different ranks."""
    model = read_model(path)
    (graph,) = model.subgraphs
    ranks, mixing = set[int](), set[str]()
    for op in graph.operators:
        kind = operator_name(model, op)
        if kind == "BATCH_MATMUL":
            assert not (op.builtinOptions.adjX or op.builtinOptions.adjY)
            ranks.add(len(shape_of(graph.tensors[op.outputs[0]])))
        if kind in ("ADD", "MUL", "SUB"):
            # A scalar has no rank of its own.
            read = {len(shape_of(graph.tensors[index])) for index in op.inputs} - {0}
            mixing |= {kind} if len(read) > 1 else set()
    return ranks, mixing


@pytest.mark.parametrize("name", PIECES)
def test_products_have_rank_4_and_no_sum_mixes_ranks(piece: Pieces, name: str, tmp_path: Path) -> None:
    assert mixed_ranks(piece(name).save("fp32", tmp_path / "x.tflite")) == ({4}, set())


@pytest.mark.parametrize("name", PIECES)
@pytest.mark.parametrize("precision", SCHEMES)
def test_no_known_fault_of_litert_2_concerns_it(piece: Pieces, name: str, precision: str, tmp_path: Path) -> None:
    known = lint(piece(name).save(precision, tmp_path / "x.tflite")).known
    assert known is not None
    assert known.blocking("2.0.2") is None
    # Only the older delegate's, about the eps of norms.
    assert known.safe_from in (None, "2.0.2")
    assert {item.fault.id for item in known.found} <= {"small-number"}


def test_the_form_of_before_has_products_of_rank_3(other_config: ModelConfig, step: OneStep, tmp_path: Path) -> None:
    """What counts above can see."""
    before = lower_piece("text", AT_RANK_3, False, other_config, step, tmp_path)
    path = before.save("fp32", tmp_path / "x.tflite")
    ranks, _ = mixed_ranks(path)
    assert ranks == {3}
    known = lint(path).known
    assert known is not None
    (blocking,) = (item for item in known.found if item.fault.reaches("2.0.2"))
    assert blocking == known.blocking("2.0.2")
    assert blocking.fault.id == "attention-rank-3"
    softmaxes = [op.module for op in graph_ops(path) if op.kind == "SOFTMAX"]
    assert [op.module for op in blocking.ops] == softmaxes
    assert all(module.endswith(".self_attn") for module in softmaxes)


@pytest.mark.parametrize("name", PIECES)
@pytest.mark.parametrize("precision", LEAST)
def test_same_function_on_the_cpu(piece: Pieces, name: str, precision: str, tmp_path: Path) -> None:
    case = piece(name)
    (found,) = target.load(case.save(precision, tmp_path / "x.tflite")).run(case.arrays).values()
    assert case.snr_db(found) >= {**LEAST, "fp32": EXACT_DB}[precision]


@pytest.mark.parametrize("name", PIECES)
@pytest.mark.parametrize("precision", LEAST)
@pytest.mark.usefixtures("gpu_driver")
def test_resident_and_right_on_the_gpu_engine(piece: Pieces, name: str, precision: str, tmp_path: Path) -> None:
    """With a mask of one head, or between reshapes to rank 3, the engine computes it wrongly and says nothing."""
    case = piece(name)
    run = execute_on_gpu(case.save(precision, tmp_path / "x.tflite"), [case.arrays], limit_s=120)
    assert run.failure is None
    assert run.resident
    assert case.snr_db(run.outputs[0]["out"]) >= LEAST[precision]
