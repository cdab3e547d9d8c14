"""Golden cases: for a prompt and a seed, every component's inputs and outputs as torch computed them in float32.

A folder holds ``index.json`` and one safetensors file per case; the index carries each file's SHA-256, the
checkpoint's, and the versions that made them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Final

import numpy as np
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import from_json

from md_export import __version__
from md_export.errors import GoldenError
from md_export.models.adapter import edges
from md_export.models.sampling.generate import PictureRequest, Pipeline
from md_export.models.sampling.pictures import Given, middle
from md_export.models.values import INPUT_IDS, MADE, PICTURE, SAMPLE, TIMESTEP, calls_in
from md_export.models.walk import Tensors
from md_export.parity.golden.case import GoldenCase, check_finite, key_without_call, values_from_bytes
from md_export.spec.given import GOLDEN_INDEX, require_golden
from md_export.spec.manifest import first_finding, without_defaults
from md_export.spec.names import DEFAULT_FAMILY, FAMILY_PATTERN, FamilyName
from md_export.spec.sampler import ManySteps, OneStep
from md_export.spec.tensors import save_tensors
from md_export.system.files import is_plain_name, read_limited, sha256_of, sha256_of_bytes
from md_export.system.terminal_text import first_control

INDEX: Final = GOLDEN_INDEX
SCHEMA: Final = 2
_LARGEST_INDEX: Final = 16 << 20
# Limit in bytes; a case of a 768² picture has 22 MB. Values between chunks are included: Stable Diffusion XL in 16
# chunks at 1024² has 165 MB in each call, and a case holds four calls, each for two prompts.
_LARGEST_CASE: Final = 2 << 30
_MOST_CASES: Final = 10_000
_AGAIN: Final = "make the golden cases again"


@dataclass(frozen=True)
class GoldenFile:
    """Entry of one golden case in the index; ``style``: name of the style that it was computed with, if any."""

    name: str
    prompt: str
    seed: int
    file: str
    sha256: str
    style: str | None = None


@dataclass(frozen=True)
class GoldenIndex:
    """Contents of ``index.json``; ``rewrites`` names the substitutions that were applied when the cases were made.

    ``ddim`` or ``euler``: constants of the sampler if the cases were sampled in many steps; each case then holds some
    of the UNet's calls. ``clip_skip``: number of skipped last text-encoder layers. ``family``: of the checkpoint.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    schema: int
    checkpoint_sha256: str
    rewrites: tuple[str, ...]
    one_step: OneStep
    versions: dict[str, str]
    cases: tuple[GoldenFile, ...]
    steps: ManySteps | None = None
    clip_skip: int | None = None
    family: Annotated[FamilyName, Field(pattern=FAMILY_PATTERN)] = DEFAULT_FAMILY


@dataclass(frozen=True)
class GoldenSet:
    """An opened golden folder; all hashes were checked."""

    folder: Path
    index: GoldenIndex
    cases: tuple[GoldenCase, ...]

    @property
    def base(self) -> tuple[GoldenCase, ...]:
        """The cases without a style."""
        return tuple(case for case in self.cases if case.style is None)

    @property
    def sha256(self) -> str:
        """Return the SHA-256 of the index; the index holds the hash of every case."""
        return sha256_of(self.folder / INDEX)


_INDEX: Final = TypeAdapter(GoldenIndex)


def write_index(index: GoldenIndex, folder: Path) -> None:
    """Write ``folder/index.json``."""
    text = _INDEX.dump_json(
        index, indent=2, exclude_none=True, exclude=without_defaults(index.family, index.steps)
    ).decode()
    (folder / INDEX).write_text(text + "\n", encoding="utf-8")


def read_golden(folder: Path) -> GoldenSet:
    """Open a golden folder.

    Raises:
        GoldenError: missing or malformed index, a file outside the folder, a hash or a tensor that does not fit.
    """
    index = read_index(folder)
    cases = tuple(read_case(folder, item, index.family) for item in index.cases)
    for case in cases:
        _check_calls(index.steps, case, folder / INDEX)
    return GoldenSet(folder, index, cases)


def _check_calls(steps: ManySteps | None, case: GoldenCase, path: Path) -> None:
    """Raise GoldenError unless a case holds the calls that belong to the index's steps."""
    values, places = case.values, steps.recorded if steps else ()
    wanted = {f"{TIMESTEP.key}.{place}": np.float32(steps.steps[place].timestep) for place in places} if steps else {}
    texts = (0, 1) if steps and steps.is_guided else ()
    fits = calls_in(values, SAMPLE.key) == calls_in(values, TIMESTEP.key) == places
    fits = fits and all(values[key].tolist() == [timestep] for key, timestep in wanted.items())
    for component in case.graph.components:
        held = [key for key in values if key.startswith(f"{component.name}.")]
        calls = {"once": (), "per prompt": texts, "per step": places}[component.called]
        fits = fits and all(calls_in(held, key_without_call(key)) == calls for key in held)
    if not fits or calls_in(values, INPUT_IDS.key) != texts:
        raise GoldenError(f"{path}: the stored calls do not belong to the index's steps; {_AGAIN}")


def read_index(folder: Path) -> GoldenIndex:
    """Read the index of a golden folder; raises GoldenError as :func:`read_golden`."""
    require_golden(folder)
    path = folder / INDEX
    return index_from_bytes(read_limited(path, _LARGEST_INDEX, GoldenError, _AGAIN), path)


def index_from_bytes(content: bytes, path: Path) -> GoldenIndex:
    """Validate and parse an index's content; ``path`` is for error messages.

    Raises:
        GoldenError: as :func:`read_golden`.
    """
    try:
        index = _INDEX.validate_json(content, strict=True)
    except (ValidationError, RecursionError) as error:
        raise GoldenError(f"{path} is not a golden index: {first_finding(error)}; {_AGAIN}") from error
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


def read_case(folder: Path, item: GoldenFile, family: FamilyName) -> GoldenCase:
    """Read one case of a golden folder and check its hash; raises GoldenError as :func:`read_golden`."""
    if not is_plain_name(item.file):
        raise GoldenError(f"{folder / INDEX}: file {item.file!r:.80} is not a plain name")
    path = folder / item.file
    if not path.is_file():
        raise GoldenError(f"{path} is listed in {INDEX} but missing")
    content = read_limited(path, _LARGEST_CASE, GoldenError, _AGAIN)
    if sha256_of_bytes(content) != item.sha256:
        raise GoldenError(f"{path} was altered: its SHA-256 is not the one in {INDEX}; {_AGAIN}")
    values = values_from_bytes(content, path, family)
    check_finite(values, item.prompt)
    return GoldenCase(item.name, item.prompt, item.seed, values, family=family, style=item.style)


@dataclass(frozen=True)
class GoldenSource:
    """Pipeline and options that golden cases are computed with.

    ``encodes``: cases hold the VAE encoder's output for a picture. ``condition_channels``: channels of the condition
    picture of an adapter or a ControlNet; 0 without either. ``clip_skip``: of the checkpoint's variant.
    """

    pipeline: Pipeline
    checkpoint_sha256: str
    rewrites: tuple[str, ...] = ()
    encodes: bool = False
    condition_channels: int = 0
    clip_skip: int = 0

    def generate(self, prompt: str, seed: int) -> Tensors:
        """Return a golden case's values for one prompt and seed.

        The encoder's input is the picture itself. An editing UNet first edits gray, and then that picture. An
        inpainting UNet first makes a picture with everything masked and then repaints the middle of that picture; the
        encoder's input is the unmasked rest. The condition of an adapter or a ControlNet is the edges of the picture
        that is made without a condition.
        """
        inpaints, channels, image = self.pipeline.inpaints, self.condition_channels, self.pipeline.family.image.key
        values = self._values(PictureRequest(prompt, seed))
        if self.pipeline.edits:
            edited = np.clip(values[image].astype(np.float32), -1, 1)
            return self._values(PictureRequest(prompt, seed, edited=edited))
        if inpaints or channels:
            given = Given(np.clip(values[image], -1, 1), middle(*self.pipeline.sides)) if inpaints else None
            condition = edges(values[MADE.key], channels) if channels else None
            values = self._values(PictureRequest(prompt, seed, given, condition))
        if self.encodes and not inpaints:
            values[PICTURE.key] = np.clip(values[image], -1, 1)
            (values[self.pipeline.family.encoded.key],) = self.pipeline.encoded([values[PICTURE.key]])
        return values

    def _values(self, request: PictureRequest) -> Tensors:
        steps = self.pipeline.steps
        (values,) = self.pipeline.values([request], steps.recorded if steps else ())
        return values


def write_golden(
    source: GoldenSource,
    pairs: list[tuple[str, int]],
    folder: Path,
    progress: Callable[[str], None] = lambda _: None,
    use: str = "golden",
) -> None:
    """Compute one case per (prompt, seed) with the torch components, and write index and files into ``folder``.

    ``use``: purpose of the cases in progress lines, such as ``golden`` or ``calibration``.

    Raises:
        GoldenError: the checkpoint itself computes NaN or Inf for a prompt.
    """
    files = [
        _write_case(source, pair, folder, number, f"{use} case {number + 1} of {len(pairs)}", progress)
        for number, pair in enumerate(pairs)
    ]
    one_step, steps, family = source.pipeline.one_step, source.pipeline.steps, source.pipeline.family.form.name
    made = (
        source.checkpoint_sha256,
        source.rewrites,
        one_step,
        _versions(),
        tuple(files),
        steps,
        source.clip_skip or None,
        family,
    )
    write_index(GoldenIndex(SCHEMA, *made), folder)


def _write_case(
    source: GoldenSource,
    pair: tuple[str, int],
    folder: Path,
    number: int,
    what: str,
    progress: Callable[[str], None],
    style: str | None = None,
) -> GoldenFile:
    prompt, seed = pair
    progress(f"{what}: {prompt!r}, seed {seed}")
    values = source.generate(prompt, seed)
    check_finite(values, prompt)
    name = f"case-{number:03d}"
    path = folder / f"{name}.safetensors"
    save_tensors(values, path)
    path.chmod(0o644)  # safetensors creates files that only their owner can read
    return GoldenFile(name, prompt, seed, path.name, sha256_of(path), style)


def add_cases(
    source: GoldenSource, pairs: list[tuple[str, int]], folder: Path, style: str, progress: Callable[[str], None]
) -> None:
    """Add cases of a style to a golden folder; ``source`` computes them with the style fused into the weights.

    Raises:
        GoldenError: as :func:`write_golden`.
    """
    index = read_index(folder)
    first, what = len(index.cases), f"golden case of the style {style}"
    made = [_write_case(source, pair, folder, first + place, what, progress, style) for place, pair in enumerate(pairs)]
    write_index(replace(index, cases=(*index.cases, *made)), folder)


def _versions() -> dict[str, str]:
    names = ("torch", "transformers", "numpy")
    return {"md-export": __version__, **{name: version(name) for name in names}}
