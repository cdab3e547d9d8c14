"""A checkpoint with an adapter as a folder of its own: a sibling that adds ``t2i_adapter/`` to its parent."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Final

from pydantic_core import to_json

from md_export.checkpoint.lora.source import NOTE as LORAS
from md_export.checkpoint.weights import find_weights, weight_names
from md_export.errors import UsageError

FOLDER: Final = "t2i_adapter"
_CONFIG: Final = "config.json"


def write_steered(folder: Path, checkpoint: Path, adapter: Path) -> None:
    """Make the empty ``folder`` a checkpoint: ``checkpoint``, whose files stay where they are, with an adapter.

    ``adapter`` holds config.json and weights as diffusers' T2IAdapter writes them.

    Raises:
        UsageError: it does not, or the checkpoint only adds to another one itself.
    """
    weights = find_weights(adapter.resolve().parent, adapter.resolve().name)
    if weights is None or not (adapter / _CONFIG).is_file():
        raise UsageError(f"{adapter} holds no adapter: {_CONFIG} and {weight_names(FOLDER)[0]} are needed")
    for note in ("sibling.json", LORAS):
        if (checkpoint / note).is_file():
            raise UsageError(
                f"{checkpoint} only adds to another checkpoint ({note}): give the adapter to that one, then LoRAs to "
                "the folder that this writes"
            )
    own = folder / FOLDER
    own.mkdir()
    for file in (adapter / _CONFIG, *weights.files, *([weights.index] if weights.index else [])):
        shutil.copyfile(file, own / file.name)
    parent = Path(os.path.relpath(checkpoint.resolve(), folder.resolve())).as_posix()
    (folder / "sibling.json").write_bytes(to_json({"parent": parent}, indent=2) + b"\n")
