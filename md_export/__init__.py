"""Lower MobileDiffusion checkpoints to Core ML, TFLite and ONNX, and prove each artifact against golden outputs.

The public names, imported when first used so that ``import md_export`` stays light:

    export(recipe, checkpoint_dir, out)      checkpoint folder → verified artifacts
    verify(out)                              judge an export again
    load_recipe(path)                        read a recipe file
    open_checkpoint(path)                    configs and torch modules of a checkpoint folder
    pictures_of_artifacts(out, requests)     pictures for (prompt, seed) pairs, made by the artifacts
"""

from __future__ import annotations

import importlib
from typing import Any, Final

__version__ = "0.1.0"

_PUBLIC: Final = {
    "export": "md_export.engine.export",
    "load_recipe": "md_export.spec.recipe_file",
    "open_checkpoint": "md_export.checkpoint",
    "pictures_of_artifacts": "md_export.engine.generate",
    "verify": "md_export.parity.judge",
}


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"md_export has no {name!r}; its public names are {', '.join(_PUBLIC)}")


def __dir__() -> list[str]:
    return ["__version__", *_PUBLIC]
