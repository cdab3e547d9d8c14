"""Dependencies of cache keys: the checkpoint, the metadata of its artifacts, the versions of md-export and tools.

The metadata is what an app needs to run an artifact; it is stored in the artifact itself.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Final

from torch import Tensor

from md_export import __version__
from md_export.checkpoint import Checkpoint, open_checkpoint
from md_export.checkpoint.files import INHERITED, hash_of_file, hash_of_folder
from md_export.checkpoint.modules import build_on_meta, layers_of
from md_export.engine.keys import FileHashes, maker
from md_export.engine.plan import LoraInput
from md_export.models.chunks import Part, parts_of_denoiser
from md_export.models.families import family_of
from md_export.models.graph import Family
from md_export.models.sampling.sampler import one_step, steps_of
from md_export.models.tokenizers import LABELS_FOLDER, read_labels, tokenize
from md_export.models.values import CONDITION
from md_export.rewrites import find_rewrite
from md_export.spec.names import chunk_number, whole_of
from md_export.spec.recipe import Recipe
from md_export.spec.sampler import SamplerPlan
from md_export.spec.scheme import QuantScheme
from md_export.spec.variant import Variant, size_in_words
from md_export.targets import tools_of


def notes_of(checkpoint: Checkpoint) -> dict[str, dict[str, str]]:
    """Return the metadata of each component; floats parse back exactly, sizes are joined by commas.

    ``source_sha256``, ``md_export``
        hash of the weights and config that the component was made from, and the md-export version. All other fields
        are the same for all components:
    ``prediction_type``, ``timestep``, ``a``, ``b``, ``scaling_factor``
        x0 = a·noise + b·output of one UNet call at ``timestep``; the decoder's input is x0 / ``scaling_factor``.
    ``latent_shape``, ``image_size``
        ``1,C,h,w`` of noise, UNet output and x0; side of the picture in pixels, or its width and height,
        ``512x768``.
    ``image_scale``, ``image_offset``
        picture = image · scale + offset, clipped to [0, 1].
    ``condition_shape``
        ``1,C,H,W`` of the picture in [0, 1] for the adapter or the ControlNet; absent without one.
    ``text_length``, ``bos_token_id``, ``eos_token_id``, ``pad_token_id``
        the token ids are bos, the prompt's tokens (cut to fit), eos, and pad up to ``text_length``. Names with the
        suffix ``_2`` are for a second text encoder. T5 has no bos; its prompts are in lower case, and it also gets a
        mask: 0 for padding, else 1.
    ``classes``
        number of classes of a model without text; the same number is the label for no class.
    ``zeros_for_empty``
        present if unconditional text embeddings are zeros; absent if they are those of the empty prompt.

    Raises:
        CheckpointError: a file cannot be read, or the tokenizer is not supported.
    """
    config, step = checkpoint.config, one_step(checkpoint.config)
    shared = {
        "md_export": __version__,
        **step.notes,
        "latent_shape": ",".join(str(size) for size in config.latent_shape),
        "image_size": size_in_words(config.image_size),
        "image_scale": "0.5",
        "image_offset": "0.5",
        **_notes_of_text(checkpoint),
    }
    if config.zeros_for_empty:
        shared["zeros_for_empty"] = "true"
    if config.condition_shape is not None:
        shared["condition_shape"] = ",".join(str(size) for size in config.condition_shape)
    return {name: {"source_sha256": checkpoint.source_sha256(name)} | shared for name in family_of(config).rows}


def _notes_of_text(checkpoint: Checkpoint) -> dict[str, str]:
    if LABELS_FOLDER in checkpoint.tokenizers:
        return {"classes": str(read_labels(checkpoint.tokenizers[LABELS_FOLDER]).count)}
    length = checkpoint.config.text_shape[1]
    found = {"text_length": length}
    for place, folder in enumerate(checkpoint.tokenizers.values()):
        ending = f"_{place + 1}" if place else ""
        # Read the special tokens from a tokenized empty prompt: the tokenizer's files store them in several formats.
        first, *rest = (int(token) for token in tokenize(folder, "", length)[0])
        # T5 has no start token.
        special = {"eos": first} if checkpoint.config.t5 else {"bos": first, "eos": rest[0]}
        found |= {f"{name}_token_id{ending}": token for name, token in {**special, "pad": rest[-1]}.items()}
    return {name: str(number) for name, number in found.items()}


def steps_notes(checkpoint: Checkpoint, plan: SamplerPlan | None) -> dict[str, str]:
    """Return the metadata for sampling in many steps, which replaces fields of the same name; empty for one step.

    ``timestep``, ``a``, ``b``
        one value per step, joined by commas: x becomes a·x + b·output. The decoder's input is the last
        x / ``scaling_factor``.
    ``sampler``, ``guidance``
        sampling method and guidance scale. If the scale is above 1, the output is u + guidance·(c - u), where u and c
        are the UNet's outputs for the empty or negative prompt and for the prompt.
    ``start``, ``scale``, ``noise``, ``earlier``, ``x0_of_x``, ``x0_of_output``
        only if a step needs them, see :class:`md_export.spec.sampler.Step`.

    Raises:
        ConfigError: the checkpoint's schedule does not support these steps.
    """
    steps = steps_of(checkpoint.config, plan)
    return {} if steps is None else steps.notes


_FLOAT32_BYTES: Final = 4


@dataclass(frozen=True)
class Source:
    """Data shared by all recipes with the same LoRAs.

    Attributes:
        common: part of every cache key except an artifact's: the checkpoint, md-export and the tools.
        notes: metadata of the artifacts, by variant and component.
        given: folder of golden cases that the request names.
        weights: bytes of each component in float32, including components that are not needed to make a picture.
        layers: paths of each component's convolutions and linear layers, in order.
        denoiser: parts of the denoiser, between which it may be cut; empty if no recipe has chunks.
        loras: LoRAs of the checkpoint, as named in requests.
    """

    checkpoint: Checkpoint
    common: dict[str, object]
    notes: dict[Variant, dict[str, dict[str, str]]]
    given: Path | None
    weights: dict[str, int]
    layers: dict[str, tuple[str, ...]]
    loras: tuple[LoraInput, ...]
    denoiser: tuple[Part, ...] = ()

    @property
    def all_weights(self) -> int:
        """Size of all components in float32, in bytes."""
        return sum(self.weights[name] for name in self.checkpoint.components)

    def area(self, recipe: Recipe) -> float:
        """Return the area of the recipe's pictures relative to the size that the checkpoint was trained for."""
        return area_of(self.checkpoint, recipe)


def area_of(checkpoint: Checkpoint, recipe: Recipe) -> float:
    """Return the area of the recipe's pictures relative to the size that the checkpoint was trained for."""
    areas = [math.prod(one.config.picture_shape) for one in (checkpoint.at(recipe.variant), checkpoint)]
    return areas[0] / areas[1]


def hashing(seen: Path | None) -> Callable[[Path], str]:
    """Return :func:`hash_of_file`, which does not read an unchanged file whose hash is in the folder ``seen`` again."""
    if seen is None:
        return hash_of_file
    hashes = FileHashes(seen)
    return lambda file: hashes.known(file) or hash_of_file(file)


def source_of(
    checkpoint_dir: Path,
    golden: Path | None,
    variants: set[Variant],
    loras: tuple[LoraInput, ...] = (),
    hash_of: Callable[[Path], str] = hash_of_file,
) -> Source:
    """Open the checkpoint and check that it is complete, for the given variants without their chunks.

    Raises:
        MdExportError: the checkpoint cannot be read, or does not support a variant.
    """
    checkpoint = open_checkpoint(checkpoint_dir, hash_of)
    checkpoint.check()
    rows = family_of(checkpoint.config).of(checkpoint.components)
    modules = {row.name: build_on_meta(row, checkpoint.config) for row in rows}
    return Source(
        checkpoint,
        {
            "checkpoint": checkpoint.sha256(),
            "trained": checkpoint.trained_substitutions,
            "maker": maker(),
            "tools": tools_of(also=family_of(checkpoint.config).form.libraries),
        },
        {variant: notes_of(checkpoint.at(variant)) for variant in map(whole, variants)},
        golden,
        {name: _FLOAT32_BYTES * sum(map(Tensor.numel, one.state_dict().values())) for name, one in modules.items()},
        {name: layers_of(module) for name, module in modules.items()},
        loras,
        parts_of_denoiser(checkpoint.config) if any(variant.chunks for variant in variants) else (),
    )


def whole(variant: Variant) -> Variant:
    """Return the variant without chunks, because metadata does not depend on them."""
    return dataclasses.replace(variant, chunks=None)


# Recipe fields that can change an artifact, after the recipe is reduced to one component by :func:`alone`.
OF_AN_ARTIFACT: Final = (
    "target",
    "components",
    "schemes",
    "rewrites",
    "allow_drift",
    "deployment_target",
    "min_litert",
    "layout",
    "form",
    "npu",
    "calibration",
    "size",
    "timestep",
    "clip_skip",
    "sampler",
    "chunks",
    "unfused",
    "style_rank",
)


def alone(recipe: Recipe, name: str) -> Recipe:
    """Return the recipe reduced to one component or chunk, without settings that only others need."""
    component = whole_of(name)
    rewrites = tuple(one for one in recipe.rewrites if component in find_rewrite(one).components)
    changing = any(not find_rewrite(one).exact for one in rewrites)
    return dataclasses.replace(
        dataclasses.replace(recipe, chunks=recipe.chunks if chunk_number(name) else None).narrowed((component,)),
        schemes={one: recipe.schemes[one] for one in (component, name)},
        tolerances={one: recipe.tolerances[one] for one in (component, name)},
        rewrites=rewrites,
        allow_drift=recipe.allow_drift and changing,
        calibration=recipe.calibration if is_calibrated(recipe.schemes[name]) else None,
        prompts=None,
        npu=recipe.npu if recipe.schemes[name].is_static else (),
    )


@dataclass(frozen=True)
class Changes:
    """Settings that change the computed function and therefore the golden cases: inexact rewrites and the sampler."""

    rewrites: tuple[str, ...]
    allow_drift: bool
    sampler: SamplerPlan | None


def changes_of(recipe: Recipe) -> Changes:
    """Return the settings of a recipe that change the computed function."""
    changing = tuple(name for name in recipe.rewrites if not find_rewrite(name).exact)
    return Changes(changing, bool(changing) and recipe.allow_drift, recipe.sampler)


def calls_of(recipe: Recipe) -> int:
    """Return the number of UNet calls per picture, counting one prompt per call.

    The cost of golden cases and of their verification is proportional to it.
    """
    plan = recipe.sampler
    return 1 if plan is None else plan.steps * (1 if plan.guidance in (0, 1) else 2)


def is_calibrated(scheme: QuantScheme) -> bool:
    """Return whether the artifact depends on inputs other than the one that it is traced with."""
    return scheme.is_static or scheme.is_adjusted


def makers_of_inputs(family: Family, files: Mapping[str, str], name: str, inpaints: bool = False) -> list[str]:
    """Return the hashes of everything that computes a component's inputs: tokenizers and the components before it.

    Args:
        files: SHA-256 of the checkpoint's files by name.
        name: the component.
        inpaints: whether the UNet's input has a picture's latents.
    """
    rows = family.components
    steering = tuple(f"{row.folder}/" for row in rows if any(port.source == CONDITION for port in row.inputs))
    if any(file.removeprefix(INHERITED).startswith(steering) for file in files):
        # The condition is computed from a picture, and all components take part in making that picture.
        before = [*rows]
    elif name == family.encoded.node or (inpaints and not family[name].is_first):
        before = [*family.required]
    else:
        before = [*takewhile(lambda row: row.name != name, family.required)]
    folders = dict.fromkeys(row.folder for row in before)
    return [hash_of_folder(files, folder) for folder in (*family.tokens, *folders)]
