"""LoRA files as users and recipes name them: ``FILE`` or ``FILE:scale``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from md_export.errors import UsageError

SUFFIX: Final = ".safetensors"
# File that peft saves beside the weights; it holds alpha and the rank patterns.
PEFT_CONFIG: Final = "adapter_config.json"
# Names that peft and diffusers give the file when they save a folder.
_IN_FOLDER: Final = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors")
MOST_LORAS: Final = 16
# Ranks of published LoRAs end at 256, several together may have more.
LARGEST_RANK: Final = 512
# Name of a LoRA that is computed beside a layer among the layer's modules, and glob on the paths of all of them.
BRANCH: Final = "lora"
BRANCHES: Final = f"*.{BRANCH}*"
# Inputs of an artifact for a style begin so; the one for its scale.
INPUT_PREFIX: Final = "lora_"
SCALE_INPUT: Final = f"{INPUT_PREFIX}scale"
STYLE_FOLDER: Final = "styles"
LARGEST_SCALE: Final = 100.0


@dataclass(frozen=True)
class Lora:
    """A LoRA file and how strongly it is applied.

    Attributes:
        name: name of the file, for messages.
        scale: factor in addition to the file's alpha / rank; None means that no scale was given: 1.
        config: peft's config beside the file, if it exists.
    """

    path: Path
    name: str
    scale: float | None = None
    config: Path | None = None

    @property
    def factor(self) -> float:
        """Scale as a number, 1 by default."""
        return 1.0 if self.scale is None else self.scale

    def __str__(self) -> str:
        return self.name if self.scale is None else f"{self.name}:{self.scale:g}"


def parse_lora(text: str) -> Lora:
    """Parse ``FILE`` or ``FILE:scale``; FILE may be a folder that peft or diffusers saved.

    Raises:
        UsageError: the file does not exist, or the scale is invalid.
    """
    where, (file, scale) = f"LoRA {text!r:.120}", split_lora(text)
    given = Path(file)
    root, names = files_of_lora(given)
    if given.is_dir() and not names:
        raise UsageError(f"{where}: the folder holds no {' or '.join(_IN_FOLDER)}; give the LoRA's file")
    path = root / names[0]
    if not path.is_file():
        raise UsageError(f"{where}: the file {file!r:.120} does not exist; give FILE or FILE:scale")
    if path.suffix != SUFFIX:
        raise UsageError(f"{where}: only {SUFFIX} files are read, since others may hold code; convert it")
    if not is_scale(scale):
        raise UsageError(f"{where}: the scale must be a number from -{LARGEST_SCALE:g} to {LARGEST_SCALE:g}")
    return Lora(path, given.name, scale, root / PEFT_CONFIG if PEFT_CONFIG in names else None)


def files_of_lora(given: Path) -> tuple[Path, tuple[str, ...]]:
    """Return the folder of a LoRA and the names of its files: the tensors, and peft's config if it exists."""
    if given.is_dir():
        root, files = given, tuple(name for name in _IN_FOLDER if (given / name).is_file())[:1]
    else:
        root, files = given.parent, (given.name,)
    return root, (*files, PEFT_CONFIG) if files and (root / PEFT_CONFIG).is_file() else files


def parse_loras(texts: Sequence[str]) -> tuple[Lora, ...]:
    """Parse several LoRAs; raises as :func:`parse_lora`, and UsageError for more than 16."""
    if len(texts) > MOST_LORAS:
        raise UsageError(f"{len(texts)} LoRAs are more than {MOST_LORAS}, the limit for one model; give fewer")
    return tuple(parse_lora(text) for text in texts)


def is_scale(scale: object) -> bool:
    """Return whether a value is None or a valid scale: finite and within ±100."""
    return scale is None or (
        isinstance(scale, (int, float)) and not isinstance(scale, bool) and abs(scale) <= LARGEST_SCALE
    )


def anchored(text: str, folder: Path) -> str:
    """Return the same LoRA; a relative path is resolved against ``folder``."""
    file, _ = split_lora(text)
    return str((folder / file).resolve()) + text[len(file) :]


def label(texts: Sequence[str]) -> str:
    """Return the suffix that LoRAs add to the name of a recipe: ``-crayon-0.5``."""
    parts = []
    for text in texts:
        file, scale = split_lora(text)
        stem = re.sub(r"[^A-Za-z0-9._]+", "-", Path(file).stem).strip("-") or "lora"
        parts.append(f"-{stem[:40]}" + ("" if scale is None else f"-{scale:g}"))
    return "".join(parts)


def lora_input(path: str, part: str) -> str:
    """Return the name of an artifact's input for a part (``down``, ``up`` or ``shift``) of a layer's LoRA."""
    return f"{INPUT_PREFIX}{path.replace('.', '_')}_{part}"


def style_name(text: str) -> str:
    """Return the name of a style: that of its LoRA's file without suffix, as in names of recipes."""
    return label([split_lora(text)[0]]).removeprefix("-")


def split_lora(text: str) -> tuple[str, float | None]:
    """Split ``FILE:scale``; the scale of a plain ``FILE`` is None."""
    file, colon, tail = text.rpartition(":")
    try:
        return (file, float(tail)) if colon and file else (text, None)
    except ValueError:
        return text, None
