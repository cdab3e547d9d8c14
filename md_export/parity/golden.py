"""Golden cases: for a prompt and a seed, every component's inputs and outputs as torch computed them in float32.

A folder holds ``index.json`` and one safetensors file per case; the index carries each file's SHA-256, the
checkpoint's, and the versions that made them.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from pydantic import ConfigDict, TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load

from md_export.artifact import OneStep, first_finding
from md_export.components.adapter import RESIDUAL
from md_export.errors import GoldenError
from md_export.files import is_plain_name, sha256_of
from md_export.inpainting import with_around
from md_export.sampler import Ddim
from md_export.sampling import Generation
from md_export.tensors import Array, Arrays
from md_export.visible import first_control

INDEX: Final = "index.json"
SCHEMA: Final = 1
_LARGEST_INDEX: Final = 16 << 20
# Of a 768² picture: 22 MB.
_LARGEST_CASE: Final = 256 << 20
_MOST_CASES: Final = 10_000
_MOST_RESIDUALS: Final = 32


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
    """``index.json``; ``rewrites`` names the substitutions that were in force when the cases were made.

    ``ddim``: how the cases were sampled, where that was in many steps; each then holds some of the UNet's calls.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    schema: int
    checkpoint_sha256: str
    rewrites: tuple[str, ...]
    one_step: OneStep
    versions: dict[str, str]
    cases: tuple[GoldenFile, ...]
    ddim: Ddim | None = None


@dataclass(frozen=True)
class GoldenCase:
    """One prompt and seed with all that was computed from them.

    ``call``: whose inputs and outputs it shows where a component was called more than once; ``label`` names it.
    """

    name: str
    prompt: str
    seed: int
    values: Generation
    call: int = 0
    title: str = ""

    @property
    def label(self) -> str:
        """The case and the call in words."""
        return self.title or self.name

    def calls(self, component: str) -> tuple[GoldenCase, ...]:
        """The case once for each call of the component: of many steps, some of the UNet's and both texts' are held."""
        values = self.values
        if values.sample is None or component not in ("text_encoder", "unet"):
            return (self,)
        titles = {
            "text_encoder": (f"{self.name} without a prompt", self.name),
            "unet": tuple(f"{self.name} at timestep {timestep:g}" for timestep in values.timestep.tolist()),
        }[component]
        return tuple(dataclasses.replace(self, call=call, title=title) for call, title in enumerate(titles))

    def inputs(self, component: str) -> Arrays:
        """The component's golden inputs under the names that its artifacts use.

        Raises:
            GoldenError: the VAE encoder's, of a case without.
        """
        values = self.values
        if component == "vae_encoder":
            return {"image": self._of_encoder(values.encoder_image)}
        if component == "t2i_adapter":
            return {"condition": self._of_adapter(values.condition)}
        return {
            "text_encoder": {"input_ids": self._row(values.input_ids)},
            "unet": {
                "sample": with_around(self._sample(), values.around),
                "timestep": self._row(values.timestep),
                "encoder_hidden_states": values.encoder_hidden_states,
                **self.residuals(height=1 if values.sample is None else 2),
            },
            "vae_decoder": {"latent": values.latent},
        }[component]

    def output(self, name: str) -> Array:
        """The golden value of a component's output, by the name that its artifacts give it; KeyError for another."""
        values = self.values
        if name == "latent_mean":
            return self._of_encoder(values.encoder_latent)
        if name.startswith(RESIDUAL):
            return self.residuals()[name]
        return {
            "last_hidden_state": self._row(values.encoder_hidden_states),
            "out_sample": self._row(values.unet_output, 2),
            "latent": values.latent,
            "image": values.image,
        }[name]

    def _sample(self) -> Array:
        values = self.values
        return values.noise if values.sample is None else np.repeat(self._row(values.sample), 2, axis=0)

    def residuals(self, height: int = 1) -> dict[str, Array]:
        """What an adapter gave, by the names of the UNet's inputs, each so many times; empty where there is none."""
        return {f"{RESIDUAL}{i}": np.repeat(value, height, axis=0) for i, value in enumerate(self.values.residuals)}

    def _of_adapter(self, array: Array | None) -> Array:
        if array is None:
            raise GoldenError(
                f"the golden case {self.name} holds nothing of an adapter; make golden cases of the checkpoint that "
                "has it with: md-export golden CHECKPOINT -o DIR"
            )
        return array

    def _of_encoder(self, array: Array | None) -> Array:
        if array is None:
            raise GoldenError(
                f"the golden case {self.name} holds nothing of the VAE encoder; make golden cases that do with: "
                "md-export golden CHECKPOINT --encoder -o DIR"
            )
        return array

    def _row(self, array: Array, height: int = 1) -> Array:
        """What belongs to the call; in one step everything does."""
        return array if self.values.sample is None else array[height * self.call : height * (self.call + 1)]


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


_INDEX: Final = TypeAdapter(GoldenIndex)


def write_index(index: GoldenIndex, folder: Path) -> None:
    """Write ``folder/index.json``."""
    text = _INDEX.dump_json(index, indent=2, exclude_none=True).decode()
    (folder / INDEX).write_text(text + "\n", encoding="utf-8")


def read_golden(folder: Path) -> GoldenSet:
    """Open a golden folder.

    Raises:
        GoldenError: missing or malformed index, a file outside the folder, a hash or a tensor that does not fit.
    """
    index = read_index(folder)
    cases = tuple(read_case(folder, item) for item in index.cases)
    for case in cases:
        _check_calls(index.ddim, case.values, folder / INDEX)
    return GoldenSet(folder, index, cases)


def _check_calls(ddim: Ddim | None, values: Generation, path: Path) -> None:
    """Whether a case holds the calls that belong to the index's steps."""
    if ddim is None:
        fits = values.sample is None
    else:
        timesteps = [ddim.steps[place].timestep for place in ddim.recorded]
        texts = {len(values.input_ids), len(values.encoder_hidden_states)}
        counts = (0 if values.sample is None else len(values.sample), len(values.unet_output))
        fits = values.timestep.tolist() == timesteps and texts == {2}
        fits = fits and counts == (len(timesteps), 2 * len(timesteps))
    if not fits:
        raise GoldenError(f"{path}: a case holds other calls than its steps have; make the golden cases again")


def read_index(folder: Path) -> GoldenIndex:
    """What cases a golden folder holds; GoldenError as :func:`read_golden`."""
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
        raise GoldenError(f"{path} is no golden index: {first_finding(error)}; make the golden cases again") from error
    if index.schema != SCHEMA:
        raise GoldenError(f"{path} has schema {index.schema}, this version reads {SCHEMA}")
    if not index.cases:
        raise GoldenError(f"{path} lists no case, so nothing could be proved against it")
    if (control := first_control(json.loads(content))) is not None:
        raise GoldenError(f"{path}: {control} holds a control character; make the golden cases again")
    # All cases are in memory at once: it may not take more than they take on the disk.
    if len(index.cases) > _MOST_CASES or len({item.file for item in index.cases}) < len(index.cases):
        raise GoldenError(f"{path} lists a file twice, or more than {_MOST_CASES:,}; make the golden cases again")
    return index


def read_case(folder: Path, item: GoldenFile) -> GoldenCase:
    """One case of a golden folder, its hash checked; GoldenError as :func:`read_golden`."""
    if not is_plain_name(item.file):
        raise GoldenError(f"{folder / INDEX}: file {item.file!r:.80} is not a plain name")
    path = folder / item.file
    if not path.is_file():
        raise GoldenError(f"{path} is listed in {INDEX} but missing")
    if path.stat().st_size > _LARGEST_CASE:
        raise GoldenError(f"{path} is larger than {_LARGEST_CASE:,} bytes; make the golden cases again")
    if sha256_of(path) != item.sha256:
        raise GoldenError(f"{path} was altered: its SHA-256 is not the one in {INDEX}; make the golden cases again")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise GoldenError(f"{path} cannot be read: {error.strerror}; make the golden cases again") from error
    values = values_from_bytes(content, path)
    check_finite(values, item.prompt)
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
    "sample": 4,
    "encoder_image": 4,
    "encoder_latent": 4,
    "around": 4,
    "condition": 4,
    **{f"{RESIDUAL}{level}": 4 for level in range(_MOST_RESIDUALS)},
}


def values_from_bytes(content: bytes, path: Path) -> Generation:
    """Read a golden file's content; ``path`` stands in error messages. Values may be NaN or Inf.

    Raises:
        GoldenError: no safetensors file, or not the tensors of a golden case.
    """
    try:
        arrays = load(content)
        residuals = [arrays.pop(f"{RESIDUAL}{i}") for i in range(_MOST_RESIDUALS) if f"{RESIDUAL}{i}" in arrays]
        values = Generation(**arrays, residuals=tuple(residuals))
    except (SafetensorError, TypeError, KeyError, ValueError) as error:
        raise GoldenError(f"{path} does not hold the tensors of a golden case: {error}") from error
    for name, array in arrays_of(values).items():
        dtype = "int32" if name == "input_ids" else "float32"
        if (array.ndim, str(array.dtype)) != (_RANKS[name], dtype) or not array.size:
            raise GoldenError(
                f"{path} does not hold the tensors of a golden case: {name} is {array.dtype}{list(array.shape)}, "
                f"not {dtype} of rank {_RANKS[name]}; make the golden cases again"
            )
    return values


def check_finite(values: Generation, prompt: str) -> None:
    """Raise :class:`GoldenError` where a case holds NaN or Inf."""
    for name, array in arrays_of(values).items():
        if not np.isfinite(array).all():
            raise GoldenError(f"{name} of the golden case {prompt!r} holds NaN or Inf; the checkpoint itself is broken")


def arrays_of(values: Generation) -> dict[str, Array]:
    """All that was computed for a case, by name, as its file holds it."""
    found = {field.name: getattr(values, field.name) for field in dataclasses.fields(values)}
    found |= {f"{RESIDUAL}{i}": value for i, value in enumerate(found.pop("residuals"))}
    return {name: array for name, array in found.items() if array is not None}
