"""Golden cases made: torch computes every component's inputs and outputs for each prompt and seed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from md_export import __version__
from md_export.artifact import OneStep
from md_export.errors import GoldenError
from md_export.files import sha256_of
from md_export.parity.golden import SCHEMA, GoldenFile, GoldenIndex, arrays_of, check_finite, write_index
from md_export.sampling import draw_noise, generate, tokenize
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
        ids = tokenize(source.tokenizer_dir, prompt, source.text_length)
        values = generate(source.runners, ids, draw_noise(seed, source.latent_shape), source.one_step)
        check_finite(values, prompt)
        name = f"case-{number:03d}"
        path = folder / f"{name}.safetensors"
        save_tensors(arrays_of(values), path)
        path.chmod(0o644)  # safetensors makes files that only their owner can read
        files.append(GoldenFile(name, prompt, seed, path.name, sha256_of(path)))
    index = GoldenIndex(SCHEMA, source.checkpoint_sha256, source.rewrites, source.one_step, _versions(), tuple(files))
    write_index(index, folder)


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
