"""AutoencoderTiny as decoder and encoder: what diffusers saves is loaded, computes the same, and is exported."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import save_file
from torch import nn

from in_process import in_process
from md_export.checkpoint import open_checkpoint
from md_export.checkpoint.architectures import write_checkpoint
from md_export.cli import cli
from md_export.engine.export import export
from md_export.engine.generate import pictures_of_artifacts, pictures_of_checkpoint
from md_export.engine.plan import ExportRequest
from md_export.engine.planning import plan
from md_export.errors import CheckpointError, ConfigError, RewriteError, UsageError
from md_export.models.config import ModelConfig
from md_export.models.sampling.pictures import Start
from md_export.models.sampling.sampler import one_step
from md_export.models.tiny_autoencoder import TinyConfig, TinyDecoder
from md_export.parity.golden.folder import write_golden
from md_export.parity.golden.prepare import golden_source
from md_export.parity.judge import verify
from md_export.parity.metrics import snr_db
from md_export.rewrites import Consent, apply_rewrites
from md_export.spec.recipe_file import load_recipe
from md_export.spec.shipped_files import builtin_recipe

PAIR = ("a cat", 0)
# Beside the project; they are not part of it.
WEIGHTS = Path(__file__).parents[3] / "shared" / "weights"
# The small checkpoint's latents have 8 channels and 4 pixels a cell.
SIZES: dict[str, Any] = {
    "latent_channels": 8,
    "encoder_block_out_channels": (8, 8, 8),
    "decoder_block_out_channels": (8, 8, 8),
    "num_encoder_blocks": (1, 2, 1),
    "num_decoder_blocks": (1, 2, 1),
}


@pytest.fixture(scope="module")
def theirs() -> Any:
    """Random, as diffusers makes it."""
    diffusers: Any = pytest.importorskip("diffusers", reason="needs the extra diffusers")
    torch.manual_seed(3)
    return diffusers.AutoencoderTiny(**SIZES).eval()


@pytest.fixture(scope="module")
def tiny(theirs: Any, other_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small checkpoint with it in place of its VAE, saved by diffusers."""
    folder = tmp_path_factory.mktemp("tiny") / "checkpoint"
    shutil.copytree(other_checkpoint, folder)
    shutil.rmtree(folder / "vae")
    theirs.save_pretrained(folder / "vae")
    return folder


@pytest.mark.seen("AutoencoderTiny (TAESD) as `vae/`", "decoder and encoder compute what diffusers' class computes")
def test_both_halves_compute_what_diffusers_computes(theirs: Any, tiny: Path) -> None:
    checkpoint = open_checkpoint(tiny)
    assert checkpoint.config.vae == TinyConfig(**SIZES)
    checkpoint.check(("vae_encoder",))
    latent, image = torch.randn(2, 8, 8, 8) * 3, torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(
            checkpoint.module("vae_decoder")(latent), theirs.decode(latent).sample, rtol=0, atol=1e-5
        )
        torch.testing.assert_close(
            checkpoint.module("vae_encoder")(image), theirs.encode(image).latents, rtol=0, atol=1e-5
        )


def test_full_size_is_taesds() -> None:
    """1.22 million parameters in the decoder, as its author counts them."""
    assert sum(value.numel() for value in TinyDecoder(TinyConfig()).parameters()) == 1_222_531


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_decoder_blocks": [1, 2]}, "num_decoder_blocks must have 3 entries"),
        ({"act_fn": "silu"}, "only act_fn='relu'"),
        ({"upsampling_scaling_factor": 4}, "only upsampling_scaling_factor=2"),
        ({"surprise": 1}, "unknown field surprise"),
        ({"latent_channels": 4}, "latent_channels=4"),
        ({"num_encoder_blocks": [1, 2, 10**9]}, "absurd"),
    ],
)
def test_one_that_computes_something_else_is_refused(
    tiny: Path, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / "copy"))
    file = folder / "vae" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises((CheckpointError, ConfigError), match=message):
        open_checkpoint(folder)


def author_files(theirs: Any, folder: Path) -> list[Path]:
    """The two files in the author's names: indices in a sequence, of which a decoder's begins with a clamp."""
    files = []
    for half in ("decoder", "encoder"):
        layers = {name.removeprefix(f"{half}.layers."): t for name, t in theirs.state_dict().items() if half in name}
        split = [(*name.split(".", 1), tensor) for name, tensor in layers.items()]
        shift = 1 if half == "decoder" else 0
        tensors = {f"{int(number) + shift}.{part}": tensor.clone() for number, part, tensor in split}
        save_file(tensors, folder / f"taesd_{half}.safetensors")
        files.append(folder / f"taesd_{half}.safetensors")
    return files


def adapted(checkpoint: Path, out: Path, *vaes: Path) -> Result:
    arguments = ["adapt", str(checkpoint), *(word for vae in vaes for word in ("--vae", str(vae))), "-o", str(out)]
    return CliRunner().invoke(cli, arguments)


@pytest.mark.seen("TAESD in its author's files; another VAE's folder", "`md-export adapt --vae`")
def test_the_authors_files_take_the_place_of_a_vae(
    theirs: Any, tiny: Path, other_checkpoint: Path, tmp_path: Path
) -> None:
    """As the folder that diffusers saves does; nothing of the other VAE is left."""
    latent = torch.randn(2, 8, 8, 8) * 3
    wanted = open_checkpoint(tiny).module("vae_decoder")(latent)
    for name, vaes in (("folder", [tiny / "vae"]), ("files", author_files(theirs, tmp_path))):
        result = adapted(other_checkpoint, tmp_path / name, *vaes)
        assert result.exit_code == 0, result.output
        made = open_checkpoint(tmp_path / name)
        made.check(("vae_encoder",))
        assert torch.equal(made.module("vae_decoder")(latent), wanted)
    assert made.config.vae == TinyConfig(**SIZES)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"decoder.0.weight": torch.zeros(1)}, "is not a layer of a sequence"),
        ({"1.weight": torch.zeros(3)}, "no convolutions between its blocks"),
        ({"9999999999.weight": torch.zeros(3)}, "is not a layer of a sequence"),
        ({"0" * 5000 + "1.weight": torch.zeros(3)}, "is not a layer of a sequence"),
        ({}, "holds no tensors"),
    ],
)
def test_files_that_are_no_tiny_autoencoder(
    other_checkpoint: Path, tmp_path: Path, tensors: dict[str, torch.Tensor], message: str
) -> None:
    save_file(tensors, tmp_path / "wrong.safetensors")
    result = adapted(other_checkpoint, tmp_path / "out", tmp_path / "wrong.safetensors")
    assert isinstance(result.exception, CheckpointError)
    assert re.search(message, str(result.exception))
    assert not (tmp_path / "out").exists()


def test_nothing_that_is_named_is_passed_over(theirs: Any, tiny: Path, other_checkpoint: Path, tmp_path: Path) -> None:
    decoder, encoder = author_files(theirs, tmp_path)
    for vaes, said in (
        ((decoder, encoder, decoder), "is a second decoder"),
        ((encoder, encoder), "is a second encoder"),
        ((tiny / "vae", tiny / "vae"), "name one folder"),
    ):
        ended = adapted(other_checkpoint, tmp_path / "out", *vaes)
        assert isinstance(ended.exception, CheckpointError | UsageError)
        assert said in str(ended.exception)
        assert not (tmp_path / "out").exists()


@pytest.mark.seen("FLUX.2's tiny autoencoder", "normalised middle blocks; trained weights make a picture again")
@pytest.mark.skipif(not WEIGHTS.is_dir(), reason="the trained weights of FLUX.2's tiny autoencoder are not here")
def test_trained_weights_in_the_authors_names(other_config: ModelConfig, tmp_path: Path) -> None:
    """Their encoder and decoder make a picture again, which another order of the blocks' parts would not."""
    config = dataclasses.replace(
        other_config,
        denoiser=dataclasses.replace(other_config.denoiser, in_channels=32, out_channels=32),
        vae=dataclasses.replace(other_config.vae, latent_channels=32),
    )
    write_checkpoint(tmp_path / "base", config, seed=1)
    files = [WEIGHTS / "taef2_decoder.safetensors", WEIGHTS / "taef2_encoder.safetensors"]
    assert adapted(tmp_path / "base", tmp_path / "out", *files).exit_code == 0
    checkpoint = open_checkpoint(tmp_path / "out")
    assert checkpoint.config.vae == TinyConfig(latent_channels=32, use_midblock_gn=True)
    y, x = torch.meshgrid(torch.linspace(-1, 1, 64), torch.linspace(-1, 1, 64), indexing="ij")
    picture = torch.stack([x, (x * 3).sin() * y, ((x - 0.2) ** 2 + y**2 < 0.3).float() * 1.2 - 0.6])[None]
    encoder, decoder = (checkpoint.module(f"vae_{half}") for half in ("encoder", "decoder"))
    again = decoder(encoder(picture))
    assert snr_db(again.numpy(), picture.numpy()) > 15
    for block in decoder.modules():
        if getattr(block, "pool", None) is not None:
            block.add_module("pool", None)
    assert snr_db(decoder(encoder(picture)).numpy(), picture.numpy()) < 10


def test_a_recipe_finds_its_first_and_last_layer(tiny: Path) -> None:
    """The recipe keeps decoder.conv_out in float, which is called otherwise here."""
    recipe = load_recipe(builtin_recipe("onnx", "int8")).widened(("vae_encoder",))
    request = plan([recipe], tiny, None).steps[-1].request
    assert isinstance(request, ExportRequest)
    assert request.recipe.schemes["vae_decoder"].keep_float == ("decoder.layers.10",)
    assert request.recipe.schemes["vae_encoder"].keep_float == ("encoder.layers.7",)


def test_forms_that_it_does_not_need_are_passed_over(tiny: Path) -> None:
    """The recipe's GroupNorms and upsamplers are those of other VAEs; a change of the function still is an error."""
    names = load_recipe(builtin_recipe("tflite", "fp16")).rewrites
    decoder, step = open_checkpoint(tiny).module("vae_decoder"), one_step(open_checkpoint(tiny).config)
    latent = torch.randn(1, 8, 8, 8)
    wanted = decoder(latent)
    records = apply_rewrites(names, "vae_decoder", decoder, step, Consent())
    assert "nothing to replace" in {record.note for record in records if not record.fired}
    assert torch.equal(decoder(latent), wanted)
    plain = nn.Sequential(nn.Conv2d(8, 8, 1))
    with pytest.raises(RewriteError, match="fires nowhere in vae_decoder"):
        apply_rewrites(names, "vae_decoder", plain, step, Consent())


@pytest.mark.slow
def test_an_export_makes_what_torch_makes(tiny: Path, tmp_path: Path) -> None:
    golden, out = tmp_path / "golden", tmp_path / "out"
    golden.mkdir()
    write_golden(golden_source(open_checkpoint(tiny), encodes=True), [PAIR], golden)
    with in_process():
        export(load_recipe(builtin_recipe("onnx", "fp32")).widened(("vae_encoder",)), tiny, out, golden)
        assert verify(out).passed
        image = (torch.rand(1, 3, 32, 32) * 2 - 1).numpy()
        for starts in (None, [Start(image, 0.5)]):
            (made,) = pictures_of_artifacts(out, [PAIR], starts=starts)
            (wanted,) = pictures_of_checkpoint(tiny, [PAIR], starts=starts)
            assert snr_db(made, wanted) > 80
