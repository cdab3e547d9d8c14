"""Every form rewrite leaves the function alone, on the trained checkpoint and on one of other shapes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from md_export.models.layers import Attention
from md_export.models.text_encoder import TextEncoder
from md_export.models.unet import MDUNet
from md_export.models.vae import VAEDecoder
from md_export.rewrites.tokens_as_channels import ChannelClipAttention
from rewrites.forms import EXACT_DB, Subject

MODELS = ("nano", "other")
TFLITE = ("tokens_to_maps", "staged_group_norm", "fold_norm_affine", "upsample_to_four_convs")
TFLITE_UNET = (*TFLITE, "vector_linear_to_conv2d", "fold_attention_scale")
ALL_UNET = ("linear_to_conv2d", "group_norm_to_instance_norm", "fold_timestep", "fold_attention_scale")
CASES = [
    ("text_encoder", ("linear_to_conv2d",)),
    ("text_encoder", ("fold_attention_scale",)),
    ("text_encoder", ("fold_attention_scale", "linear_to_conv2d")),
    ("text_encoder", ("linear_to_conv2d", "fold_attention_scale")),
    ("unet", ("linear_to_conv2d",)),
    ("unet", ("group_norm_to_instance_norm",)),
    ("unet", ("fold_timestep",)),
    ("unet", ("fold_attention_scale",)),
    ("unet", ("linear_to_conv2d", "split_attention_heads")),
    ("unet", ALL_UNET),
    ("unet", tuple(reversed(ALL_UNET))),
    ("vae_decoder", ("group_norm_to_instance_norm",)),
    ("text_encoder", ("tokens_to_maps",)),
    ("text_encoder", ("fold_norm_affine",)),
    ("text_encoder", ("fold_attention_scale", "fold_norm_affine", "tokens_to_maps")),
    ("text_encoder", ("tokens_to_maps", "fold_norm_affine", "fold_attention_scale")),
    *(("unet", (name,)) for name in TFLITE),
    ("unet", TFLITE_UNET),
    ("unet", ("fold_timestep", *reversed(TFLITE))),
    ("unet", (*TFLITE_UNET, "fold_timestep")),
    ("vae_decoder", ("staged_group_norm", "upsample_to_four_convs")),
]
IDS = [f"{component}-{'+'.join(names)}" for component, names in CASES]


def dropped(names: tuple[str, ...]) -> tuple[str, ...]:
    return ("timestep",) if "fold_timestep" in names else ()


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("component", "names"), CASES, ids=IDS)
def test_same_function(
    subject: Callable[[str, str], Subject], model: str, component: str, names: tuple[str, ...]
) -> None:
    case = subject(model, component)
    records = case.rewrite(*names)
    assert [record.name for record in records] == list(names)
    assert all(record.fired > 0 and record.exact for record in records)
    assert case.snr_db(dropped(names)) >= EXACT_DB


def parameters(module: nn.Module, *names: str) -> list[nn.Parameter]:
    return [value for path, value in module.named_parameters() if path.rpartition(".")[0].rpartition(".")[2] in names]


def roll_channels(module: nn.Module) -> None:
    """One attention's query channels moved by one: a head gets a neighbour's channel."""
    (query, *_) = parameters(module, "to_q", "q_proj")
    query.copy_(query.roll(1, 0))


def swap_glu(module: nn.Module) -> None:
    (projection, *_) = parameters(module, "proj")
    projection.copy_(projection.roll(len(projection) // 2, 0))


def other_groups(module: nn.Module) -> None:
    """One norm with twice as many groups."""
    next(layer for layer in module.modules() if isinstance(layer, nn.GroupNorm)).num_groups *= 2


def scale_twice(module: nn.Module) -> None:
    for layer in module.modules():
        if isinstance(layer, (Attention, ChannelClipAttention)):
            layer.scale = 1.01


@pytest.mark.parametrize(
    ("component", "names", "damage"),
    [
        ("text_encoder", ("linear_to_conv2d",), roll_channels),
        ("text_encoder", ("linear_to_conv2d", "fold_attention_scale"), scale_twice),
        ("unet", ("linear_to_conv2d",), roll_channels),
        ("unet", ("linear_to_conv2d",), swap_glu),
        ("unet", ("fold_attention_scale",), scale_twice),
        ("unet", ("linear_to_conv2d", "split_attention_heads"), roll_channels),
        ("unet", ("group_norm_to_instance_norm",), other_groups),
        ("vae_decoder", ("group_norm_to_instance_norm",), other_groups),
        ("text_encoder", ("tokens_to_maps",), roll_channels),
        ("text_encoder", ("tokens_to_maps", "fold_norm_affine", "fold_attention_scale"), roll_channels),
        ("unet", TFLITE_UNET, roll_channels),
        ("unet", TFLITE_UNET, swap_glu),
    ],
)
def test_the_measure_sees_small_damage(
    subject: Callable[[str, str], Subject],
    component: str,
    names: tuple[str, ...],
    damage: Callable[[nn.Module], None],
) -> None:
    case = subject("nano", component)
    case.rewrite(*names)
    damage(case.module)
    assert case.snr_db() < EXACT_DB - 20


@pytest.mark.parametrize("kind", [TextEncoder, MDUNet, VAEDecoder])
def test_stays_what_it_is(subject: Callable[[str, str], Subject], kind: type[nn.Module]) -> None:
    """Module paths and parameters, by which recipes and attribution name things, are the original's."""
    component = {TextEncoder: "text_encoder", MDUNet: "unet", VAEDecoder: "vae_decoder"}[kind]
    case = subject("nano", component)
    before = {name: tensor.clone() for name, tensor in case.module.state_dict().items()}
    case.rewrite("linear_to_conv2d", "group_norm_to_instance_norm")
    after = case.module.state_dict()
    assert isinstance(case.module, kind)
    assert list(after) == list(before)
    assert all(torch.equal(after[name].reshape(before[name].shape), before[name]) for name in before)
