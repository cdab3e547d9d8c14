"""The files that ``--layout swift`` writes beside the packages, so that a Mac needs nothing else.

``vocab.json`` and ``merges.txt`` lie where Apple's Swift package looks for them, ``schedule.json`` holds what that
package has no place for, ``finish-on-mac.sh`` compiles and gathers it all.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from md_export.checkpoint import Checkpoint
from md_export.components import ModelConfig
from md_export.components.schedule import ScheduleConfig
from md_export.errors import CheckpointError, ConversionError
from md_export.parity.prepare import one_step
from md_export.sampling import tokenize
from md_export.workers import call_worker

SCRIPT: Final = "finish-on-mac.sh"
# The one scheduler of the Swift package that is right at one step, and the schedule that is fixed in it
# (DPMSolverMultistepScheduler.swift: its defaults, and "assumes the model predicts epsilon").
_STOCK: Final = "dpmSolverMultistepScheduler"
_STOCK_SCHEDULE: Final = ScheduleConfig(1000, 0.00085, 0.012, "scaled_linear", "epsilon")


@dataclass(frozen=True)
class Schedule:
    """``schedule.json``: x0 = a·noise + b·output of one call at ``timestep``; the decoder takes x0 / scaling_factor.

    Attributes:
        latent_shape: ``[1, C, h, w]`` of noise, output and x0.
        image_size: side of the picture in pixels.
        text_length: tokens a prompt is padded to.
        stock_scheduler: the package's own scheduler that computes this x0 in one step; None where it has none.
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


def schedule_of(config: ModelConfig) -> Schedule:
    """The constants of a checkpoint."""
    return Schedule(
        **dataclasses.asdict(one_step(config)),
        latent_shape=config.latent_shape,
        image_size=config.image_size,
        text_length=config.text_shape[1],
        stock_scheduler=_STOCK if config.schedule.of_one_step() == _STOCK_SCHEDULE else None,
    )


def write_bundle(checkpoint: Checkpoint, folder: Path) -> None:
    """Write all files but the packages into ``folder``.

    Raises:
        CheckpointError: Swift's tokenizer cannot do what the checkpoint's does.
    """
    vocabulary, merges = (_read(checkpoint.tokenizer_dir / name) for name in ("vocab.json", "merges.txt"))
    _check_padding(checkpoint, json.loads(vocabulary))
    (folder / "vocab.json").write_bytes(vocabulary)
    # Swift loses a last line that does not end and keeps carriage returns.
    (folder / "merges.txt").write_bytes(merges.replace(b"\r\n", b"\n").rstrip(b"\n") + b"\n")
    text = json.dumps(dataclasses.asdict(schedule_of(checkpoint.config)), indent=2)
    (folder / "schedule.json").write_text(text + "\n", encoding="utf-8")
    script = folder / SCRIPT
    script.write_bytes(Path(__file__).with_name(SCRIPT).read_bytes())
    script.chmod(0o755)


def check_bundle(folder: Path, packages: tuple[str, ...]) -> None:
    """Hold what lies in ``folder`` against :mod:`md_export.swift.contract`, in a process of its own.

    Raises:
        ConversionError: a demand is not met.
    """
    request = {"folder": str(folder), "packages": list(packages)}
    answer = call_worker("contract", request, ConversionError, "the check against Apple's Swift package")
    if answer["faults"]:
        raise ConversionError(f"Apple's Swift package could not read this export: {'; '.join(answer['faults'])}")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read, and Swift's tokenizer needs it: save the tokenizer with vocab.json and merges.txt"
        ) from error


def _check_padding(checkpoint: Checkpoint, vocabulary: dict[str, int]) -> None:
    """Swift's tokenizer writes start, words, end, and pads with the end token."""
    length = checkpoint.config.text_shape[1]
    start, end = (vocabulary.get(token) for token in ("<|startoftext|>", "<|endoftext|>"))
    if tokenize(checkpoint.tokenizer_dir, "", length)[0].tolist() != [start] + [end] * (length - 1):
        raise CheckpointError(
            f"{checkpoint.tokenizer_dir} does not tokenize an empty prompt to <|startoftext|> and <|endoftext|> to the "
            "end, as Swift's tokenizer does: train with that padding, or leave out --layout swift"
        )
