"""Outliers that a model computes the same with: planted, what they cost in int8, and gone after ``equalize``."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from md_export.errors import RewriteError
from md_export.models.layers import Attention, FeedForward, SepConvBlock
from md_export.models.t5_encoder import T5Config, T5Encoder
from md_export.models.text_encoder import TextEncoder
from md_export.models.unet import MDUNet
from md_export.rewrites.equalize import equalize, links
from md_export.spec.sampler import OneStep
from outliers import move_first_token, plant
from rewrites.diffusers_models import fresh_subject
from rewrites.forms import EXACT_DB, Subject
from rewrites.test_folds import SMALL, inputs

COMPONENTS = ("text_encoder", "unet")


def weights(subject: Subject) -> dict[str, Tensor]:
    return dict(subject.module.named_parameters())


def same_weights(one: Subject, two: Subject) -> bool:
    mine, others = weights(one), weights(two)
    return mine.keys() == others.keys() and all(torch.equal(mine[name], others[name]) for name in mine)


def int8(value: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Rounded to 255 levels with a scale for each slice along ``dims``; all of a tensor where there are none."""
    scale = value.abs().amax(dims or tuple(range(value.ndim)), keepdim=True).clamp(min=1e-12) / 127
    return (value / scale).round() * scale


def snr_in_int8(subject: Subject) -> float:
    """Of a copy whose linears and 1×1 convolutions have int8 weights, a scale per row, and inputs, one scale."""
    copied = copy.deepcopy(subject)
    for layer in copied.module.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            layer.weight = nn.Parameter(int8(layer.weight, tuple(range(1, layer.weight.ndim))), requires_grad=False)
            layer.register_forward_pre_hook(lambda _, given: (int8(given[0], ()), *given[1:]))
    return copied.snr_db()


@pytest.mark.parametrize("model", ["nano", "other"])
@pytest.mark.parametrize("component", COMPONENTS)
def test_planted_outliers_leave_the_function_and_equalize_removes_them(
    subject: Callable[[str, str], Subject], model: str, component: str
) -> None:
    """To the bit: factors and scales are powers of two. In ``other`` some gammas are 0."""
    planted = subject(model, component)
    assert plant(planted.module, 64.0) > 0
    assert (planted.run() == planted.expected).all()
    (record,) = planted.rewrite("equalize")
    assert record.fired > 0
    assert (planted.run() == planted.expected).all()
    (record,) = planted.rewrite("equalize")
    assert (record.fired, record.note) == (0, "nothing left to change")


@pytest.mark.parametrize("component", COMPONENTS)
def test_the_weights_are_those_of_the_model_without_outliers(
    subject: Callable[[str, str], Subject], component: str
) -> None:
    plain, planted = subject("nano", component), subject("nano", component)
    plant(planted.module, 256.0)
    assert not same_weights(plain, planted)
    planted.rewrite("equalize")
    assert same_weights(plain, planted)


def test_a_model_without_outliers_stays_as_it_is(subject: Callable[[str, str], Subject]) -> None:
    for component in (*COMPONENTS, "vae_decoder"):
        plain, same = subject("nano", component), subject("nano", component)
        (record,) = same.rewrite("equalize")
        assert (record.fired, record.note) == (0, "nothing left to change")
        assert same_weights(plain, same)


@pytest.mark.parametrize("name", ["sd1", "sd2", "vae", "clip"])
def test_modules_of_the_libraries(name: str) -> None:
    case = fresh_subject(name)
    root: nn.Module = next(iter(case.module.children()))
    assert plant(root, 64.0) > 0
    assert case.snr_db() >= EXACT_DB
    damaged = copy.deepcopy(case)
    assert equalize(root, case.step) > 0
    assert case.snr_db() >= EXACT_DB
    # Half of a change: what reads the channels keeps its weights.
    *_, link = links(next(iter(damaged.module.children())))
    readers = [reader.weight for reader in link.readers]
    link.divide(torch.full((link.channels,), 1.01))
    for reader, weight in zip(link.readers, readers, strict=True):
        reader.weight = weight
    assert damaged.snr_db() < EXACT_DB - 20


@pytest.mark.parametrize("component", COMPONENTS)
@pytest.mark.parametrize("factor", [64.0, 100.0, 256.0])
def test_int8_loses_nothing_to_outliers_once_they_are_equalized(
    subject: Callable[[str, str], Subject], component: str, factor: float
) -> None:
    plain, planted = subject("nano", component), subject("nano", component)
    plant(planted.module, factor)
    before = snr_in_int8(plain)
    assert snr_in_int8(planted) < before - 10
    planted.rewrite("equalize")
    # A factor that is no power of two leaves a rest of at most √2.
    assert snr_in_int8(planted) > before - 1


def test_every_place_is_reached(subject: Callable[[str, str], Subject]) -> None:
    """Norms before linears, a value projection for each attention, a value half for each GLU."""
    layers = list(subject("nano", "unet").module.modules())
    count = {form: sum(isinstance(layer, form) for layer in layers) for form in (Attention, FeedForward, nn.LayerNorm)}
    stacks = sum(type(layer).__name__ == "TransformerStack" for layer in layers)
    separable = sum(isinstance(layer, SepConvBlock) for layer in layers)
    found = len(list(links(subject("nano", "unet").module)))
    assert found == sum(count.values()) + stacks + separable
    # Two norms and an attention in each of three layers; CLIP's feed-forward has no gate.
    assert len(list(links(subject("nano", "text_encoder").module))) == 3 * 3


def test_with_the_recipes_other_rewrites(subject: Callable[[str, str], Subject]) -> None:
    for others in (("fold_timestep", "fold_norm_affine", "linear_to_conv2d"), ("tokens_to_maps", "fold_norm_affine")):
        case = subject("nano", "unet")
        plant(case.module, 64.0)
        case.rewrite("equalize", *others)
        assert case.snr_db(("timestep",) if "fold_timestep" in others else ()) >= EXACT_DB
    with pytest.raises(RewriteError, match="equalize must come before linear_to_conv2d"):
        subject("nano", "unet").rewrite("linear_to_conv2d", "equalize")


def test_the_checkpoint_is_not_written_to(subject: Callable[[str, str], Subject]) -> None:
    """Its tensors may be mapped from the file."""
    case = subject("nano", "unet")
    plant(case.module, 64.0)
    before = {name: (tensor, tensor.clone()) for name, tensor in case.module.state_dict().items()}
    case.rewrite("equalize")
    assert all(torch.equal(tensor, copied) for tensor, copied in before.values())


@pytest.mark.parametrize("time", ["scale_shift", "after_dw", "hidden"])
def test_separable_convolutions(time: str, step: OneStep) -> None:
    """Where the time embedding shifts behind the norm, its projection is scaled, too."""

    torch.manual_seed(0)
    unet = MDUNet(replace(SMALL, sep_conv_time=time)).eval().requires_grad_(False)
    given = inputs(SMALL)
    expected = unet(*given)
    plant(unet, 64.0)
    assert torch.equal(unet(*given), expected)
    assert equalize(unet, step) > 0
    assert torch.equal(unet(*given), expected)


def test_t5(step: OneStep) -> None:
    """A norm without a bias; in each of two blocks two norms, an attention and a gated feed-forward."""
    torch.manual_seed(0)
    shape = {"vocab_size": 50, "d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2, "length": 12}
    encoder = T5Encoder(T5Config(**shape, feed_forward_proj="gated-gelu")).eval().requires_grad_(False)
    given = torch.randint(0, 50, (1, 12)), torch.ones(1, 12)
    expected = encoder(*given)
    assert plant(encoder, 64.0) == 2 * 4
    assert torch.equal(encoder(*given), expected)
    assert equalize(encoder, step) > 0
    assert torch.equal(encoder(*given), expected)
    encoder.get_parameter("encoder.block.0.layer.1.DenseReluDense.wo.weight").mul_(1.01)
    assert not torch.equal(encoder(*given), expected)


def test_a_moved_first_token_leaves_the_function(subject: Callable[[str, str], Subject]) -> None:
    case = subject("nano", "text_encoder")
    assert isinstance(case.module, TextEncoder)
    move_first_token(case.module, 64.0)
    assert EXACT_DB - 30 <= case.snr_db() < 200
    case.module.embeddings.position_embedding.weight[0, 0] += 64.0
    assert case.snr_db() < 40
