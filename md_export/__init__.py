"""Export diffusion checkpoints to Core ML, TFLite, ONNX and Core AI, and prove each artifact against golden outputs.

The public names are those of :mod:`md_export.api`, imported when first used so that ``import md_export`` stays light:

    export(recipe, checkpoint, out)            checkpoint folder → verified artifacts
    open_export(out)                           an export folder: its manifest, and runners of its artifacts
    verify(out)                                run an export's artifacts on its golden cases
    audit(out, checkpoint)                     compare all stored weights with the checkpoint
    generate(prompt, artifacts=out)            a picture by the artifacts, or by torch
    load_recipe(name)                          a recipe that ships, or a recipe file
    open_checkpoint(path), nano_checkpoint()   configs and torch modules of a checkpoint; the one that ships

:mod:`md_export.errors` holds the errors that they raise, and :mod:`md_export.mil` the Core ML runtime.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from md_export.api import (
        CheckResult,
        Export,
        Runner,
        audit,
        export,
        generate,
        load_recipe,
        nano_checkpoint,
        open_checkpoint,
        open_export,
        verify,
    )

__version__ = "0.1.0"
__all__ = [
    "CheckResult",
    "Export",
    "Runner",
    "audit",
    "export",
    "generate",
    "load_recipe",
    "nano_checkpoint",
    "open_checkpoint",
    "open_export",
    "verify",
]

# Out of a type checker's sight, which would else take any name for one of ours.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        if name in __all__:
            from md_export import api

            return getattr(api, name)
        raise AttributeError(f"md_export has no {name!r}; its public names are {', '.join(__all__)}")


def __dir__() -> list[str]:
    return ["__version__", *__all__]
