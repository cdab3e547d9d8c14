"""Stable Diffusion's folders: what is read computes what diffusers computes, what is not read is refused by name."""

from __future__ import annotations

import itertools
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from cli.test_cli import fails, md_export
from md_export.checkpoint import build_on_meta, open_checkpoint, read_config
from md_export.checkpoint.architectures import arch_config
from md_export.checkpoint.lora import changes_of, open_lora
from md_export.diagnose.inspect import inspect_config
from md_export.errors import CheckpointError, ConfigError, MissingExtraError, UsageError
from md_export.models.diffusers_unet import PLAIN
from md_export.models.families.stable_diffusion import STABLE_DIFFUSION
from md_export.models.sampling.sampler import one_step
from md_export.models.unet import MDUNetConfig
from md_export.parity.metrics import compare
from md_export.rewrites import Consent, apply_rewrites
from md_export.spec.loras import Lora
from md_export.spec.sampler import OneStep
from md_export.spec.variant import Variant
from rewrites import diffusers_models
from rewrites.forms import EXACT_DB
from small_models import STABLE, random_inputs

UNET = "unet/config.json"
UNET_WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
STEP = OneStep(999, 14.64881, -14.61464, 0.18215, "epsilon")


@pytest.fixture
def folder(stable_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(stable_checkpoint, tmp_path / "stable"))


def edit(folder: Path, file: str, **fields: Any) -> None:
    """Set fields of a config; those that are ``...`` are taken out."""
    path = folder / file
    values = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not ...}))


def unet_inputs(channels: int = 4, text: int = 64) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(3)
    return torch.randn(1, channels, 16, 16), torch.tensor([999.0]), torch.randn(1, 77, text)


# Read


def test_diffusers_opens_what_init_writes_and_both_compute_the_same(stable_checkpoint: Path) -> None:
    diffusers: Any = pytest.importorskip("diffusers")
    checkpoint, place = open_checkpoint(stable_checkpoint), str(stable_checkpoint)
    checkpoint.check()
    given = {name: torch.from_numpy(a) for name, a in random_inputs("unet", STABLE, 1).items()}
    unet = diffusers.UNet2DConditionModel.from_pretrained(place, subfolder="unet", torch_dtype=torch.float32).eval()
    vae = diffusers.AutoencoderKL.from_pretrained(place, subfolder="vae", torch_dtype=torch.float32).eval()
    latent = given["sample"]
    with torch.no_grad():
        assert torch.equal(checkpoint.module("unet")(*given.values()), unet(**given).sample)
        wanted = vae.decode(latent).sample.numpy()
        assert compare(checkpoint.module("vae_decoder")(latent).numpy(), wanted).snr_db > EXACT_DB
        mean = vae.encode(torch.randn(1, 3, 32, 32)).latent_dist.mean
    assert mean.shape == (1, 4, 16, 16)
    assert vae.config.scaling_factor == checkpoint.config.vae.scaling_factor == 0.18215


SCHEDULERS = ["PNDM", "DDIM", "EulerDiscrete", "EulerAncestralDiscrete", "LCM", "UniPCMultistep", "DDPM"]


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_one_step_does_not_depend_on_the_sampler(folder: Path, scheduler: str) -> None:
    import diffusers

    schedule = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    getattr(diffusers, f"{scheduler}Scheduler")(**schedule).save_pretrained(folder / "scheduler")
    step = one_step(open_checkpoint(folder).config)
    assert (step.timestep, step.scaling_factor, step.prediction_type) == (999, 0.18215, "epsilon")
    assert (step.a, step.b) == pytest.approx((STEP.a, STEP.b), rel=1e-6)


@pytest.mark.seen("configs as diffusers saves them", "read")
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"use_linear_projection": True, "attention_head_dim": (2, 4), "upcast_attention": True},
        {"mid_block_type": None},
        {"layers_per_block": (1, 2), "transformer_layers_per_block": 2},
        {"flip_sin_to_cos": False, "freq_shift": 1, "center_input_sample": True},
    ],
    ids=["1", "2", "pruned", "uneven", "embedding"],
)
def test_what_diffusers_saves_is_read_and_ours_afterwards(folder: Path, fields: dict[str, Any]) -> None:
    """Weights of another layout would not load, other wiring would not compute the same."""
    torch.manual_seed(1)
    theirs: Any = diffusers_models.unet(**({"sample_size": 16, "cross_attention_dim": 64} | fields))
    diffusers_models.trained(theirs)
    theirs.save_pretrained(folder / "unet")
    checkpoint = open_checkpoint(folder)
    given = unet_inputs()
    with torch.no_grad():
        wanted = theirs(*given).sample
        module = checkpoint.module("unet")
        assert torch.equal(module(*given), wanted)
        apply_rewrites((), "unet", module, STEP, Consent())
        assert compare(module(*given).numpy(), wanted.numpy()).snr_db > EXACT_DB


def test_a_vae_of_before_the_scaling_factor(folder: Path) -> None:
    edit(folder, "vae/config.json", scaling_factor=..., latent_channels=...)
    assert read_config(folder).vae == STABLE.vae


@pytest.mark.seen("in-painting UNet of Stable Diffusion", "read")
def test_in_painting_has_nine_channels(folder: Path) -> None:
    edit(folder, UNET, in_channels=9)
    config = read_config(folder)
    assert config.inpaints
    assert config.latent_shape == (1, 4, 16, 16)


def test_sizes_follow_from_the_levels() -> None:
    assert STABLE.at(Variant(64)).latent_shape == (1, 4, 32, 32)
    with pytest.raises(
        UsageError, match=r"multiple of 4 pixels from 8 to 512, because .* side that is a multiple of 2;"
    ):
        STABLE.at(Variant(66))
    with pytest.raises(UsageError, match="multiple of 64 pixels from 128"):
        arch_config("sd15").at(Variant(64))


# Refused


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"addition_embed_type": "text"}, "only addition_embed_type=None is supported, not 'text'"),
    ({"class_embed_type": "timestep"}, "class_embed_type"),
    ({"time_cond_proj_dim": 3}, "time_cond_proj_dim=3 is below 4"),
    ({"resnet_time_scale_shift": "scale_shift"}, "resnet_time_scale_shift"),
    ({"encoder_hid_dim_type": "text_proj"}, "encoder_hid_dim_type"),
    ({"num_attention_heads": 8}, "num_attention_heads"),
    ({"down_block_types": ["AttnDownBlock2D", "DownBlock2D"]}, "down_block_types: 'AttnDownBlock2D' is not supported"),
    ({"down_block_types": ["DownBlock2D"]}, "down_block_types must have 2 entries"),
    ({"up_block_types": [1, 2]}, "up_block_types must be a list of 1 to 16 names"),
    ({"mid_block_type": "UNetMidBlock3D"}, "mid_block_type='UNetMidBlock3D' is unknown"),
    ({"layers_per_block": [1, 2, 3]}, "layers_per_block must have 2 entries"),
    ({"layers_per_block": "many"}, "layers_per_block must be a whole number above 0"),
    ({"layers_per_block": [1, -1]}, "layers_per_block must be a list of 1 to 16 whole numbers"),
    ({"attention_head_dim": 7}, "attention_head_dim=7, the number of heads, does not divide 32"),
    ({"norm_num_groups": 7}, "norm_num_groups=7 does not divide 32"),
    ({"sample_size": 15}, "sample_size=15 must be a multiple of 2"),
    ({"block_out_channels": []}, "block_out_channels must be a list"),
    ({"use_linear_projection": "yes"}, "use_linear_projection must be bool"),
    ({"cross_attention_dim": 32}, "cross_attention_dim=32, but the text encoder's hidden_size is 64"),
    ({"out_channels": 8}, "out_channels=8"),
    ({"surprise": 1}, "unknown field surprise"),
]


@pytest.mark.seen("a config that asks for another function", "refused by the field's name")
@pytest.mark.parametrize(("fields", "said"), REFUSED, ids=["+".join(fields) for fields, _ in REFUSED])
def test_another_function_is_refused_by_its_field(folder: Path, fields: dict[str, Any], said: str) -> None:
    edit(folder, UNET, **fields)
    with pytest.raises(ConfigError) as caught:
        open_checkpoint(folder)
    assert str(caught.value).startswith("unet/config.json: ")
    assert said in str(caught.value)


def test_any_value_of_any_field_is_read_or_refused(folder: Path) -> None:
    """No config value, however strange, gets past the error tree."""
    whole = json.loads((folder / UNET).read_text())
    strange: list[Any] = [None, -1, 0, 1, 3, 1.5, 10**30, "x", "", True, [], [0], [2, 2], [3, 3, 3], ["x", "x"], {}]
    refused = 0
    for field, value in itertools.product((*whole, *PLAIN), strange):
        (folder / UNET).write_text(json.dumps({**whole, field: value}))
        try:
            build_on_meta(STABLE_DIFFUSION["unet"], read_config(folder))
        except (CheckpointError, ConfigError) as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > 11 * len(whole)


def test_absurd_sizes_cost_nothing(folder: Path) -> None:
    edit(folder, UNET, block_out_channels=[2**40, 2**40])
    with pytest.raises(CheckpointError, match="billion parameters"):
        open_checkpoint(folder).check()
    edit(folder, UNET, block_out_channels=[32, 64], layers_per_block=[1, 2**40])
    with pytest.raises(CheckpointError, match=r"layers_per_block=1099511627776 is absurd \(the limit is 256\)"):
        open_checkpoint(folder)
    edit(folder, UNET, layers_per_block=256, transformer_layers_per_block=256)
    with pytest.raises(CheckpointError, match="10,000 tensors"):
        open_checkpoint(folder).check()


def test_keys_that_do_not_fit_are_listed(folder: Path) -> None:
    tensors = load_file(folder / UNET_WEIGHTS)
    tensors["mid_block.attentions.0.proj_inn.weight"] = tensors.pop("mid_block.attentions.0.proj_in.weight")
    tensors["conv_in.weight"] = tensors["conv_in.weight"][:, :3].contiguous()
    save_file(tensors, folder / UNET_WEIGHTS)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder).check()
    for said in (
        "1 missing, 1 extra, 1 of another shape",
        "did you mean mid_block.attentions.0.proj_in.weight?",
        "conv_in.weight: stored [32, 3, 3, 3], config says [32, 4, 3, 3]",
    ):
        assert said in str(caught.value)


def test_without_diffusers_the_extra_is_named(stable_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers.models.unets.unet_2d_condition", None)
    checkpoint = open_checkpoint(stable_checkpoint)
    assert isinstance(checkpoint.module("vae_decoder"), nn.Module)
    with pytest.raises(MissingExtraError, match=r"pip install 'md-export\[diffusers\]'"):
        checkpoint.module("unet")


# What else works on it


FORMS: list[tuple[str, ...]] = [
    ("tabulate_timestep",),
    ("fold_x0",),
    ("fold_timestep", "fold_x0"),
    ("tabulate_timestep", "linear_to_conv2d", "group_norm_to_instance_norm", "fold_x0"),
]


@pytest.mark.parametrize("names", FORMS, ids="+".join)
def test_rewrites_of_the_whole_unet(stable_checkpoint: Path, names: tuple[str, ...]) -> None:
    checkpoint, given = open_checkpoint(stable_checkpoint), unet_inputs()
    step = one_step(checkpoint.config)
    module = checkpoint.module("unet")
    with torch.no_grad():
        out = checkpoint.module("unet")(*given)
        records = apply_rewrites(names, "unet", module, step, Consent())
        found = module(*(given[:1] + given[2:] if "fold_timestep" in names else given))
    assert all(record.fired for record in records)
    wanted = (step.a * given[0] + step.b * out) / step.scaling_factor if "fold_x0" in names else out
    assert compare(found.numpy(), wanted.numpy()).snr_db > EXACT_DB
    assert compare(1.001 * found.numpy(), wanted.numpy()).snr_db < EXACT_DB
    again = apply_rewrites(names, "unet", module, step, Consent())
    assert not any(record.fired for record in again)


def test_a_lora_finds_linears_and_convolutions(stable_checkpoint: Path, tmp_path: Path) -> None:
    kernels = {
        "down_blocks.1.attentions.0.proj_in": (1, 1),
        "mid_block.attentions.0.proj_out": (1, 1),
        "up_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q": (),
    }
    tensors = {}
    for path, kernel in kernels.items():
        name = f"lora_unet_{path.replace('.', '_')}"
        tensors[f"{name}.lora_down.weight"] = torch.randn(2, 64, *kernel)
        tensors[f"{name}.lora_up.weight"] = torch.randn(64, 2, *kernel)
    file = tmp_path / "style.safetensors"
    save_file(tensors, file)
    module = open_checkpoint(stable_checkpoint).module("unet")
    changes = changes_of(open_lora(Lora(file, file.name)), "unet", module)
    assert {change.module for change in changes} == set(kernels)


@pytest.mark.slow
def test_inspect_meets_the_paper() -> None:
    """Table 1 has 392; counted as the paper counts, without taps on padding."""
    found = inspect_config(arch_config("sd15"))
    text, unet, decoder = found.components
    assert [round(part.parameters / 1e6, 1) for part in (text, unet, decoder)] == [123.1, 859.5, 49.5]
    assert (unet.conv_blocks, unet.self_attentions, unet.cross_attentions) == (22, 16, 16)
    assert found.family == "sd15"
    counted, without_padding = found.compare(found.family)
    assert (round(counted.ours, 1), round(without_padding.ours, 1)) == (401.6, 390.9)
    assert abs(without_padding.percent) < 1


def test_the_command_line_tells_what_is_refused(folder: Path) -> None:
    edit(folder, UNET, addition_embed_type="text")
    fails(md_export("inspect", folder), 1, "error: unet/config.json: only addition_embed_type=None is supported")


def test_mobile_diffusion_is_still_read_as_such(nano: Path, stable_checkpoint: Path) -> None:
    assert isinstance(read_config(nano).denoiser, MDUNetConfig)
    assert read_config(stable_checkpoint).denoiser == STABLE.denoiser
