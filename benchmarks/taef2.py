"""FLUX.2's tiny autoencoder (trained, MIT) in a checkpoint with random other parts: exported, verified, per target.

    python benchmarks/taef2.py FOLDER [SIZE]

FOLDER holds taef2_decoder.safetensors and taef2_encoder.safetensors (github.com/madebyollin/taesd). SIZE: side of the
pictures in pixels, 512 by default.
"""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from md_export.checkpoint.architectures import arch_config, write_checkpoint
from md_export.errors import ParityError
from md_export.spec.manifest import read_manifest
from md_export.system.files import bytes_of

RECIPES: Final = ("onnx --fp16", "onnx --int8", "coreml --fp16", "coreml --int8", "tflite --fp16", "tflite --int8")


def main(weights: Path, side: int) -> None:
    """Print a table of what each recipe makes of both halves."""
    with tempfile.TemporaryDirectory() as scratch:
        made = tiny_checkpoint(weights, side, Path(scratch))
        prompts = ["--prompt", "a", "--prompt", "b"]
        run("golden", str(made), "--encoder", *prompts, "-o", f"{scratch}/golden")
        print("| recipe | half | SNR dB | PSNR dB | MB | verdict |\n|---|---|---|---|---|---|")
        for recipe in RECIPES:
            target, precision = recipe.split()
            out = Path(scratch) / f"{target}{precision}"
            parts = ["--component", "vae_encoder", "--component", "vae_decoder", "--golden", f"{scratch}/golden"]
            passed = run(target, str(made), precision, *parts, "--no-cache", "-o", str(out))
            folder = out if passed else out.with_name(f"{out.name}.rejected")
            for entry in read_manifest(folder).artifacts:
                figures = entry.parity
                words = (f"{figures.snr_db:.1f}", f"{figures.psnr_db:.1f}") if figures else ("-", "-")
                size = bytes_of(folder / entry.file) / 1e6
                verdict = "verified" if passed else "rejected"
                print("|", " | ".join((recipe, entry.component, *words, f"{size:.2f}", verdict)), "|", flush=True)


def tiny_checkpoint(weights: Path, side: int, scratch: Path) -> Path:
    """Return a checkpoint of nano's architecture with random weights and the tiny autoencoder."""
    config = arch_config("nano")
    unet = dataclasses.replace(config.denoiser, in_channels=32, out_channels=32, sample_size=side // 8)
    vae = dataclasses.replace(config.vae, latent_channels=32)
    base, made = scratch / "base", scratch / "made"
    write_checkpoint(base, dataclasses.replace(config, denoiser=unet, vae=vae), seed=0)
    halves = [weights / f"taef2_{half}.safetensors" for half in ("decoder", "encoder")]
    run("adapt", str(base), *[word for half in halves for word in ("--vae", str(half))], "-o", str(made))
    return made


def run(*arguments: str) -> bool:
    """Run md-export; False where an export is rejected."""
    command = [sys.executable, "-c", "from md_export.cli import main; main()", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode not in (0, ParityError.exit_code):
        sys.exit(ended.stderr)
    return ended.returncode == 0


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 512)
