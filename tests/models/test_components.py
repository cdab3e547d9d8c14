"""The networks: key names and shapes of diffusers' layout, counts, forward semantics, configs."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from md_export.checkpoint.configs import parse_config
from md_export.errors import ConfigError
from md_export.models.clip import ClipConfig, ClipText
from md_export.models.config import ModelConfig
from md_export.models.families import COMPONENTS
from md_export.models.families.latent_diffusion import VAE_ENCODER
from md_export.models.layers import Attention, FeedForward, Relu, SepConvBlock, Softmax, TimestepEmbedding
from md_export.models.sampling.schedule import ScheduleConfig
from md_export.models.text_encoder import TextEncoder
from md_export.models.unet import MDUNet, MDUNetConfig
from md_export.models.vae import VAEConfig, VAEDecoder, VAEEncoder

SMALL = MDUNetConfig(
    sample_size=8,
    block_out_channels=(16, 32, 48),
    cross_attention_dim=24,
    attention_head_dim=16,
    norm_num_groups=8,
    time_embed_dim=32,
    down_layers=1,
    up_layers=2,
)
WITH_BIAS = ("weight", "bias")


def small(**fields: Any) -> MDUNet:
    torch.manual_seed(0)
    return MDUNet(dataclasses.replace(SMALL, **fields)).eval()


def call(unet: MDUNet, timestep: float = 999.0, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    config = unet.config
    sample = torch.randn(1, config.in_channels, config.sample_size, config.sample_size, generator=generator)
    text = torch.randn(1, 77, config.cross_attention_dim, generator=generator)
    with torch.no_grad():
        out: Tensor = unet(sample, torch.tensor([timestep]), text)
    return out


def leaves(prefix: str, names: str, suffixes: tuple[str, ...] = WITH_BIAS) -> set[str]:
    return {f"{prefix}{name}.{suffix}" for name in names.split() for suffix in suffixes}


# Key names, written from the layout and not from the code


def full_conv(prefix: str, shortcut: bool) -> set[str]:
    return leaves(prefix, "norm1 conv1 time_emb_proj norm2 conv2" + " conv_shortcut" * shortcut)


def sep_conv(prefix: str, shortcut: bool) -> set[str]:
    return leaves(prefix, "conv_dw norm conv_pw1 conv_pw2 time_emb_proj" + " conv_shortcut" * shortcut)


def transformer(prefix: str, layers: int, self_attention: bool) -> set[str]:
    keys = leaves(prefix, "norm proj_in proj_out")
    for layer in range(layers):
        block = f"{prefix}transformer_blocks.{layer}."
        keys |= leaves(block, "norm2 attn2.to_out.0 norm3 ff.net.0.proj ff.net.2")
        keys |= leaves(block, "attn2.to_q attn2.to_k attn2.to_v", ("weight",))
        if self_attention:
            keys |= leaves(block, "norm1 attn1.to_out.0") | leaves(block, "attn1.to_q attn1.to_kv", ("weight",))
    return keys


def unet_keys(down_layers: int, up_layers: int) -> set[str]:
    """Table 6 of the paper in diffusers' names; up_blocks.0 is Up-3."""
    keys = leaves("", "conv_in conv_norm_out conv_out time_embedding.linear_1 time_embedding.linear_2")
    keys |= full_conv("down_blocks.0.resnets.0.", False) | full_conv("down_blocks.1.resnets.0.", True)
    keys |= transformer("down_blocks.1.attentions.0.", 1, False)
    keys |= leaves("", "down_blocks.0.downsamplers.0.conv down_blocks.1.downsamplers.0.conv")
    for j in range(2):
        keys |= sep_conv(f"down_blocks.2.resnets.{j}.", shortcut=j == 0)
        keys |= transformer(f"down_blocks.2.attentions.{j}.", down_layers, True)
        keys |= full_conv(f"up_blocks.1.resnets.{j}.", True) | transformer(f"up_blocks.1.attentions.{j}.", 1, False)
        keys |= full_conv(f"up_blocks.2.resnets.{j}.", True)
    for j in range(3):
        keys |= sep_conv(f"up_blocks.0.resnets.{j}.", False)
        keys |= transformer(f"up_blocks.0.attentions.{j}.", up_layers, True)
    return keys | leaves("", "up_blocks.0.upsamplers.0.conv up_blocks.1.upsamplers.0.conv")


@pytest.mark.parametrize(("down", "up"), [(1, 2), (3, 3)])
def test_unet_keys(down: int, up: int) -> None:
    assert set(small(down_layers=down, up_layers=up).state_dict()) == unet_keys(down, up)


def vae_level(prefix: str, layers: int, shortcut: bool, sampler: str) -> set[str]:
    keys = leaves("", f"{prefix}{sampler}.0.conv") if sampler else set()
    for j in range(layers):
        keys |= leaves(f"{prefix}resnets.{j}.", "norm1 conv1 norm2 conv2" + " conv_shortcut" * (shortcut and j == 0))
    return keys


def vae_half(half: str, kind: str, shortcuts: tuple[bool, ...], layers: int, attention: bool) -> set[str]:
    """AutoencoderKL's ``encoder.`` or ``decoder.`` with one flag per level: does its width change?"""
    keys = leaves(f"{half}.", "conv_in conv_norm_out conv_out")
    for j in range(2):
        keys |= leaves(f"{half}.mid_block.resnets.{j}.", "norm1 conv1 norm2 conv2")
    if attention:
        keys |= leaves(f"{half}.mid_block.attentions.0.", "group_norm to_q to_k to_v to_out.0")
    for i, shortcut in enumerate(shortcuts):
        sampler = f"{kind}samplers" if i < len(shortcuts) - 1 else ""
        keys |= vae_level(f"{half}.{kind}_blocks.{i}.", layers, shortcut, sampler)
    return keys


@pytest.mark.parametrize("attention", [True, False])
def test_vae_keys_are_those_of_autoencoder_kl(attention: bool) -> None:
    config = VAEConfig(block_out_channels=(8, 16, 24, 24), norm_num_groups=8, mid_block_add_attention=attention)
    decoder = vae_half("decoder", "up", (False, False, True, True), 3, attention) | leaves("", "post_quant_conv")
    encoder = vae_half("encoder", "down", (False, True, True, False), 2, attention) | leaves("", "quant_conv")
    assert set(VAEDecoder(config).state_dict()) == decoder
    assert set(VAEEncoder(config).state_dict()) == encoder


def test_a_few_names_of_stable_diffusions_vae_file() -> None:
    """Spelled out from the published file, so that the helpers above cannot be wrong in the same way."""
    keys = set(VAEDecoder(VAEConfig(latent_channels=4, block_out_channels=(32, 64, 96, 96))).state_dict())
    keys |= set(VAEEncoder(VAEConfig(latent_channels=4, block_out_channels=(32, 64, 96, 96))).state_dict())
    for name in (
        "encoder.conv_in.weight",
        "encoder.down_blocks.0.downsamplers.0.conv.bias",
        "encoder.down_blocks.1.resnets.0.conv_shortcut.weight",
        "encoder.mid_block.attentions.0.to_out.0.bias",
        "quant_conv.weight",
        "post_quant_conv.bias",
        "decoder.mid_block.attentions.0.group_norm.weight",
        "decoder.mid_block.resnets.1.conv2.weight",
        "decoder.up_blocks.2.resnets.0.conv_shortcut.weight",
        "decoder.up_blocks.0.upsamplers.0.conv.weight",
        "decoder.up_blocks.3.resnets.2.norm2.bias",
        "decoder.conv_norm_out.weight",
    ):
        assert name in keys


@pytest.mark.parametrize(("field", "prefix"), [("use_quant_conv", "quant_conv"), ("use_post_quant_conv", "post_quant")])
def test_quant_convs_can_be_left_out(field: str, prefix: str) -> None:
    config = VAEConfig(block_out_channels=(8, 8), norm_num_groups=8)
    changes: dict[str, Any] = {field: False}
    without = dataclasses.replace(config, **changes)

    def keys(vae: VAEConfig) -> set[str]:
        return {*VAEDecoder(vae).state_dict(), *VAEEncoder(vae).state_dict()}

    assert {name.split(".")[0] for name in keys(config) - keys(without)} == {
        "quant_conv" if prefix == "quant_conv" else "post_quant_conv"
    }


# Shapes


def test_declared_inputs_and_outputs_are_the_real_ones(other_config: ModelConfig) -> None:
    for component in (*COMPONENTS.values(), VAE_ENCODER):
        module = component.build(other_config).eval()
        inputs = {spec.name: torch.from_numpy(spec.zeros()) for spec in component.input_specs(other_config)}
        with torch.no_grad():
            out = module(**({"image": inputs["image"]} if component is VAE_ENCODER else inputs))
        (declared,) = component.output_specs(other_config)
        assert tuple(out.shape) == declared.shape, component.name
        assert out.dtype == getattr(torch, declared.dtype)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"ff_activation": "gelu"},
        {"attention_kind": "relu", "attention_relu_scale": 4.0},
        {"sep_conv_time": "after_dw", "sep_conv_expansion_of": "out", "sep_conv_expansion": 3, "unified_inner": False},
        {"sep_conv_time": "hidden", "separable_downsamplers": True},
        {"sample_size": 12, "in_channels": 4, "out_channels": 4, "ff_expansion": 1, "attention_head_dim": 8},
    ],
)
def test_unet_variants_run(fields: dict[str, Any]) -> None:
    unet = small(**fields)
    out = call(unet)
    assert out.shape == (1, unet.config.out_channels, unet.config.sample_size, unet.config.sample_size)
    assert torch.isfinite(out).all()
    assert out.std() > 1e-3


def test_every_parameter_of_the_unet_matters() -> None:
    for fields in ({}, {"unified_inner": False, "separable_downsamplers": True, "sep_conv_time": "hidden"}):
        unet = small(**fields).train()
        for parameter in unet.parameters():
            parameter.requires_grad_(True)
        text = torch.randn(1, 77, 24)
        unet(torch.randn(1, 8, 8, 8), torch.tensor([500.0]), text).square().sum().backward()
        idle = [n for n, p in unet.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
        assert idle == []


def test_unet_depends_on_each_input() -> None:
    unet = small()
    assert not torch.allclose(call(unet, seed=1), call(unet, seed=2))
    assert not torch.allclose(call(unet, timestep=999), call(unet, timestep=500))


def test_decoder_multiplies_the_side_by_its_downscale() -> None:
    config = VAEConfig(block_out_channels=(8, 16, 24), norm_num_groups=8)
    latent = torch.randn(1, 8, 4, 4)
    assert config.downscale == 4
    assert VAEDecoder(config)(latent).shape == (1, 3, 16, 16)
    assert VAEEncoder(config)(torch.randn(1, 3, 16, 16)).shape == (1, 8, 4, 4)


# Semantics


def reference_attention(module: Attention, x: Tensor, context: Tensor | None, relu_scale: float | None) -> Tensor:
    """Attention as a loop over heads and queries, from its definition."""
    k_of, v_of = (module.to_kv, module.to_kv) if context is None else (module.to_k, module.to_v)
    source = x if context is None else context
    q, k, v = module.to_q(x)[0], k_of(source)[0], v_of(source)[0]
    heads = []
    for head in range(module.heads):
        part = slice(head * module.head_dim, (head + 1) * module.head_dim)
        scores = q[:, part] @ k[:, part].T / module.head_dim**0.5
        weights = scores.softmax(-1) if relu_scale is None else scores.clamp(min=0) * relu_scale / k.shape[0]
        heads.append(weights @ v[:, part])
    out: Tensor = module.to_out[0](torch.cat(heads, dim=-1))
    return out[None]


@pytest.mark.parametrize("relu_scale", [None, 1.0, 4.0])
@pytest.mark.parametrize("cross", [False, True])
def test_attention_is_its_definition(relu_scale: float | None, cross: bool) -> None:
    torch.manual_seed(0)
    module = Attention(32, 8, 24 if cross else None, Softmax() if relu_scale is None else Relu(relu_scale))
    x, context = torch.randn(1, 10, 32), torch.randn(1, 7, 24) if cross else None
    expected = reference_attention(module, x, context, relu_scale)
    assert torch.allclose(module(x, context), expected, atol=1e-6)
    assert not torch.allclose(module(x, context), reference_attention(module, x, context, 2.0), atol=1e-3)


def test_glu_order_is_value_then_gate() -> None:
    block = FeedForward(4, 3, "swish")
    x = torch.randn(2, 4)
    projection: Any = block.net[0]
    both = projection.proj(x)
    expected = block.net[2](both[:, :12] * nn.functional.silu(both[:, 12:]))
    assert torch.allclose(block(x), expected)


@pytest.mark.parametrize("time", ["scale_shift", "after_dw", "hidden"])
def test_separable_block_is_its_definition(time: str) -> None:
    torch.manual_seed(0)
    block = SepConvBlock(16, 24, 40, 8, 1e-5, 12, time)
    x, emb = torch.randn(1, 16, 4, 4), torch.randn(1, 12)
    shift = block.time_emb_proj(emb * emb.sigmoid())[0, :, None, None]
    h = block.conv_dw(x)
    h = block.norm(h + shift if time == "after_dw" else h)
    if time == "scale_shift":
        h = h * (1 + shift[:16]) + shift[16:]
    h = block.conv_pw1(h)
    h = h + shift if time == "hidden" else h
    assert block.conv_shortcut is not None
    assert torch.allclose(block(x, emb), block.conv_pw2(h * h.sigmoid()) + block.conv_shortcut(x), atol=1e-6)


@pytest.mark.parametrize("timestep", [0.0, 1.0, 500.0, 999.0])
def test_time_embedding_is_stable_diffusions(timestep: float) -> None:
    """diffusers' get_timestep_embedding with flip_sin_to_cos=True and downscale_freq_shift=0, in float64."""
    embedding = TimestepEmbedding(320, 8)
    frequencies = 10000.0 ** (-torch.arange(160, dtype=torch.float64) / 160)
    reference = torch.cat([(timestep * frequencies).cos(), (timestep * frequencies).sin()])
    seen: list[Tensor] = []
    embedding.linear_1.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    embedding(torch.tensor([timestep]))
    assert (seen[0][0].double() - reference).abs().max() < 2e-4


def test_time_embedding_survives_half_precision() -> None:
    """Half-precision weights cost little; half-precision frequencies, which the exporters must avoid, a lot."""
    torch.manual_seed(0)
    embedding, last = TimestepEmbedding(320, 64), torch.tensor([999.0])
    full = embedding(last)
    for layer in (embedding.linear_1, embedding.linear_2):
        layer.half()
    half = embedding(last)
    assert half.dtype == torch.float16
    assert (full - half.float()).abs().max() < 1e-3
    embedding.frequencies = embedding.frequencies.half()
    assert (full - embedding(last).float()).abs().max() > 5e-3


# The text encoder against transformers


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_text_encoder_is_transformers_clip(activation: str) -> None:
    from transformers import CLIPTextConfig, CLIPTextModel

    fields: dict[str, Any] = {
        "vocab_size": 100,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "hidden_act": activation,
        "bos_token_id": 98,
        "eos_token_id": 99,
        "pad_token_id": 99,
    }
    torch.manual_seed(0)
    reference: Any = CLIPTextModel(CLIPTextConfig(**fields))
    reference.eval()
    for parameter in reference.parameters():
        nn.init.normal_(parameter, std=0.3)  # far from initialization, where the layers hardly act
    encoder = TextEncoder(fields).eval()
    encoder.load_state_dict(reference.state_dict(), strict=True)
    for length in (77, 5):
        ids = torch.randint(0, 98, (2, length))
        with torch.no_grad():
            expected, ours = reference(ids).last_hidden_state, encoder(ids.int())
        assert torch.allclose(ours, expected, atol=1e-5)


def test_random_weights_of_clip_are_those_of_transformers() -> None:
    from transformers import CLIPTextConfig, CLIPTextModel

    fields: dict[str, Any] = {**_TEXT, "num_hidden_layers": 2}
    drawn = []
    for build in (lambda: CLIPTextModel(CLIPTextConfig(**fields)), lambda: ClipText(ClipConfig.of(fields, ""))):
        torch.manual_seed(7)
        drawn.append(build().state_dict())
    assert list(drawn[0]) == list(drawn[1])
    assert all(torch.equal(drawn[0][name], drawn[1][name]) for name in drawn[0])
    torch.manual_seed(8)
    name = "encoder.layers.0.mlp.fc1.weight"
    assert not torch.equal(ClipText(ClipConfig.of(fields, "")).state_dict()[name], drawn[0][name])


@pytest.mark.parametrize(
    ("change", "words"),
    [({"num_attention_heads": 5}, "no multiple of num_attention_heads 5"), ({"hidden_act": "tanh"}, "quick_gelu")],
)
def test_a_text_encoder_that_cannot_be_built(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        TextEncoder({**_TEXT, **change})


def test_text_encoder_is_causal() -> None:
    encoder = COMPONENTS["text_encoder"].build(ModelConfig({**_TEXT}, SMALL, VAEConfig())).eval()
    ids = torch.randint(0, 90, (1, 77))
    changed = ids.clone()
    changed[0, 40] = (ids[0, 40] + 1) % 90
    with torch.no_grad():
        difference = (encoder(ids) - encoder(changed)).abs().amax(dim=-1)[0]
    assert difference[:40].max() == 0
    assert difference[40:].min() > 0


_TEXT = {
    "vocab_size": 100,
    "hidden_size": 24,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "bos_token_id": 98,
    "eos_token_id": 99,
}


# Configs


@pytest.mark.parametrize(
    ("folder", "config"),
    [
        ("unet", SMALL),
        ("unet", MDUNetConfig(unified_inner=False, attention_kind="relu")),
        ("vae", VAEConfig(decoder_block_out_channels=(128, 128, 256, 256), decoder_layers_per_block=2)),
        ("vae", VAEConfig()),
        ("scheduler", ScheduleConfig(prediction_type="v_prediction")),
    ],
)
def test_configs_survive_json(folder: str, config: Any) -> None:
    import json

    values = json.loads(json.dumps({"_class_name": "X", "_diffusers_version": "0.30", **dataclasses.asdict(config)}))
    assert parse_config(type(config), folder, values) == config


def test_diffusers_own_vae_config_is_understood() -> None:
    """vae/config.json as diffusers writes it for Stable Diffusion."""
    values = {
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "force_upcast": True,
        "in_channels": 3,
        "latent_channels": 4,
        "latents_mean": None,
        "layers_per_block": 2,
        "mid_block_add_attention": True,
        "norm_num_groups": 32,
        "out_channels": 3,
        "sample_size": 512,
        "scaling_factor": 0.18215,
        "shift_factor": None,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "use_post_quant_conv": True,
        "use_quant_conv": True,
    }
    config = parse_config(VAEConfig, "vae", values)
    assert (config.decoder_layers, config.downscale, config.scaling_factor) == (3, 8, 0.18215)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"block_out_channels": (16, 32)}, "has 2 entries; the MD UNet has three levels"),
        ({"block_out_channels": (16, 32, 44)}, "norm_num_groups=8 does not divide 44"),
        ({"attention_head_dim": 10}, "attention_head_dim=10 does not divide 32"),
        ({"sample_size": 10}, "sample_size=10 must be a multiple of 4"),
        ({"attention_kind": "linear"}, "attention_kind='linear' is unknown; use one of softmax, relu"),
        ({"sep_conv_time": "late"}, "sep_conv_time='late' is unknown"),
        ({"sep_conv_expansion_of": "mid"}, "sep_conv_expansion_of='mid' is unknown"),
    ],
)
def test_impossible_unets_are_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        dataclasses.replace(SMALL, **fields)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("prediction", "a", "b"),
    [("epsilon", 14.64881, -14.61464), ("v_prediction", 0.068265, -0.997667), ("sample", 0.0, 1.0)],
)
def test_one_step_coefficients_of_stable_diffusions_schedule(prediction: str, a: float, b: float) -> None:
    schedule = ScheduleConfig(prediction_type=prediction)
    assert schedule.alpha_cumprod(999) == pytest.approx(0.0046601, rel=1e-4)
    assert schedule.x0_at(schedule.last_timestep) == pytest.approx((a, b), rel=1e-5)
