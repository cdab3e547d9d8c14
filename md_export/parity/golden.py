"""Golden cases: for a prompt and a seed, every component's inputs and outputs as torch computed them in float32.

A folder holds ``index.json`` and one safetensors file per case; the index carries each file's SHA-256, the
checkpoint's, and the versions that made them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final

import numpy as np
from pydantic import ConfigDict, TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load

from md_export import __version__
from md_export.artifact import OneStep
from md_export.errors import GoldenError
from md_export.files import is_plain_name, sha256_of
from md_export.sampling import Generation, draw_noise, generate, tokenize
from md_export.targets.contract import Runner
from md_export.tensors import Array, Arrays, save_tensors

INDEX: Final = "index.json"
SCHEMA: Final = 1
_LARGEST_INDEX: Final = 16 << 20


@dataclass(frozen=True)
class GoldenFile:
    """One line of the index."""

    name: str
    prompt: str
    seed: int
    file: str
    sha256: str


@dataclass(frozen=True)
class GoldenIndex:
    """``index.json``; ``rewrites`` names the substitutions that were in force when the cases were made."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    schema: int
    checkpoint_sha256: str
    rewrites: tuple[str, ...]
    one_step: OneStep
    versions: dict[str, str]
    cases: tuple[GoldenFile, ...]


@dataclass(frozen=True)
class GoldenCase:
    """One prompt and seed with all that was computed from them."""

    name: str
    prompt: str
    seed: int
    values: Generation

    def inputs(self, component: str) -> Arrays:
        """The component's golden inputs under the names that its artifacts use."""
        values = self.values
        return {
            "text_encoder": {"input_ids": values.input_ids},
            "unet": {
                "sample": values.noise,
                "timestep": values.timestep,
                "encoder_hidden_states": values.encoder_hidden_states,
            },
            "vae_decoder": {"latent": values.latent},
        }[component]

    def output(self, name: str) -> Array:
        """The golden value of a component's output, by the name that its artifacts give it; KeyError for another."""
        values = self.values
        return {
            "last_hidden_state": values.encoder_hidden_states,
            "out_sample": values.unet_output,
            "latent": values.latent,
            "image": values.image,
        }[name]


@dataclass(frozen=True)
class GoldenSet:
    """An opened golden folder; all hashes were checked."""

    folder: Path
    index: GoldenIndex
    cases: tuple[GoldenCase, ...]

    @property
    def sha256(self) -> str:
        """Of the index, which pins every case."""
        return sha256_of(self.folder / INDEX)


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


_INDEX = TypeAdapter(GoldenIndex)


def write_golden(
    source: GoldenSource,
    pairs: list[tuple[str, int]],
    folder: Path,
    progress: Callable[[str], None] = lambda _: None,
) -> None:
    """Compute one case per (prompt, seed) with the torch components and write index and files into ``folder``.

    Raises:
        GoldenError: the checkpoint itself computes NaN or Inf for a prompt.
    """
    files = []
    for number, (prompt, seed) in enumerate(pairs):
        progress(f"golden case {number + 1} of {len(pairs)}: {prompt!r}, seed {seed}")
        ids = tokenize(source.tokenizer_dir, prompt, source.text_length)
        values = generate(source.runners, ids, draw_noise(seed, source.latent_shape), source.one_step)
        _check_finite(values, prompt)
        name = f"case-{number:03d}"
        path = folder / f"{name}.safetensors"
        save_tensors(_arrays(values), path)
        path.chmod(0o644)  # safetensors makes files that only their owner can read
        files.append(GoldenFile(name, prompt, seed, path.name, sha256_of(path)))
    index = GoldenIndex(SCHEMA, source.checkpoint_sha256, source.rewrites, source.one_step, _versions(), tuple(files))
    text = _INDEX.dump_json(index, indent=2).decode()
    (folder / INDEX).write_text(text + "\n", encoding="utf-8")


def read_golden(folder: Path) -> GoldenSet:
    """Open a golden folder.

    Raises:
        GoldenError: missing or malformed index, a file outside the folder, a hash or a tensor that does not fit.
    """
    index = _read_index(folder)
    return GoldenSet(folder, index, tuple(_read_case(folder, item) for item in index.cases))


def _read_index(folder: Path) -> GoldenIndex:
    path = folder / INDEX
    if not path.is_file():
        raise GoldenError(f"{folder} holds no {INDEX}; make golden cases with: md-export golden CHECKPOINT -o {folder}")
    if path.stat().st_size > _LARGEST_INDEX:
        raise GoldenError(f"{path} is larger than {_LARGEST_INDEX} bytes; make the golden cases again")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise GoldenError(f"{path} cannot be read: {error.strerror}; make the golden cases again") from error
    return index_from_bytes(content, path)


def index_from_bytes(content: bytes, path: Path) -> GoldenIndex:
    """Validate an index's content; ``path`` stands in error messages.

    Raises:
        GoldenError: as :func:`read_golden`.
    """
    try:
        index = _INDEX.validate_json(content, strict=True)
    except (ValidationError, RecursionError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": str(error)}
        where = ".".join(str(part) for part in first["loc"])
        raise GoldenError(f"{path} is no golden index: {where}: {first['msg']}") from error
    if index.schema != SCHEMA:
        raise GoldenError(f"{path} has schema {index.schema}, this version reads {SCHEMA}")
    if not index.cases:
        raise GoldenError(f"{path} lists no case, so nothing could be proved against it")
    return index


def _read_case(folder: Path, item: GoldenFile) -> GoldenCase:
    if not is_plain_name(item.file):
        raise GoldenError(f"{folder / INDEX}: file {item.file!r:.80} is not a plain name")
    path = folder / item.file
    if not path.is_file():
        raise GoldenError(f"{path} is listed in {INDEX} but missing")
    if sha256_of(path) != item.sha256:
        raise GoldenError(f"{path} was altered: its SHA-256 is not the one in {INDEX}; make the golden cases again")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise GoldenError(f"{path} cannot be read: {error.strerror}; make the golden cases again") from error
    values = values_from_bytes(content, path)
    _check_finite(values, item.prompt)
    return GoldenCase(item.name, item.prompt, item.seed, values)


# Rank of each tensor of a golden case, batch included where it has one.
_RANKS: Final = {
    "input_ids": 2,
    "noise": 4,
    "timestep": 1,
    "encoder_hidden_states": 3,
    "unet_output": 4,
    "latent": 4,
    "image": 4,
    "picture": 3,
}


def values_from_bytes(content: bytes, path: Path) -> Generation:
    """Read a golden file's content; ``path`` stands in error messages. Values may be NaN or Inf.

    Raises:
        GoldenError: no safetensors file, or not the tensors of a golden case.
    """
    try:
        values = Generation(**load(content))
    except (SafetensorError, TypeError, KeyError, ValueError) as error:
        raise GoldenError(f"{path} does not hold the tensors of a golden case: {error}") from error
    for name, array in _arrays(values).items():
        dtype = "int32" if name == "input_ids" else "float32"
        if (array.ndim, str(array.dtype)) != (_RANKS[name], dtype) or not array.size:
            raise GoldenError(
                f"{path} does not hold the tensors of a golden case: {name} is {array.dtype}{list(array.shape)}, "
                f"not {dtype} of rank {_RANKS[name]}; make the golden cases again"
            )
    return values


def _check_finite(values: Generation, prompt: str) -> None:
    for name, array in _arrays(values).items():
        if not np.isfinite(array).all():
            raise GoldenError(f"{name} of the golden case {prompt!r} holds NaN or Inf; the checkpoint itself is broken")


def _arrays(values: Generation) -> dict[str, Array]:
    return {field.name: getattr(values, field.name) for field in dataclasses.fields(values)}


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
