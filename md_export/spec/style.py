"""Styles: LoRAs that an app chooses at run time, by inputs of the artifacts, and their files in an export."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load

from md_export.errors import ArtifactError
from md_export.spec.loras import SCALE_INPUT, STYLE_FOLDER
from md_export.spec.tensors import Array, Arrays, TensorSpec, is_style_input
from md_export.system.files import is_plain_name, read_limited

# A rank of 64 in all layers of Stable Diffusion XL's UNet has about 1.5 GB in float32.
_LARGEST: Final = 2 << 30


@dataclass(frozen=True)
class StyleInput:
    """A style of a build: its name, and its LoRA's file among the inputs of a step.

    Attributes:
        file: name of the LoRA's file among the inputs.
        tail: suffix after the file in a recipe, such as ``:0.5``.
        sha256: of the file.
        components: components that it changes.
    """

    name: str
    file: str
    tail: str
    sha256: str
    scale: float
    components: tuple[str, ...]


def style_file(name: str, component: str) -> str:
    """Return the path of a style's values for a component, relative to the export."""
    return f"{STYLE_FOLDER}/{name}/{component}.safetensors"


def style_values(out: Path, name: str, component: str, inputs: tuple[TensorSpec, ...]) -> dict[str, Array]:
    """Read a style of an export as :func:`read_style`; raises ArtifactError also for an invalid name."""
    if not is_plain_name(name):
        raise ArtifactError(f"{out}: {name!r:.80} is not the name of a style; it was edited, export again")
    return read_style(out / style_file(name, component), inputs)


def read_style(path: Path, inputs: tuple[TensorSpec, ...]) -> dict[str, Array]:
    """Read a style's values for the inputs of a component's artifact, as float32.

    Raises:
        ArtifactError: the file is missing, or its tensors are not the artifact's inputs for a style, and finite.
    """
    if not path.is_file():
        raise ArtifactError(f"{path} is missing, a style's values for an artifact; make it again")
    try:
        values = load(read_limited(path, _LARGEST, ArtifactError, "make it again"))
    except (SafetensorError, TypeError, KeyError, ValueError) as error:
        raise ArtifactError(f"{path} is not a file of a style: {error}; make it again") from error
    wanted, where = {spec.name: spec for spec in inputs if is_style_input(spec.name)}, str(path)
    if differing := sorted(wanted.keys() ^ values.keys()):
        raise ArtifactError(
            f"{where} is a style of another model or export: {differing[0]} is only in one of the two; make it again"
        )
    for name, value in values.items():
        if value.shape != wanted[name].shape or value.dtype not in (np.float16, np.float32):
            raise ArtifactError(
                f"{where}: {name} is {value.dtype}{list(value.shape)}, the artifact takes float32"
                f"{list(wanted[name].shape)}: a style of another model or export; make it again"
            )
        if not np.isfinite(value).all():
            raise ArtifactError(f"{where}: {name} has NaN or Inf; make it again")
    return {name: value.astype(np.float32) for name, value in values.items()}


def value_key(component: str, name: str) -> str:
    """Return the key of an input for a style among the values of a picture."""
    return f"given.{component}/{name}"


def is_style_key(key: str) -> bool:
    """Whether the key of a value is that of an input for a style."""
    return key.startswith("given.") and "/" in key


def scaled(values: Arrays, scale: float) -> dict[str, Array]:
    """Return a style's values with another scale."""
    return {**values, SCALE_INPUT: values[SCALE_INPUT].astype(np.float32) * np.float32(scale)}


def keyed(component: str, values: Mapping[str, Array]) -> dict[str, Array]:
    """Return a style's values for a component under their keys among the values of a picture."""
    return {value_key(component, name): value for name, value in values.items()}
