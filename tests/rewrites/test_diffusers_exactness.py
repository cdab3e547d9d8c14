"""Rewrites of diffusers' and transformers' own modules leave the function alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from md_export.models.unet import MDUNet
from md_export.models.vae import VAEConfig, VAEDecoder
from md_export.parity.metrics import compare
from md_export.rewrites import Consent, apply_rewrites
from md_export.rewrites.adopt import adopt
from rewrites.diffusers_models import STEP, TEXT, fresh_subject, model, rewrite, trained, vae
from rewrites.forms import EXACT_DB
from rewrites.test_exactness import dropped, other_groups, roll_channels, swap_glu
from rewrites.test_folds import SMALL

TOKENS = ("tokens_to_maps", "fold_norm_affine")
DECODER = (*TOKENS, "staged_group_norm", "upsample_to_four_convs")
UNET = (*DECODER, "fold_attention_scale", "vector_linear_to_conv2d", "fold_timestep")
NEURAL_ENGINE = ("fold_norm_affine", "linear_to_conv2d", "group_norm_to_instance_norm")
CASES = [
    *(("sd1", (name,)) for name in (*UNET, *NEURAL_ENGINE[1:])),
    ("sd1", (*NEURAL_ENGINE, "split_attention_heads")),
    *((name, forms) for name in ("sd1", "sd2") for forms in (UNET, ("fold_timestep", *reversed(UNET[:-2])))),
    *(("vae", (name,)) for name in (*DECODER, *NEURAL_ENGINE[1:], "fold_attention_scale")),
    ("vae", (*DECODER, "fold_attention_scale")),
    ("vae", ("fold_attention_scale", *DECODER)),
    ("vae", (*NEURAL_ENGINE, "fold_attention_scale")),
    *(("clip", (name,)) for name in (*TOKENS, "linear_to_conv2d", "fold_attention_scale")),
    ("clip", (*TOKENS, "fold_attention_scale")),
]
IDS = [f"{name}-{'+'.join(names)}" for name, names in CASES]


@pytest.mark.parametrize(("name", "names"), CASES, ids=IDS)
def test_same_function(name: str, names: tuple[str, ...]) -> None:
    case = fresh_subject(name)
    fired = rewrite(case, *names)
    assert set(fired) == set(names)
    assert min(fired.values()) > 0
    assert case.snr_db(dropped(names)) >= EXACT_DB


def test_every_layer_is_reached() -> None:
    """Eight attentions in four stacks; a time projection in each of the eight ResNet blocks and two before them."""
    fired = rewrite(fresh_subject("sd1"), *UNET[:-1])
    assert fired == {
        "tokens_to_maps": 4 * (2 + 2 * 4 + 2),
        "fold_norm_affine": 4 * (1 + 3),
        "staged_group_norm": 8 * 2 + 4 + 1,
        "upsample_to_four_convs": 1,
        "vector_linear_to_conv2d": 8 + 2,
        "fold_attention_scale": 8,
    }


@pytest.mark.parametrize(
    ("name", "damage"),
    [("sd1", roll_channels), ("sd1", swap_glu), ("sd1", other_groups), ("clip", roll_channels), ("vae", other_groups)],
)
def test_the_measure_sees_small_damage(name: str, damage: Callable[[nn.Module], None]) -> None:
    case = fresh_subject(name)
    rewrite(case, *TOKENS)
    damage(model(case).decoder if name == "vae" else case.module)
    assert case.snr_db() < EXACT_DB - 20


@pytest.mark.parametrize("name", ["sd1", "sd2", "vae", "clip"])
def test_weights_keep_their_paths(name: str) -> None:
    """By which the checkpoint, the audit and attribution name them."""
    case = fresh_subject(name)
    before = {path: tensor.clone() for path, tensor in case.module.state_dict().items()}
    rewrite(case, "tokens_to_maps")
    after = case.module.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[path].reshape(before[path].shape), before[path]) for path in before)


def test_the_checkpoint_is_not_written_to() -> None:
    case = fresh_subject("sd1")
    before = {path: (tensor, tensor.clone()) for path, tensor in case.module.state_dict().items()}
    rewrite(case, *UNET)
    assert all(torch.equal(tensor, copy) for tensor, copy in before.values())


def test_a_second_time_it_is_in_place_already() -> None:
    case = fresh_subject("sd1")
    rewrite(case, *UNET)
    assert not any(rewrite(case, *UNET).values())
    assert case.snr_db(("timestep",)) >= EXACT_DB


def picture(unet: nn.Module, vae: nn.Module) -> Any:
    """Two steps with guidance, hence two latents at once, through diffusers' own pipeline."""
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    parts = {"vae": vae, "unet": unet, "scheduler": scheduler, "text_encoder": None, "tokenizer": None}
    pipe = diffusers.StableDiffusionPipeline(
        **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    text, other = torch.randn(2, 1, 77, TEXT, generator=generator)
    return pipe(
        prompt_embeds=text,
        negative_prompt_embeds=other,
        num_inference_steps=2,
        generator=generator,
        output_type="np",
    ).images


def test_the_pipeline_still_runs() -> None:
    """What calls the rewritten layers is diffusers' code, as it was."""
    denoise, decode = fresh_subject("sd1"), fresh_subject("vae")
    before = picture(model(denoise), model(decode))
    rewrite(denoise, *UNET[:-1])
    rewrite(decode, *DECODER)
    found = picture(model(denoise), model(decode))
    assert before.shape == (1, 16, 16, 3)
    assert compare(found, before).snr_db >= EXACT_DB - 10  # two steps with a guidance of 7.5
    model(denoise).conv_in.weight.mul_(1.01)
    assert compare(picture(model(denoise), model(decode)), before).snr_db < EXACT_DB - 30


def test_substitutions_that_need_training_match_too() -> None:
    case = fresh_subject("sd1")
    names = ("gelu_to_swish", "softmax_to_relu")
    records = apply_rewrites(names, "unet", model(case), STEP, Consent(allow_drift=True))
    assert [record.fired for record in records] == [4, 8]
    assert case.snr_db() < EXACT_DB - 20


def test_our_own_layers_are_left_alone() -> None:
    assert adopt(MDUNet(SMALL)) == 0


def test_the_encoder_of_the_vae_gains_too() -> None:
    torch.manual_seed(0)
    net: Any = trained(vae())
    image = torch.randn(1, 3, 16, 16)
    before = net.encode(image).latent_dist.mean.numpy()
    apply_rewrites(DECODER, "vae_decoder", net, STEP, Consent())
    assert compare(net.encode(image).latent_dist.mean.numpy(), before).snr_db >= EXACT_DB


def test_another_timestep_is_seen() -> None:
    case = fresh_subject("sd1")
    rewrite(case, "fold_timestep")
    other = fresh_subject("sd1")
    other.arrays["timestep"][:] = 998.0
    assert compare(case.run(("timestep",)), other.run()).snr_db < EXACT_DB - 20
    other.arrays["timestep"][:] = 999.0


def test_our_own_decoder_takes_its_weights() -> None:
    """AutoencoderKL's decoding half and VAEDecoder are one module tree."""
    case = fresh_subject("vae")
    library = model(case)
    fields = {field.name for field in dataclasses.fields(VAEConfig)}
    config = {name: value for name, value in library.config.items() if name in fields}
    ours = VAEDecoder(VAEConfig(**config | {"block_out_channels": tuple(config["block_out_channels"])})).eval()
    parts = ("decoder.", "post_quant_conv.")
    weights = {path: tensor for path, tensor in library.state_dict().items() if path.startswith(parts)}
    ours.load_state_dict(weights, strict=True)
    with torch.inference_mode():
        found = ours(torch.from_numpy(case.arrays["latent"])).numpy()
    assert compare(found, case.expected).snr_db >= EXACT_DB
