"""Golden cases: for a prompt and a seed, every component's inputs and outputs as torch computed them in float32.

A folder holds ``index.json`` and one safetensors file per case; the index carries each file's SHA-256, the
checkpoint's, and the versions that made them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic_core import from_json

from md_export.errors import GoldenError
from md_export.models.families import WIRING
from md_export.models.given import INPUT_IDS, SAMPLE, TIMESTEP
from md_export.models.graph import calls_in
from md_export.parity.golden.case import GoldenCase, check_finite, key_without_call, values_from_bytes
from md_export.spec.manifest import first_finding
from md_export.spec.sampler import Ddim, Euler, ManySteps, OneStep
from md_export.spec.tensors import Arrays
from md_export.system.files import is_plain_name, read_limited, sha256_of, sha256_of_bytes
from md_export.system.terminal_text import first_control

INDEX: Final = "index.json"
SCHEMA: Final = 2
_LARGEST_INDEX: Final = 16 << 20
# Limit in bytes; the case of a 768² picture has 22 MB.
_LARGEST_CASE: Final = 256 << 20
_MOST_CASES: Final = 10_000
_AGAIN: Final = "make the golden cases again"


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
    """Contents of ``index.json``; ``rewrites`` names the substitutions that were applied when the cases were made.

    ``ddim`` or ``euler``: constants of the sampler if the cases were sampled in many steps; each case then holds some
    of the UNet's calls.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    schema: int
    checkpoint_sha256: str
    rewrites: tuple[str, ...]
    one_step: OneStep
    versions: dict[str, str]
    cases: tuple[GoldenFile, ...]
    ddim: Ddim | None = None
    euler: Euler | None = None

    @property
    def steps(self) -> ManySteps | None:
        """Constants of many steps; None for one step."""
        return self.ddim or self.euler


@dataclass(frozen=True)
class GoldenSet:
    """An opened golden folder; all hashes were checked."""

    folder: Path
    index: GoldenIndex
    cases: tuple[GoldenCase, ...]

    @property
    def sha256(self) -> str:
        """Return the SHA-256 of the index; the index holds the hash of every case."""
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
        _check_calls(index.steps, case.values, folder / INDEX)
    return GoldenSet(folder, index, cases)


def _check_calls(steps: ManySteps | None, values: Arrays, path: Path) -> None:
    """Raise GoldenError unless a case holds the calls that belong to the index's steps."""
    places = steps.recorded if steps else ()
    wanted = {f"{TIMESTEP.key}.{place}": np.float32(steps.steps[place].timestep) for place in places} if steps else {}
    texts = (0, 1) if steps else ()
    fits = calls_in(values, SAMPLE.key) == calls_in(values, TIMESTEP.key) == places
    fits = fits and all(values[key].tolist() == [timestep] for key, timestep in wanted.items())
    for component in WIRING.components:
        held = [key for key in values if key.startswith(f"{component.name}.")]
        calls = {"once": (), "per prompt": texts, "per step": places}[component.called]
        fits = fits and all(calls_in(held, key_without_call(key)) == calls for key in held)
    if not fits or calls_in(values, INPUT_IDS.key) != texts:
        raise GoldenError(f"{path}: a case holds other calls than its steps have; {_AGAIN}")


def read_index(folder: Path) -> GoldenIndex:
    """Read the index of a golden folder; raises GoldenError as :func:`read_golden`."""
    path = folder / INDEX
    if not path.is_file():
        raise GoldenError(f"{folder} holds no {INDEX}; make golden cases with: md-export golden CHECKPOINT -o {folder}")
    return index_from_bytes(read_limited(path, _LARGEST_INDEX, GoldenError, _AGAIN), path)


def index_from_bytes(content: bytes, path: Path) -> GoldenIndex:
    """Validate and parse an index's content; ``path`` is for error messages.

    Raises:
        GoldenError: as :func:`read_golden`.
    """
    try:
        index = _INDEX.validate_json(content, strict=True)
    except (ValidationError, RecursionError) as error:
        raise GoldenError(f"{path} is no golden index: {first_finding(error)}; {_AGAIN}") from error
    if index.schema != SCHEMA:
        raise GoldenError(
            f"{path} has schema {index.schema}, this version reads {SCHEMA}; make the golden cases again with: "
            "md-export golden CHECKPOINT -o DIR"
        )
    if not index.cases:
        raise GoldenError(f"{path} lists no case, so nothing could be proved against it")
    if (control := first_control(from_json(content))) is not None:
        raise GoldenError(f"{path}: {control} holds a control character; {_AGAIN}")
    # All cases are in memory at once, so a file that is listed twice would take more memory than its size on disk.
    if len(index.cases) > _MOST_CASES or len({item.file for item in index.cases}) < len(index.cases):
        raise GoldenError(f"{path} lists a file twice, or more than {_MOST_CASES:,}; {_AGAIN}")
    return index


def read_case(folder: Path, item: GoldenFile) -> GoldenCase:
    """Read one case of a golden folder and check its hash; raises GoldenError as :func:`read_golden`."""
    if not is_plain_name(item.file):
        raise GoldenError(f"{folder / INDEX}: file {item.file!r:.80} is not a plain name")
    path = folder / item.file
    if not path.is_file():
        raise GoldenError(f"{path} is listed in {INDEX} but missing")
    content = read_limited(path, _LARGEST_CASE, GoldenError, _AGAIN)
    if sha256_of_bytes(content) != item.sha256:
        raise GoldenError(f"{path} was altered: its SHA-256 is not the one in {INDEX}; {_AGAIN}")
    values = values_from_bytes(content, path)
    check_finite(values, item.prompt)
    return GoldenCase(item.name, item.prompt, item.seed, values)
