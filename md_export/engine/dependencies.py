"""What all recipes of a plan share: the checkpoint, what its artifacts say of it, and who computes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Final

from md_export.checkpoint import Checkpoint, open_checkpoint
from md_export.checkpoint.build import build_on_meta
from md_export.checkpoint.hashes import INHERITED, hash_of_folder
from md_export.engine.keys import maker
from md_export.engine.metadata import notes_of
from md_export.engine.plan import LoraInput
from md_export.models.families import WIRING, component_of, family_of
from md_export.models.given import CONDITION
from md_export.rewrites import find_rewrite
from md_export.spec.recipe import Recipe
from md_export.spec.sampler import SamplerPlan
from md_export.spec.scheme import QuantScheme
from md_export.targets.versions import tools_of

_FLOAT32_BYTES: Final = 4


@dataclass(frozen=True)
class Source:
    """What all recipes share that have the same LoRAs.

    Attributes:
        common: of every key but an artifact's: the checkpoint, and who computes.
        notes: of the artifacts, by the size of the pictures and the component.
        given: folder of golden cases that the request names.
        weights: bytes of each component in float32, of those also that the checkpoint's pictures do without.
        loras: those of the checkpoint, as requests name them.
    """

    checkpoint: Checkpoint
    common: dict[str, object]
    notes: dict[int | None, dict[str, dict[str, str]]]
    given: Path | None
    weights: dict[str, int]
    loras: tuple[LoraInput, ...]

    @property
    def all_weights(self) -> int:
        """Bytes of all components in float32."""
        return sum(self.weights[name] for name in self.checkpoint.components)

    def area(self, recipe: Recipe) -> float:
        """Of the recipe's pictures, relative to those that the checkpoint was trained for."""
        return float((self.checkpoint.at(recipe.size).config.image_size / self.checkpoint.config.image_size) ** 2)


def source_of(
    checkpoint_dir: Path, golden: Path | None, sizes: set[int | None], loras: tuple[LoraInput, ...] = ()
) -> Source:
    """Open the checkpoint and check that it is whole, for pictures of some ``sizes``.

    Raises:
        MdExportError: it cannot be read, or cannot make such pictures.
    """
    checkpoint = open_checkpoint(checkpoint_dir)
    checkpoint.check()
    names = [component.name for component in family_of(checkpoint.config).of(checkpoint.components)]
    return Source(
        checkpoint,
        {
            "checkpoint": checkpoint.sha256(),
            "trained": checkpoint.trained_substitutions,
            "maker": maker(),
            "tools": tools_of(also=family_of(checkpoint.config).form.libraries),
        },
        {size: notes_of(checkpoint.at(size)) for size in sizes},
        golden,
        {name: _weight_bytes(checkpoint, name) for name in names},
        loras,
    )


def _weight_bytes(checkpoint: Checkpoint, name: str) -> int:
    module = build_on_meta(component_of(checkpoint.config, name), checkpoint.config)
    return _FLOAT32_BYTES * sum(int(tensor.numel()) for tensor in module.state_dict().values())


# Fields that may change an artifact, once the recipe is that of one component.
OF_AN_ARTIFACT: Final = (
    "target",
    "components",
    "schemes",
    "rewrites",
    "allow_drift",
    "deployment_target",
    "layout",
    "form",
    "npu",
    "calibration",
    "size",
    "sampler",
)


def alone(recipe: Recipe, name: str) -> Recipe:
    """The recipe of one component without what others alone need."""
    rewrites = tuple(one for one in recipe.rewrites if name in find_rewrite(one).components)
    changing = any(not find_rewrite(one).exact for one in rewrites)
    return dataclasses.replace(
        recipe.narrowed((name,)),
        schemes={name: recipe.schemes[name]},
        tolerances={name: recipe.tolerances[name]},
        rewrites=rewrites,
        allow_drift=recipe.allow_drift and changing,
        calibration=recipe.calibration if is_calibrated(recipe.schemes[name]) else None,
        npu=recipe.npu if recipe.schemes[name].is_static else (),
    )


@dataclass(frozen=True)
class Changes:
    """What changes the function, and with it the cases that show it: rewrites, and the sampler."""

    rewrites: tuple[str, ...]
    allow_drift: bool
    sampler: SamplerPlan | None

    @property
    def content(self) -> dict[str, object]:
        """Plain data for a cache key."""
        return dataclasses.asdict(self)


def changes_of(recipe: Recipe) -> Changes:
    """The changes that a recipe asks for."""
    changing = tuple(name for name in recipe.rewrites if not find_rewrite(name).exact)
    return Changes(changing, bool(changing) and recipe.allow_drift, recipe.sampler)


def calls_of(recipe: Recipe) -> int:
    """Of the UNet for a picture, each of one prompt: what golden cases and their verification cost."""
    return 1 if recipe.sampler is None else 2 * recipe.sampler.steps


def is_calibrated(scheme: QuantScheme) -> bool:
    """Whether the artifact depends on more inputs than the one that it is traced with."""
    return scheme.is_static or scheme.is_adjusted


def makers_of_inputs(files: Mapping[str, str], name: str, inpaints: bool = False) -> list[str]:
    """Hashes of what computes a component's inputs: the tokenizer, and the components before it.

    ``files``: SHA-256 of the checkpoint's files by their names; ``inpaints``: the UNet takes a picture's latents.
    """
    rows = WIRING.components
    steering = tuple(f"{row.folder}/" for row in rows if any(port.source == CONDITION for port in row.inputs))
    if any(file.removeprefix(INHERITED).startswith(steering) for file in files):
        # The condition is of a picture, which all of them make.
        before = [*rows]
    elif name == WIRING.encoded.node or (inpaints and not WIRING[name].is_first):
        before = [*WIRING.required]
    else:
        before = [*takewhile(lambda row: row.name != name, WIRING.required)]
    folders = dict.fromkeys(row.folder for row in before)
    return [hash_of_folder(files, folder) for folder in ("tokenizer", *folders)]
