"""Attention at rank 4: the same function, and files whose products and sums stay at rank 4."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from md_export.errors import RewriteError
from md_export.models.config import ModelConfig
from md_export.models.layers import Attention, Softmax
from md_export.models.vae import SpatialAttention
from md_export.parity.metrics import compare
from md_export.rewrites.rank_4_attention import rank_4_attention
from md_export.rewrites.tokens_to_maps import tokens_to_maps
from md_export.spec.recipe_file import load_recipe
from md_export.spec.sampler import OneStep
from md_export.spec.shipped_files import builtin_recipe
from md_export.targets.tflite.flatbuffer import operator_name, read_model, shape_of
from md_export.targets.tflite.gpu.engine import execute_on_gpu
from rewrites.forms import EXACT_DB, Subject
from rewrites.tflite_pieces import PIECES, Piece, lower_piece, target

FORMS = load_recipe(builtin_recipe("tflite", "int8")).rewrites
AT_RANK_4 = tuple(
    part for name in FORMS for part in ((name, "rank_4_attention") if name == "tokens_to_maps" else (name,))
)
LEAST = {"fp32": 90.0, "int8": 20.0}

Pieces = Callable[[str], Piece]


@pytest.mark.parametrize("component", ["text_encoder", "unet"])
def test_the_same_function(subject: Callable[[str, str], Subject], component: str) -> None:
    case = subject("nano", component)
    before = case.run()
    _, record = case.rewrite("tokens_to_maps", "rank_4_attention")
    assert record.fired > 0
    assert compare(case.run(), before).snr_db >= EXACT_DB


@pytest.mark.parametrize("context_dim", [None, 16])
def test_a_batch_of_two(step: OneStep, context_dim: int | None) -> None:
    torch.manual_seed(0)
    attention = Attention(24, 8, context_dim, Softmax()).eval().requires_grad_(False)
    tokens, text = torch.randn(2, 15, 24), None if context_dim is None else torch.randn(2, 7, context_dim)
    expected = attention(tokens, text).transpose(1, 2).reshape(2, 24, 3, 5)
    wrapper = SpatialAttention(24, 4, 1e-6)  # a root, below which everything is rewritten
    wrapper.inner = attention
    tokens_to_maps(wrapper, step)
    assert rank_4_attention(wrapper, step) == 2
    maps = None if text is None else text[:, None].permute(0, 3, 1, 2)
    found = attention(tokens.transpose(1, 2).reshape(2, 24, 3, 5), maps)
    assert compare(found.numpy(), expected.numpy()).snr_db >= EXACT_DB


def test_before_tokens_to_maps_it_is_refused(subject: Callable[[str, str], Subject]) -> None:
    with pytest.raises(RewriteError, match="put it behind it"):
        subject("nano", "unet").rewrite("rank_4_attention", "tokens_to_maps")


def test_a_decoder_without_attention_passes(subject: Callable[[str, str], Subject]) -> None:
    records = subject("nano", "vae_decoder").rewrite("tokens_to_maps", "rank_4_attention")
    assert [(record.fired, bool(record.note)) for record in records] == [(0, True)] * 2


@pytest.fixture(scope="module")
def piece(other_config: ModelConfig, step: OneStep, tmp_path_factory: pytest.TempPathFactory) -> Pieces:
    """``piece(name)``, rewritten as the recipes do, with attention at rank 4, and lowered once."""
    made: dict[str, Piece] = {}

    def get(name: str) -> Piece:
        if name not in made:
            folder = tmp_path_factory.mktemp("pieces")
            made[name] = lower_piece(name, AT_RANK_4, name == "unet", other_config, step, folder)
        return made[name]

    return get


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


def test_the_form_of_before_has_products_of_rank_3(other_config: ModelConfig, step: OneStep, tmp_path: Path) -> None:
    """What counts above can see."""
    before = lower_piece("text", FORMS, False, other_config, step, tmp_path)
    ranks, _ = mixed_ranks(before.save("fp32", tmp_path / "x.tflite"))
    assert ranks == {3}


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
