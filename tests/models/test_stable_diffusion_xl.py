"""Stable Diffusion XL: diffusers' own pipeline is the reference, for a folder that diffusers wrote."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save_file

from md_export.checkpoint import Checkpoint, build_on_meta, open_checkpoint, read_config
from md_export.checkpoint.architectures import arch_config, config_files
from md_export.diagnose.inspect import inspect_config
from md_export.engine.dependencies import notes_of
from md_export.errors import CheckpointError, ConfigError
from md_export.models.diffusers_unet import XLUNetConfig
from md_export.models.families.stable_diffusion_xl import STABLE_DIFFUSION_XL
from md_export.models.sampling.generate import PictureRequest, draw_noise
from md_export.models.sampling.sampler import one_step
from md_export.models.text_encoder import TextEncoder
from md_export.models.tokenizers import tokenize
from md_export.models.walk import Tensors
from md_export.parity.golden.prepare import golden_source
from md_export.parity.metrics import compare
from md_export.rewrites import REWRITES, Consent, apply_rewrites
from md_export.spec.loras import Lora
from md_export.spec.sampler import SamplerPlan
from md_export.spec.variant import Variant
from small_models import XL, random_inputs

diffusers = pytest.importorskip("diffusers", reason="needs the extra diffusers")
PROMPT, SEED = "a red apple! on a table", 3
CLOSE = 1e-4
EXACT_DB = 100
VAE = ("latent_channels", "block_out_channels", "layers_per_block", "norm_num_groups", "scaling_factor")
BLOCKS = ("down_block_types", "up_block_types")
SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


@pytest.fixture(scope="module")
def saved(xl_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """diffusers' pipeline with random weights, and the folder that it saves."""
    torch.manual_seed(5)
    files: dict[str, Any] = {name.partition("/")[0]: values for name, values in config_files(XL).items()}
    first, second = XL.text_encoder, XL.text_encoder_2 or {}
    pipe = diffusers.StableDiffusionXLPipeline(
        vae=diffusers.AutoencoderKL(**{name: files["vae"][name] for name in VAE + BLOCKS}),
        text_encoder=transformers.CLIPTextModel(transformers.CLIPTextConfig(**first)),
        text_encoder_2=transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**second)),
        tokenizer=transformers.CLIPTokenizer.from_pretrained(xl_checkpoint / "tokenizer"),
        tokenizer_2=transformers.CLIPTokenizer.from_pretrained(xl_checkpoint / "tokenizer_2"),
        unet=diffusers.UNet2DConditionModel(**{k: v for k, v in files["unet"].items() if k != "_class_name"}),
        scheduler=diffusers.EulerDiscreteScheduler(**SCHEDULE, timestep_spacing="leading"),
    )
    pipe.set_progress_bar_config(disable=True)
    folder = tmp_path_factory.mktemp("xl") / "saved"
    pipe.save_pretrained(folder)
    return pipe, folder


def theirs(pipe: Any, steps: int, guidance: float, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """The last latent, not scaled back, and the picture ``[H, W, 3]`` in [0, 1]."""

    def made(kind: str) -> Any:
        noise = torch.from_numpy(draw_noise(SEED, (1, 4, 16, 16)))
        given = {"num_inference_steps": steps, "guidance_scale": guidance, "latents": noise, "output_type": kind}
        return pipe(PROMPT, **given, **options).images

    return made("latent").numpy(), made("np")[0]


def ours(folder: Path, plan: SamplerPlan, negative: str | None = None) -> Tensors:
    pipeline = golden_source(open_checkpoint(folder), sampler=plan).pipeline
    (values,) = pipeline.values([PictureRequest(PROMPT, SEED, negative=negative)])
    return values


@pytest.mark.seen("SDXL as diffusers writes it", "the same latents and pictures as diffusers' pipeline")
@pytest.mark.parametrize(("steps", "guidance", "negative"), [(2, 5.0, None), (2, 5.0, "blue"), (1, 1.0, None)])
def test_pictures_are_those_of_diffusers(
    saved: tuple[Any, Path], steps: int, guidance: float, negative: str | None
) -> None:
    pipe, folder = saved
    values = ours(folder, SamplerPlan(steps, guidance=guidance), negative)
    latent, picture = theirs(pipe, steps, guidance, negative_prompt=negative)
    assert np.abs(values["sampler.latent"] * pipe.vae.config.scaling_factor - latent).max() < CLOSE
    assert np.abs(values["made.picture"] - picture).max() < CLOSE
    _, moved = theirs(pipe, steps, guidance, negative_prompt=negative, original_size=(512, 512))
    assert np.abs(values["made.picture"] - moved).max() > CLOSE


def test_the_empty_prompt_is_zeros_unless_the_index_denies_it(saved: tuple[Any, Path], tmp_path: Path) -> None:
    pipe, folder = saved
    plan, copy = SamplerPlan(2, guidance=5.0), Path(shutil.copytree(folder, tmp_path / "copy"))
    index = json.loads((copy / "model_index.json").read_text())
    assert index["force_zeros_for_empty_prompt"] is True
    (copy / "model_index.json").write_text(json.dumps({**index, "force_zeros_for_empty_prompt": False}))
    before, after = ours(folder, plan), ours(copy, plan)
    assert before["given.prompted"].tolist() == [0, 1]
    assert "given.prompted" not in after
    _, encoded = theirs(pipe, 2, 5.0, negative_prompt="")
    assert np.abs(after["made.picture"] - encoded).max() < CLOSE < np.abs(before["made.picture"] - encoded).max()
    assert open_checkpoint(copy).sha256() != open_checkpoint(folder).sha256()


def test_each_tokenizer_pads_as_its_files_say(xl_checkpoint: Path) -> None:
    checkpoint = open_checkpoint(xl_checkpoint)
    first, second = (tokenize(folder, "a!", 77)[0].tolist() for folder in checkpoint.tokenizers.values())
    # What pads is a word of its own, id 0, without the mark of a word's end.
    assert (first[:4], second[:4]) == ([518, 320, 256, 519], [518, 320, 0, 519])
    assert (set(first[4:]), set(second[4:])) == ({519}, {0})
    notes = notes_of(checkpoint)["unet"]
    assert (notes["pad_token_id"], notes["pad_token_id_2"], notes["zeros_for_empty"]) == ("519", "0", "true")


@pytest.mark.parametrize(("end", "pad"), [(2, 0), (519, 519), (519, 0)])
def test_the_pooled_vector_is_at_the_first_end(end: int, pad: int) -> None:
    """2 is what configs said before transformers 4.31; the end is then the highest id."""
    config = {**(XL.text_encoder_2 or {}), "eos_token_id": end}
    torch.manual_seed(1)
    reference: Any = transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**config))
    mine = TextEncoder(config, "penultimate_and_pooled").eval()
    mine.load_state_dict({name.removeprefix("text_model."): one for name, one in reference.state_dict().items()})
    ids = torch.full((1, 77), pad)
    ids[0, :5] = torch.tensor([518, 4, 9, 11, 519])
    with torch.no_grad():
        wanted = reference(ids, output_hidden_states=True)
        hidden, pooled = mine(ids.int())
        _, elsewhere = mine(ids.int().roll(1, dims=1))
    assert torch.allclose(hidden, wanted.hidden_states[-2], atol=1e-5)
    assert torch.allclose(pooled, wanted.text_embeds, atol=1e-5)
    assert not torch.allclose(elsewhere, wanted.text_embeds, atol=1e-3)


def test_a_lora_may_change_the_layer_that_is_not_computed(xl_checkpoint: Path, tmp_path: Path) -> None:
    """kohya trains all layers of the first text encoder, and SDXL reads the one before the last."""
    file, names = tmp_path / "style.safetensors", ("te1_text_model_encoder_layers_2", "te2_text_model_encoder_layers_2")
    rows = {"lora_down.weight": (2, 64), "lora_up.weight": (64, 2)}
    wide = {"lora_down.weight": (2, 96), "lora_up.weight": (96, 2)}
    tensors = {
        f"lora_{name}_self_attn_q_proj.{part}": torch.randn(shape)
        for name, shapes in zip(names, (rows, wide), strict=True)
        for part, shape in shapes.items()
    }
    save_file(tensors, file)
    changes = {}
    for name in ("text_encoder", "text_encoder_2"):
        module, changes[name] = replace_loras(xl_checkpoint, file).without_loras(name)
        assert isinstance(module, TextEncoder)
    assert changes["text_encoder"] == []
    assert [change.module for change in changes["text_encoder_2"]] == ["encoder.layers.2.self_attn.q_proj"]


def replace_loras(folder: Path, file: Path) -> Checkpoint:
    return dataclasses.replace(open_checkpoint(folder), loras=(Lora(file, file.name),))


def test_clip_skip_leaves_the_pooled_vector(xl_checkpoint: Path) -> None:
    checkpoint = open_checkpoint(xl_checkpoint)
    ids = torch.from_numpy(tokenize(checkpoint.tokenizers["tokenizer_2"], PROMPT, 77))
    with torch.no_grad():
        hidden, pooled = checkpoint.module("text_encoder_2")(ids)
        skipped, same = checkpoint.at(Variant(clip_skip=1)).module("text_encoder_2")(ids)
    assert torch.equal(pooled, same)
    assert not torch.allclose(hidden, skipped, atol=1e-3)


@pytest.mark.parametrize(
    ("file", "field", "value", "message"),
    [
        ("model_index.json", "requires_aesthetics_score", True, "is the refiner of Stable Diffusion XL"),
        ("text_encoder_2/config.json", "projection_dim", 56, "projection_class_embeddings_input_dim=88, but text_enc"),
        ("text_encoder_2/config.json", "hidden_size", 192, r"cross_attention_dim=160, .* is 256"),
        ("unet/config.json", "addition_embed_type", "text", "only addition_embed_type=None"),
        ("unet/config.json", "time_cond_proj_dim", 8, r"missing:\s+time_embedding.cond_proj.weight \[32, 8\]"),
    ],
)
def test_what_is_refused(
    xl_checkpoint: Path, tmp_path: Path, file: str, field: str, value: object, message: str
) -> None:
    folder = Path(shutil.copytree(xl_checkpoint, tmp_path / "xl"))
    (folder / file).write_text(json.dumps({**json.loads((folder / file).read_text()), field: value}))
    with pytest.raises((CheckpointError, ConfigError), match=message):
        open_checkpoint(folder).check()


def test_a_controlnet_beside_it_is_refused(xl_checkpoint: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(xl_checkpoint, tmp_path / "xl"))
    (folder / "controlnet").mkdir()
    (folder / "controlnet" / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="controlnet/ exists, but Stable Diffusion XL does not support it"):
        read_config(folder)


@pytest.mark.seen("SSD-1B and other shapes of SDXL's UNet", "read from the config")
def test_levels_may_differ_within(xl_checkpoint: Path, tmp_path: Path) -> None:
    """As SSD-1B's: layers of attention for each block, its own ones on the way up, none in the middle."""
    folder = Path(shutil.copytree(xl_checkpoint, tmp_path / "xl"))
    fields = {
        "layers_per_block": 2,
        "mid_block_type": "UNetMidBlock2D",
        "transformer_layers_per_block": [0, [2, 1], [1, 1]],
        "reverse_transformer_layers_per_block": [[1, 1, 2], [2, 1, 1], 1],
    }
    file = folder / "unet" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))
    config = read_config(folder)
    unet = build_on_meta(STABLE_DIFFUSION_XL["unet"], config)
    stacks = {path: len(layer.transformer_blocks) for path, layer in unet.named_modules() if path.endswith("ns.0")}
    assert stacks == {"down_blocks.1.attentions.0": 2, "down_blocks.2.attentions.0": 1} | {
        "up_blocks.0.attentions.0": 1,
        "up_blocks.1.attentions.0": 2,
    }
    file.write_text(json.dumps({**json.loads(file.read_text()), "transformer_layers_per_block": [0, [2, "x"], 1]}))
    with pytest.raises(ConfigError, match="transformer_layers_per_block must be"):
        read_config(folder)


@pytest.mark.parametrize(
    "names",
    [
        ("tabulate_timestep",),
        ("fold_timestep", "tabulate_timestep"),
        ("linear_to_conv2d", "group_norm_to_instance_norm", "split_attention_heads"),
        ("fold_timestep", "tokens_to_maps", "vector_linear_to_conv2d", "staged_group_norm", "fold_norm_affine"),
        ("fold_attention_scale", "upsample_to_four_convs", "fold_x0"),
    ],
    ids="+".join,
)
def test_rewrites_of_the_whole_unet(xl_checkpoint: Path, names: tuple[str, ...]) -> None:
    checkpoint, step = open_checkpoint(xl_checkpoint), one_step(XL)
    given = random_inputs("unet", XL, seed=2)
    given["time_ids"] = np.asarray([[1024, 768, 0, 0, 1024, 768]], np.float32)
    inputs = [torch.from_numpy(value) for value in given.values()]
    module = checkpoint.module("unet")
    with torch.no_grad():
        out = checkpoint.module("unet")(*inputs)
        records = apply_rewrites(names, "unet", module, step, Consent())
        found = module(*(inputs[:1] + inputs[2:] if "fold_timestep" in names else inputs))
    assert all(record.fired for record in records)
    wanted = (step.a * inputs[0] + step.b * out) / step.scaling_factor if "fold_x0" in names else out
    assert compare(found.numpy(), wanted.numpy()).snr_db > EXACT_DB
    assert compare(1.001 * found.numpy(), wanted.numpy()).snr_db < EXACT_DB


@pytest.mark.parametrize("name", ["linear_to_conv2d", "tokens_to_maps", "fold_norm_affine", "fold_attention_scale"])
@pytest.mark.parametrize("component", ["text_encoder", "text_encoder_2"])
def test_rewrites_of_the_text_encoders(xl_checkpoint: Path, component: str, name: str) -> None:
    assert component in REWRITES[name].components
    checkpoint = open_checkpoint(xl_checkpoint)
    ids = torch.from_numpy(tokenize(checkpoint.tokenizers["tokenizer"], PROMPT, 77))
    module = checkpoint.module(component)
    with torch.no_grad():
        wanted = checkpoint.module(component)(ids)
        (record,) = apply_rewrites((name,), component, module, one_step(XL), Consent())
        found = module(ids)
    assert record.fired
    pairs = zip(found, wanted, strict=True) if component == "text_encoder_2" else [(found, wanted)]
    assert all(compare(one.numpy(), other.numpy()).snr_db > EXACT_DB for one, other in pairs)


def test_inspect_counts_it_and_compares_it_with_nothing() -> None:
    found = inspect_config(XL)
    assert [part.name for part in found.components] == ["text_encoder", "text_encoder_2", "unet", "vae_decoder"]
    assert all(part.macs > 0 for part in found.components)
    assert (found.family, found.compare("sdxl")) == ("sdxl", ())


def test_the_architecture_is_the_published_one() -> None:
    """Figures of the paper's table 1 and of the published files: 2.6 B, 123 M and 695 M parameters."""
    config = arch_config("sdxl")
    assert isinstance(config.denoiser, XLUNetConfig)
    assert (config.image_size, config.text_width) == (1024, 2048)
    figures = {
        row.name: sum(one.numel() for one in build_on_meta(row, config).parameters()) / 1e6
        for row in STABLE_DIFFUSION_XL.required
    }
    rounded = {name: round(count, 1) for name, count in figures.items()}
    # The last layer of the first text encoder and its norm, 7.1 M, are not computed.
    assert rounded == {"text_encoder": 116.0, "text_encoder_2": 694.7, "unet": 2567.5, "vae_decoder": 49.5}
    narrow = dataclasses.replace(config.denoiser, transformer_layers_per_block=(1, 2, 4))
    fewer = build_on_meta(STABLE_DIFFUSION_XL["unet"], dataclasses.replace(config, denoiser=narrow))
    assert sum(one.numel() for one in fewer.parameters()) < 2e9
