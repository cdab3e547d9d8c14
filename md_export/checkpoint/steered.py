"""A checkpoint with an adapter or a ControlNet as a folder of its own: a sibling that adds that to its parent."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from pydantic_core import to_json

from md_export.checkpoint.lora.source import NOTE as LORAS
from md_export.checkpoint.weights import find_weights, weight_names
from md_export.errors import UsageError

_CONFIG: Final = "config.json"
_WORDS: Final[Mapping[str, str]] = {"t2i_adapter": "adapter", "controlnet": "ControlNet"}


def write_steered(folder: Path, checkpoint: Path, given: Path, component: str) -> None:
    """Make the empty ``folder`` a checkpoint: ``checkpoint``, whose files stay where they are, and ``component``.

    ``given`` holds config.json and weights as diffusers' T2IAdapter or ControlNetModel writes them; ``component`` is
    ``t2i_adapter`` or ``controlnet``.

    Raises:
        UsageError: it does not, or the checkpoint only adds to another one itself.
    """
    weights = find_weights(given.resolve().parent, given.resolve().name)
    if weights is None or not (given / _CONFIG).is_file():
        raise UsageError(f"{given} holds no {_WORDS[component]}: {_CONFIG} and {weight_names(component)[0]} are needed")
    for note in ("sibling.json", LORAS):
        if (checkpoint / note).is_file():
            raise UsageError(
                f"{checkpoint} only adds to another checkpoint ({note}): give the {_WORDS[component]} to that one, "
                "then LoRAs to the folder that this writes"
            )
    own = folder / component
    own.mkdir()
    for file in (given / _CONFIG, *weights.files, *([weights.index] if weights.index else [])):
        shutil.copyfile(file, own / file.name)
    parent = Path(os.path.relpath(checkpoint.resolve(), folder.resolve())).as_posix()
    (folder / "sibling.json").write_bytes(to_json({"parent": parent}, indent=2) + b"\n")
