"""AutoencoderTiny as decoder and encoder: what diffusers saves is loaded, computes the same, and is exported."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from in_process import in_process
from md_export.checkpoint import open_checkpoint
from md_export.engine.export import export
from md_export.engine.generate import pictures_of_artifacts, pictures_of_checkpoint
from md_export.errors import CheckpointError, ConfigError
from md_export.models.sampling.pictures import Start
from md_export.models.tiny_autoencoder import TinyConfig, TinyDecoder
from md_export.parity.golden.folder import write_golden
from md_export.parity.golden.prepare import golden_source
from md_export.parity.judge import verify
from md_export.parity.metrics import snr_db
from md_export.spec.recipe_file import load_recipe
from md_export.spec.shipped_files import builtin_recipe

PAIR = ("a cat", 0)
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
