"""Golden cases made: torch computes every component's inputs and outputs for each prompt and seed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np

from md_export import __version__
from md_export.artifact import OneStep
from md_export.errors import GoldenError
from md_export.files import sha256_of
from md_export.parity.golden import SCHEMA, GoldenFile, GoldenIndex, arrays_of, check_finite, write_index
from md_export.sampler import Ddim
from md_export.sampling import Generation, draw_noise, generate, generate_in_steps, tokenize
from md_export.targets.contract import Runner
from md_export.tensors import save_tensors


@dataclass(frozen=True)
class GoldenSource:
    """What golden cases are computed from."""

    runners: Mapping[str, Runner]
    tokenizer_dir: Path
    text_length: int
    latent_shape: tuple[int, ...]
    one_step: OneStep
    checkpoint_sha256: str
    rewrites: tuple[str, ...] = ()
    ddim: Ddim | None = None

    def generate(self, prompt: str, seed: int) -> Generation:
        """One prompt and seed, in one step or in many."""
        ids = tokenize(self.tokenizer_dir, prompt, self.text_length)
        noise = draw_noise(seed, self.latent_shape)
        if self.ddim is None:
            return generate(self.runners, ids, noise, self.one_step)
        both = np.concatenate([tokenize(self.tokenizer_dir, "", self.text_length), ids])
        return generate_in_steps(self.runners, both, noise, self.ddim)


def write_golden(
    source: GoldenSource,
    pairs: list[tuple[str, int]],
    folder: Path,
    progress: Callable[[str], None] = lambda _: None,
    use: str = "golden",
) -> None:
    """Compute one case per (prompt, seed) with the torch components and write index and files into ``folder``.

    ``use``: of the cases, in lines of progress.

    Raises:
        GoldenError: the checkpoint itself computes NaN or Inf for a prompt.
    """
    files = []
    for number, (prompt, seed) in enumerate(pairs):
        progress(f"{use} case {number + 1} of {len(pairs)}: {prompt!r}, seed {seed}")
        values = source.generate(prompt, seed)
        check_finite(values, prompt)
        name = f"case-{number:03d}"
        path = folder / f"{name}.safetensors"
        save_tensors(arrays_of(values), path)
        path.chmod(0o644)  # safetensors makes files that only their owner can read
        files.append(GoldenFile(name, prompt, seed, path.name, sha256_of(path)))
    made = source.checkpoint_sha256, source.rewrites, source.one_step, _versions(), tuple(files), source.ddim
    write_index(GoldenIndex(SCHEMA, *made), folder)


def _versions() -> dict[str, str]:
    names = ("torch", "transformers", "numpy")
    return {"md-export": __version__, **{name: version(name) for name in names}}


def read_prompts(path: Path) -> list[str]:
    """Prompts of a text file, one a line, blank lines left out.

    Raises:
        GoldenError: unreadable, or empty.
    """
    try:
        prompts = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise GoldenError(f"{path}: cannot be read as prompts: {error}") from error
    if not prompts:
        raise GoldenError(f"{path} holds no prompt; write one a line")
    return prompts
