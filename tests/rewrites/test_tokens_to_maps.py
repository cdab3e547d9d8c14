from __future__ import annotations

from collections.abc import Callable

import pytest
from torch import nn

from md_export.errors import RewriteError
from md_export.models.layers import Softmax
from md_export.rewrites.tokens_to_maps import MapLayerNorm, tokens_to_maps
from md_export.spec.sampler import OneStep
from rewrites.forms import Subject, check_batch_of_two, check_vae_attention


@pytest.mark.parametrize("component", ["text_encoder", "unet"])
def test_every_token_linear_becomes_a_convolution(subject: Callable[[str, str], Subject], component: str) -> None:
    case = subject("nano", component)
    before = {path: layer for path, layer in case.module.named_modules() if isinstance(layer, nn.Linear)}
    (record,) = case.rewrite("tokens_to_maps")
    left = [path for path, layer in case.module.named_modules() if isinstance(layer, nn.Linear)]
    assert record.fired == len(before) - len(left) > 0
    assert all("time_emb" in path for path in left)
    norms = [layer for layer in case.module.modules() if isinstance(layer, nn.LayerNorm)]
    assert norms
    assert all(isinstance(norm, MapLayerNorm) for norm in norms)
    convs = {path: layer for path, layer in case.module.named_modules() if path in before and path not in left}
    assert all(conv.weight.data_ptr() == before[path].weight.data_ptr() for path, conv in convs.items())


def ranks(module: nn.Module, kind: type[nn.Module]) -> list[int]:
    """Of what modules of one kind get as their first argument; appended to as the module runs."""
    seen: list[int] = []
    for layer in module.modules():
        if isinstance(layer, kind):
            layer.register_forward_pre_hook(lambda _, given: seen.append(given[0].dim()))
    return seen


def test_scores_have_rank_3(subject: Callable[[str, str], Subject]) -> None:
    case = subject("nano", "unet")
    seen = ranks(case.module, Softmax)
    case.run()
    assert set(seen) == {4}
    case.rewrite("tokens_to_maps")
    seen.clear()
    case.run()
    assert set(seen) == {3}


@pytest.mark.parametrize("context_dim", [None, 16])
def test_a_batch_of_two(step: OneStep, context_dim: int | None) -> None:
    check_batch_of_two(tokens_to_maps, step, context_dim)


def test_attention_of_the_vae(step: OneStep) -> None:
    check_vae_attention(tokens_to_maps, step)


def test_a_decoder_without_attention_passes(subject: Callable[[str, str], Subject]) -> None:
    (record,) = subject("nano", "vae_decoder").rewrite("tokens_to_maps")
    assert (record.fired, bool(record.note)) == (0, True)


def test_a_second_time_it_is_in_place_already(subject: Callable[[str, str], Subject]) -> None:
    case = subject("nano", "unet")
    case.rewrite("tokens_to_maps")
    (record,) = case.rewrite("tokens_to_maps")
    assert (record.fired, bool(record.note)) == (0, True)


@pytest.mark.parametrize("component", ["text_encoder", "unet"])
def test_another_form_is_no_silent_success(subject: Callable[[str, str], Subject], component: str) -> None:
    with pytest.raises(RewriteError, match="fires nowhere"):
        subject("nano", component).rewrite("linear_to_conv2d", "tokens_to_maps")
