"""Write and check the files of ``--layout swift`` beside the packages, so that a Mac needs nothing else.

``vocab.json`` and ``merges.txt`` are where Apple's Swift package expects them. ``schedule.json`` has the constants that
the package has no field for. ``finish-on-mac.sh`` compiles the packages and collects all files.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json

from md_export.checkpoint import Checkpoint
from md_export.checkpoint.files import tokenizer_tables
from md_export.errors import ArtifactError, CheckpointError, ConversionError
from md_export.models.config import ModelConfig
from md_export.models.sampling.sampler import one_step
from md_export.models.sampling.schedule import ScheduleConfig
from md_export.models.tokenizers import tokenize
from md_export.spec.prompts import PROMPTS_FILE, PromptPlan
from md_export.spec.tensors import TensorSpec
from md_export.system.isolation import isolated

SCRIPT: Final = "finish-on-mac.sh"
# The only scheduler of the Swift package that is correct for one step, and the schedule that it hard-codes
# (DPMSolverMultistepScheduler.swift: its defaults, and "assumes the model predicts epsilon").
_STOCK: Final = "dpmSolverMultistepScheduler"
_STOCK_SCHEDULE: Final = ScheduleConfig(1000, 0.00085, 0.012, "scaled_linear", "epsilon")


@dataclass(frozen=True)
class Schedule:
    """Content of ``schedule.json``.

    x0 = a·noise + b·output of one call at ``timestep``; the decoder's input is x0 / scaling_factor.

    Attributes:
        latent_shape: ``[1, C, h, w]`` of noise, output and x0.
        image_size: side of the picture in pixels.
        text_length: number of tokens that a prompt is padded to.
        stock_scheduler: scheduler of the Swift package that computes the same x0 in one step; None if it has none.
    """

    timestep: int
    a: float
    b: float
    scaling_factor: float
    prediction_type: str
    latent_shape: tuple[int, int, int, int]
    image_size: int
    text_length: int
    stock_scheduler: str | None


_SCHEDULE: Final = TypeAdapter(Schedule)


def schedule_of(config: ModelConfig) -> Schedule:
    """Return the schedule constants of a checkpoint."""
    return Schedule(
        **dataclasses.asdict(one_step(config)),
        latent_shape=config.latent_shape,
        image_size=config.picture_shape[1],
        text_length=config.text_shape[1],
        stock_scheduler=_STOCK if config.schedule.of_one_step() == _STOCK_SCHEDULE else None,
    )


def write_bundle(
    checkpoint: Checkpoint, folder: Path, chunked: bool = False, prompts: PromptPlan | None = None
) -> None:
    """Write all files except the packages and the embeddings of ``prompts`` to ``folder``.

    ``chunked``: the UNet is in two packages.

    Raises:
        CheckpointError: Swift's tokenizer cannot reproduce the checkpoint's tokenizer.
    """
    vocabulary, merges = swift_tokenizer(checkpoint)
    (folder / "vocab.json").write_bytes(vocabulary)
    # Swift's parser drops a last line without a line feed and keeps carriage returns.
    (folder / "merges.txt").write_bytes(merges.replace(b"\r\n", b"\n").rstrip(b"\n") + b"\n")
    text = json.dumps(dataclasses.asdict(schedule_of(checkpoint.config)), indent=2)
    (folder / "schedule.json").write_text(text + "\n", encoding="utf-8")
    script = folder / SCRIPT
    text = Path(__file__).with_name(SCRIPT).read_text(encoding="utf-8")
    text = text.replace(" Unet ", " UnetChunk1 UnetChunk2 ") if chunked else text
    if prompts is not None:
        text = text.replace("schedule.json", f"schedule.json {PROMPTS_FILE}")
        text = text if prompts.text_encoder else text.replace("TextEncoder ", "")
    script.write_text(text, encoding="utf-8")
    script.chmod(0o755)


def swift_tokenizer(checkpoint: Checkpoint) -> tuple[bytes, bytes]:
    """Return the vocabulary and merges of a checkpoint for Swift's tokenizer.

    Raises:
        CheckpointError: Swift's tokenizer cannot reproduce the checkpoint's tokenizer.
    """
    if [*checkpoint.tokenizers] != ["tokenizer"] or "unet" not in checkpoint.components:
        raise CheckpointError(
            f"{checkpoint.root}: --layout swift is for one text encoder and a UNet, but this checkpoint has "
            f"{', '.join(checkpoint.components)}; leave it out"
        )
    vocabulary, merges = tokenizer_tables(checkpoint.tokenizer_dir)
    _check_padding(checkpoint, from_json(vocabulary))
    return vocabulary, merges


def check_bundle(folder: Path, packages: tuple[str, ...]) -> None:
    """Check that Apple's Swift package can read the files in ``folder``; the check runs in a separate process.

    Raises:
        ConversionError: a requirement is not met.
    """
    check = isolated(faults, ConversionError, "the check against Apple's Swift package")
    if found := check(Bundle(folder, packages)):
        raise ConversionError(f"Apple's Swift package could not read this export: {'; '.join(found)}")


def _check_padding(checkpoint: Checkpoint, vocabulary: dict[str, int]) -> None:
    """Check that the checkpoint pads like Swift's tokenizer: start token, words, end tokens up to the length.

    Raises:
        CheckpointError: the checkpoint's tokenizer pads differently.
    """
    length = checkpoint.config.text_shape[1]
    start, end = (vocabulary.get(token) for token in ("<|startoftext|>", "<|endoftext|>"))
    if tokenize(checkpoint.tokenizer_dir, "", length)[0].tolist() != [start] + [end] * (length - 1):
        raise CheckpointError(
            f"{checkpoint.tokenizer_dir} does not tokenize an empty prompt to <|startoftext|> and then <|endoftext|> "
            "only, as Swift's tokenizer does: train with that padding, or leave out --layout swift"
        )


# Each size is a number, or a letter that stands for the same number in all packages, so that they fit together.
Shape = tuple[int | str, ...]


@dataclass(frozen=True)
class Demand:
    """Required inputs and outputs of one package: exactly these names in this order, all float32."""

    inputs: Mapping[str, Shape]
    outputs: Mapping[str, Shape]


LATENT: Final[Shape] = (1, "C", "h", "w")
PACKAGES: Final[Mapping[str, Demand]] = {
    "TextEncoder.mlpackage": Demand({"input_ids": (1, "L")}, {"last_hidden_state": (1, "L", "D")}),
    "Unet.mlpackage": Demand(
        {"sample": LATENT, "timestep": (1,), "encoder_hidden_states": (1, "D", 1, "L")}, {"noise_pred": LATENT}
    ),
    "VAEDecoder.mlpackage": Demand({"z": LATENT}, {"image": (1, 3, "H", "W")}),
}
# Packages that replace the UNet's. Unet.swift passes the UNet's inputs and the first package's outputs to the second,
# by name.
CHUNKS: Final = ("UnetChunk1.mlpackage", "UnetChunk2.mlpackage")
# Swift's tokenizer uses the end token for padding and for unknown words, regardless of the checkpoint's settings.
START, END = "<|startoftext|>", "<|endoftext|>"


@dataclass(frozen=True)
class Bundle:
    """A folder in the Swift layout, and the names of the packages in it to check."""

    folder: Path
    packages: tuple[str, ...] = tuple(PACKAGES)


def faults(bundle: Bundle) -> tuple[str, ...]:
    """Return one line per unmet requirement of Apple's Swift package, beginning with the file name.

    Runs in the calling process.
    """
    sizes: dict[str, int] = {}
    wholes = [name for name in bundle.packages if name not in CHUNKS]
    lines = [line for name in wholes for line in _package_faults(bundle.folder / name, PACKAGES[name], sizes)]
    lines += _chunk_faults(bundle.folder, sizes) if len(wholes) < len(bundle.packages) else []
    for name, check in _FILES.items():
        lines += [f"{name}: {fault}" for fault in _file_faults(bundle.folder / name, check)]
    return tuple(lines)


def _package_faults(path: Path, demand: Demand, sizes: dict[str, int]) -> list[str]:
    try:
        found = _features(path)
    except ArtifactError as error:
        return [f"{path.name}: {error}"]
    lines = []
    for kind, wanted in (("inputs", demand.inputs), ("outputs", demand.outputs)):
        names = [spec.name for spec in found[kind]]
        if names != list(wanted):
            lines.append(f"{path.name}: {kind} are {', '.join(names)}; Swift reads {', '.join(wanted)}")
            continue
        lines += [f"{path.name}: {fault}" for spec in found[kind] for fault in _misfits(spec, wanted[spec.name], sizes)]
    return lines


def _features(path: Path) -> dict[str, tuple[TensorSpec, ...]]:
    from md_export.targets.coreml.package import feature_specs, read_spec  # other targets do not need coremltools

    description = read_spec(path).description
    return {"inputs": feature_specs(description.input), "outputs": feature_specs(description.output)}


def _chunk_faults(folder: Path, sizes: dict[str, int]) -> list[str]:
    """Return the faults of the UNet's two packages; the second gets the UNet's inputs and the first one's outputs."""
    unet, (first, second) = PACKAGES["Unet.mlpackage"], CHUNKS
    try:
        found = {name: _features(folder / name) for name in CHUNKS}
    except ArtifactError as error:
        return [f"{' or '.join(CHUNKS)}: {error}"]
    given: dict[str, Shape] = {spec.name: spec.shape for spec in found[first]["outputs"]}
    known = {first: unet.inputs, second: {**unet.inputs, **given}}
    lines = [] if "sample" in {spec.name for spec in found[first]["inputs"]} else [f"{first}: it has no input sample"]
    for name in CHUNKS:
        strange = [spec.name for spec in found[name]["inputs"] if spec.name not in known[name]]
        lines += [f"{name}: Swift has no value for the inputs {', '.join(strange)}"] if strange else []
        taken = [spec for spec in found[name]["inputs"] if spec.name in known[name]]
        lines += [f"{name}: {fault}" for spec in taken for fault in _misfits(spec, known[name][spec.name], sizes)]
    made = found[second]["outputs"]
    if [spec.name for spec in made] != list(unet.outputs):
        lines.append(f"{second}: outputs are {', '.join(spec.name for spec in made)}; Swift reads a single one")
    return lines


def _misfits(spec: TensorSpec, shape: Shape, sizes: dict[str, int]) -> list[str]:
    """Return the differences between one array and its required shape; binds new letters in ``sizes``."""
    if spec.dtype != "float32":
        return [f"{spec.name} is {spec.dtype}; Swift passes float32"]
    if len(spec.shape) != len(shape):
        return [f"{spec.name} is {list(spec.shape)}; Swift's has {len(shape)} dimensions"]
    for size, wanted in zip(spec.shape, shape, strict=True):
        number = sizes.setdefault(wanted, size) if isinstance(wanted, str) else wanted
        if size != number:
            return [f"{spec.name} is {list(spec.shape)}; {size} must be {number} to fit the others"]
    return []


def _file_faults(path: Path, check: Callable[[str], list[str]]) -> list[str]:
    try:
        return check(path.read_bytes().decode())
    except (OSError, ValueError, RecursionError) as error:
        return [f"cannot be read: {error}"]


def _vocabulary_faults(text: str) -> list[str]:
    vocabulary = _object(text)
    lines = [f"has no {token}, which Swift's tokenizer adds" for token in (START, END) if token not in vocabulary]
    return lines + ["maps a token to a non-integer"] * any(type(value) is not int for value in vocabulary.values())


def _merges_faults(text: str) -> list[str]:
    """Return the faults of ``merges.txt``.

    Swift splits at \\n, drops everything after the last one, and throws unless each line has two words.
    """
    lines = text.split("\n")
    broken = [line for line in lines if line and not line.startswith("#") and len(line.split(" ")) != 2]
    faults = [f"a line is not a pair of tokens: {broken[0]!r}"] if broken else []
    faults += ["does not end with a line feed, so its last line is lost"] if lines[-1] else []
    return faults + ["has carriage returns, which become part of tokens"] * ("\r" in text)


def _schedule_faults(text: str) -> list[str]:
    values = _object(text)
    try:
        _SCHEDULE.validate_json(text, strict=True)
    except ValidationError as error:
        names = dict.fromkeys(str(one["loc"][0]) for one in error.errors())
        return [f"field {name} is {values[name]!r}" if name in values else f"field {name} is missing" for name in names]
    return []


def _object(text: str) -> dict[str, Any]:
    values = from_json(text)
    if not isinstance(values, dict):
        raise ValueError("it is not a JSON object")
    return values


_FILES: Final[Mapping[str, Callable[[str], list[str]]]] = {
    "vocab.json": _vocabulary_faults,
    "merges.txt": _merges_faults,
    "schedule.json": _schedule_faults,
}
