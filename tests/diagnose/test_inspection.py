"""The counter against numbers that others published, and against counts made by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from md_export.checkpoint.architectures import arch_config
from md_export.cli import cli
from md_export.diagnose.inspect import CONVENTION, ComponentFigures, Inspection, count_macs, inspect_config
from md_export.models.config import ModelConfig
from md_export.models.unet import MDUNetConfig
from md_export.models.vae import VAEConfig
from small_models import DIT, PIXART


@pytest.fixture(scope="session")
def md() -> Inspection:
    return inspect_config(arch_config("md"))


def component(inspection: Inspection, name: str) -> ComponentFigures:
    return next(figures for figures in inspection.components if figures.name == name)


def inspect_vae(vae: VAEConfig) -> ComponentFigures:
    """A VAE's decoder at a 64×64 latent, beside a UNet and text encoder too small to matter."""
    unet = MDUNetConfig(
        in_channels=vae.latent_channels,
        out_channels=vae.latent_channels,
        block_out_channels=(8, 8, 8),
        cross_attention_dim=8,
        attention_head_dim=8,
        norm_num_groups=8,
    )
    text = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 9}
    text |= {"bos_token_id": 7, "eos_token_id": 8}
    return component(inspect_config(ModelConfig(text, unet, vae)), "vae_decoder")


def inspect_unet(**fields: Any) -> ComponentFigures:
    md = arch_config("md")
    return component(inspect_config(replace(md, denoiser=replace(md.denoiser, **fields))), "unet")


def millions(figures: ComponentFigures) -> float:
    return round(figures.parameters / 1e6, 2)


def gmacs(figures: ComponentFigures) -> tuple[float, float]:
    return round(figures.macs / 1e9, 1), round(figures.macs_without_padding / 1e9, 1)


# Published numbers


def test_md_meets_the_paper(md: Inspection) -> None:
    unet = component(md, "unet")
    assert millions(unet) == 386.42
    assert gmacs(unet) == (183.8, 181.1)
    assert (unet.conv_blocks, unet.self_attentions, unet.cross_attentions) == (11, 15, 18)
    assert millions(component(md, "text_encoder")) == 123.06
    assert millions(component(md, "vae_decoder")) == 9.80
    assert gmacs(component(md, "vae_decoder"))[0] == 351.0
    assert millions(md.whole) == 519.28
    assert md.whole.macs == sum(figures.macs for figures in md.components)


def test_every_published_number_is_within_one_percent(md: Inspection) -> None:
    rows = md.compare()
    assert [row.paper for row in rows] == [386, 182, 182, 11, 15, 18, 9.8, 520]
    assert all(abs(row.percent) < 1 for row in rows)
    assert rows[0].percent == pytest.approx(100 * (386.422088 / 386 - 1))


def test_md_lite() -> None:
    lite = inspect_config(arch_config("md-lite"))
    assert millions(component(lite, "unet")) == 278.86
    assert gmacs(component(lite, "unet")) == (154.8, 152.2)
    assert all(abs(row.percent) < 1 for row in lite.compare("md-lite"))
    assert [row.paper for row in lite.compare("md-lite")] == [11, 12, 15, 9.8]
    assert lite.compare()[0].percent < -25, "against MD itself it is far smaller"


@pytest.mark.parametrize(
    ("fields", "parameters", "gmac"),
    [
        ({"sep_conv_expansion": 3, "sep_conv_expansion_of": "out", "sep_conv_time": "hidden"}, 386.42, 181.9),
        (
            {
                "sep_conv_expansion": 3,
                "sep_conv_expansion_of": "out",
                "sep_conv_time": "after_dw",
                "unified_inner": False,
                "separable_downsamplers": True,
            },
            386.36,
            183.8,
        ),
    ],
    ids=["time on the hidden channels", "skips everywhere"],
)
def test_other_reconstructions_meet_the_paper_too(fields: dict[str, Any], parameters: float, gmac: float) -> None:
    unet = inspect_unet(**fields)
    assert millions(unet) == parameters
    assert gmacs(unet)[0] == gmac


def test_decoders_of_the_paper() -> None:
    large = VAEConfig(block_out_channels=(96, 192, 384, 512), mid_block_add_attention=False)
    figures = inspect_vae(large)
    assert millions(figures) == 39.28
    assert gmacs(figures)[0] == 765.1
    row = next(row for row in Inspection((*_rest(), figures)).compare() if "decoder" in row.label)
    assert (row.label, row.paper) == ("decoder parameters, M", 39.3)
    assert millions(inspect_vae(VAEConfig(latent_channels=4))) == 49.49, "Stable Diffusion's own, as a check"


def _rest() -> tuple[ComponentFigures, ComponentFigures]:
    return ComponentFigures("text_encoder", 1, 1, 1), ComponentFigures("unet", 1, 1, 1)


# By hand


def test_attention_counts_both_products() -> None:
    """One more inner layer: q, kv, out and both products of SA and CA, and the GLU, at 16×16 tokens."""
    dim, tokens, words, text = 1024, 16 * 16, 77, 768
    projections = tokens * dim * dim * (3 + 2) + 2 * words * text * dim
    products = 2 * tokens * tokens * dim + 2 * tokens * words * dim
    feed_forward = tokens * dim * 3 * dim * 3
    one, two = inspect_unet(down_layers=1, up_layers=1), inspect_unet(down_layers=2, up_layers=1)
    assert two.macs - one.macs == 2 * (projections + products + feed_forward)
    assert (two.self_attentions, two.cross_attentions) == (7, 10)


def test_activation_kinds_cost_the_same(md: Inspection) -> None:
    assert inspect_unet(attention_kind="relu", ff_activation="gelu").macs == component(md, "unet").macs


@pytest.mark.parametrize(
    ("conv", "size", "macs", "padded"),
    [
        (nn.Conv2d(1, 1, 3, padding=1), 3, 81, 81 - 49),  # corners 4, edges 6, middle 9 → 49 of 81 taps are real
        (nn.Conv2d(2, 5, 3, padding=1), 3, 10 * 81, 10 * 32),
        (nn.Conv2d(6, 6, 3, padding=1, groups=6), 3, 6 * 81, 6 * 32),
        (nn.Conv2d(1, 1, 3, stride=2, padding=1), 4, 36, 36 - 25),
        (nn.Conv2d(3, 4, 1), 5, 12 * 25, 0),
        (nn.Conv2d(1, 1, 3), 5, 81, 0),
    ],
    ids=["3x3", "channels", "depthwise", "stride 2", "1x1", "no padding"],
)
def test_padding_taps(conv: nn.Conv2d, size: int, macs: int, padded: int) -> None:
    conv = conv.to("meta")
    x = torch.empty(1, conv.in_channels, size, size, device="meta")
    assert count_macs(conv, x) == (macs, padded)
    assert not conv._forward_hooks, "the counter leaves no hook behind"


def test_convention_is_stated() -> None:
    for word in ("multiply-add", "batch 1", "padding", "no guidance"):
        assert word in CONVENTION


def test_whole_of_a_small_model_is_the_sum_of_its_modules(other_config: ModelConfig) -> None:
    from md_export.models.families import COMPONENTS

    figures = inspect_config(other_config)
    counted = {c.name: sum(p.numel() for p in c.build(other_config).parameters()) for c in COMPONENTS.values()}
    assert {one.name: one.parameters for one in figures.components} == counted
    assert figures.whole.parameters == sum(counted.values())


def test_a_family_that_the_paper_does_not_list_has_no_comparison() -> None:
    run = CliRunner().invoke
    assert "beside the paper's" in run(cli, ["inspect", "--arch", "sd15"]).output
    assert "beside the paper's" not in run(cli, ["inspect", "--arch", "dit"]).output


@pytest.mark.parametrize(("config", "layers"), [(PIXART, (2, 2)), (DIT, (2, 0))])
def test_layers_of_a_transformer_are_counted(config: ModelConfig, layers: tuple[int, int]) -> None:
    (found,) = (one for one in inspect_config(config).components if one.name == "transformer")
    assert (found.self_attentions, found.cross_attentions) == layers
