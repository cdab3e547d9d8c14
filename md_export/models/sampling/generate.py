"""Make pictures for requests: token ids, noise and other inputs of the model graph, and torch runners of components."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from md_export.errors import UsageError
from md_export.models.chunks import Chunk, chunk_ends, cut
from md_export.models.config import ModelConfig
from md_export.models.families import family_of
from md_export.models.graph import Component, Family
from md_export.models.prompts import StoredPrompts, text_encoders, tokenized, values_of_prompt
from md_export.models.sampling.pictures import Given, Start, cells_of, enter, hide, nothing
from md_export.models.sampling.sampler import Sampler
from md_export.models.sampling.schedule import ScheduleConfig
from md_export.models.values import (
    BLEND,
    CONDITION,
    EDITED,
    FRESH,
    MASK,
    NOISE,
    PICTURE,
    PROMPTED,
    TIME_IDS,
)
from md_export.models.walk import Backend, Tensors, call, walk
from md_export.spec.names import chunk_number, whole_of
from md_export.spec.sampler import ManySteps, OneStep
from md_export.spec.tensors import Array, Arrays, Float32, TensorSpec


def draw_noise(seed: int, shape: tuple[int, ...], count: int = 1) -> NDArray[np.float32]:
    """Return noise ~ N(0, I), the same for the same seed and torch version; golden cases store it.

    The shape is ``[count, …]`` for ``shape`` ``[1, …]``: x_T, then the noise that steps add, in diffusers' order.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    drawn = [torch.randn(shape, generator=generator, dtype=torch.float32).numpy() for _ in range(count)]
    return np.concatenate(drawn)


@dataclass(frozen=True)
class PictureRequest:
    """Request for one picture.

    Attributes:
        given: picture and mask for in-painting; pixels outside the mask are kept.
        condition: condition picture ``[1, C, H, W]`` in [0, 1] for an adapter or a ControlNet, which is otherwise off.
        start: picture and strength for image-to-image.
        edited: picture ``[1, 3, H, W]`` in [-1, 1] that an editing UNet changes; gray by default.
        negative: negative prompt for guidance; None for that of the recipe, else the empty prompt.
    """

    prompt: str
    seed: int
    given: Given | None = None
    condition: Array | None = None
    start: Start | None = None
    negative: str | None = None
    edited: Float32 | None = None


@dataclass(frozen=True)
class Pipeline:
    """Pipeline that makes pictures, with the torch modules of a checkpoint or the artifacts of an export.

    Attributes:
        components: rows of the available components.
        backend: computes the components.
        tokenizers: folder of each tokenizer, by its standard name.
        text_length: number of token ids of a prompt.
        latent_shape: shape ``[1, C, h, w]`` of a latent.
        downscale: side of a latent pixel in picture pixels.
        inpaints, edits: the UNet also gets a picture's latents, with a mask or without.
        steps: constants of many steps; None for one step.
        stored: text embeddings of prompts, which replace the text encoders; None if these are run.
        zeros_for_empty: unconditional text embeddings are zeros, not those of the empty prompt.
        schedule: noise at every timestep; None if image-to-image is not possible.
        recorded: known values, the same for all pictures, that are not computed again.
    """

    family: Family
    components: tuple[Component, ...]
    backend: Backend
    tokenizers: Mapping[str, Path]
    text_length: int
    latent_shape: tuple[int, ...]
    downscale: int
    inpaints: bool
    edits: bool
    one_step: OneStep
    steps: ManySteps | None
    schedule: ScheduleConfig | None = None
    recorded: Mapping[str, Array] = field(default_factory=dict)
    zeros_for_empty: bool = False
    stored: StoredPrompts | None = None

    def values(self, requests: Sequence[PictureRequest], kept: Collection[int] = ()) -> list[Tensors]:
        """Return all intermediate values of each picture; ``kept``: numbers of the steps to include.

        Raises:
            UsageError: in-painting in many steps with a UNet that was not trained for it, or a prompt that is not
                stored.
        """
        entered, noises = self._entered(requests)
        sampler = Sampler(entered.steps or entered.one_step)
        pictures = [self._given(*both, sampler) for both in zip(requests, noises, strict=True)]
        return walk(self.family, self.components, self.backend, pictures, sampler, kept)

    def _entered(self, requests: Sequence[PictureRequest]) -> tuple[Pipeline, list[Float32]]:
        """Return the pipeline with the remaining steps, and each picture's start: noise or a noised picture."""
        noises = [draw_noise(request.seed, self.latent_shape) for request in requests]
        starts = [request.start for request in requests if request.start is not None]
        if not starts or self.schedule is None:
            return self, noises
        # All requests share their steps, so they have one strength.
        (strength,) = {start.strength for start in starts}
        entry = enter(self.schedule, self.one_step, self.steps, strength)
        encoded = self.encoded([start.image for start in starts])
        noised = [entry.noised(*both) for both in zip(encoded, noises, strict=True)]
        return replace(self, one_step=entry.one_step, steps=entry.steps), noised

    def _given(self, request: PictureRequest, noise: Float32, sampler: Sampler) -> Tensors:
        texts = {"": request.prompt}
        if sampler.guidance is not None:
            negative = self.steps.negative if self.steps and request.negative is None else request.negative
            texts = {".0": negative or "", ".1": request.prompt}
        found: Tensors = {**self.recorded, NOISE.key: noise}
        for ending, text in texts.items():
            stored = self.stored.of(text) if self.stored else {}
            ids = tokenized(self.family, self.tokenizers, text, self.text_length)
            found |= {f"{key}{ending}": value for key, value in (ids | stored).items()}
        if TIME_IDS in self.family.outside:
            found[TIME_IDS.key] = np.asarray([[*self.sides, 0, 0, *self.sides]], np.float32)
        if self.zeros_for_empty and texts.get(".0") == "":
            found[PROMPTED.key] = np.asarray([0, 1], np.float32)
        if sampler.fresh_noise:
            found[FRESH.key] = draw_noise(request.seed, self.latent_shape, 1 + sampler.fresh_noise)[1:]
        found |= {} if request.condition is None else {CONDITION.key: request.condition}
        if self.edits:
            found[PICTURE.key] = nothing(*self.sides).image if request.edited is None else request.edited
            (found[EDITED.key],) = self.encoded([found[PICTURE.key]])
        given = request.given or (nothing(*self.sides) if self.inpaints else None)
        if given is not None:
            if self.steps and not self.inpaints:
                raise UsageError(
                    "in-painting in many steps needs a model that was trained for in-painting; use such a model, or "
                    "one step (leave out --steps, or export without it)"
                )
            found[MASK.key if self.inpaints else BLEND.key] = cells_of(given.mask, self.downscale)
            found[PICTURE.key] = hide(given.image, given.mask) if self.inpaints else given.image
        return found

    def embedded(self, prompts: Sequence[str]) -> dict[str, Array]:
        """Return what the text encoders compute of each prompt, ``[N, …]`` by key; each encoder is loaded once."""
        pictures: list[Tensors] = [tokenized(self.family, self.tokenizers, one, self.text_length) for one in prompts]
        for row in text_encoders(self.family):
            call(row, self.backend.run, pictures)
        return {key: np.concatenate([values[key] for values in pictures]) for key in values_of_prompt(self.family)}

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of a picture in pixels."""
        _, _, height, width = self.latent_shape
        return height * self.downscale, width * self.downscale

    def encoded(self, images: Sequence[Array]) -> list[Array]:
        """Return the unscaled latent means ``[1, C, h, w]`` of pictures ``[1, 3, H, W]`` in [-1, 1]."""
        values: list[Tensors] = [{PICTURE.key: image} for image in images]
        call(self.family[self.family.encoded.node], self.backend.run, values)
        return [one[self.family.encoded.key] for one in values]


class TorchRunner:
    """Runner of a float32 module on the CPU, with the names and shapes of its row in the graph."""

    def __init__(self, component: str, module: nn.Module, config: ModelConfig) -> None:
        self.module = module
        self._row = family_of(config)[component]
        self.inputs, self.outputs = self._row.input_specs(config), self._row.output_specs(config)

    def run(self, inputs: Arrays) -> dict[str, Array]:
        """Execute once without gradients and return the outputs; optional inputs may be missing."""
        names = [spec.name for spec in self.inputs if spec.name in inputs or not self._row.may_lack(spec.name)]
        return run_torch(self.module, [inputs[name] for name in names], self.outputs)


class ChunkRunner(TorchRunner):
    """Runner of a chunk of a float32 module on the CPU; it is cut again for other input shapes, as with guidance."""

    def __init__(self, name: str, module: nn.Module, config: ModelConfig) -> None:
        super().__init__(whole_of(name), module, config)
        self._number, self._ends = chunk_number(name), chunk_ends(config)
        self._cut: tuple[tuple[TensorSpec, ...], Chunk] | None = None

    def run(self, inputs: Arrays) -> dict[str, Array]:
        """Execute once without gradients on those of the inputs that the chunk needs, and return the outputs."""
        found = {spec.name: inputs[spec.name] for spec in self.inputs if spec.name in inputs}
        given = tuple(TensorSpec(name, value.shape, str(value.dtype)) for name, value in found.items())
        if self._cut is None or self._cut[0] != given:
            self._cut = given, cut(self.module, given, self.outputs, self._ends)[self._number - 1]
        chunk = self._cut[1]
        return run_torch(chunk.module, [inputs[spec.name] for spec in chunk.inputs], chunk.outputs)


def torch_runner(name: str, module: nn.Module, config: ModelConfig) -> TorchRunner:
    """Return the runner of a component's module, or of one of its chunks."""
    return ChunkRunner(name, module, config) if chunk_number(name) else TorchRunner(name, module, config)


def run_torch(module: nn.Module, inputs: Sequence[Array], outputs: Sequence[TensorSpec]) -> dict[str, Array]:
    """Execute a module once without gradients; return its results by the names of ``outputs``."""
    with torch.no_grad():
        made = module(*(torch.from_numpy(np.ascontiguousarray(value)) for value in inputs))
    values = made if isinstance(made, tuple) else (made,)
    return {spec.name: value.numpy() for spec, value in zip(outputs, values, strict=True)}


class OneAtATime(Mapping[str, TorchRunner]):
    """Runners by component, loaded on access after the previous one is dropped.

    A picture needs only the memory of the largest component, but each picture loads all of them again. Components that
    every step calls are held together; chunks share the module that they are cut from.
    """

    def __init__(self, family: Family, load: Callable[[str], nn.Module], config: ModelConfig) -> None:
        self._family = family
        self._load = load
        self._config = config
        self._held: dict[str, TorchRunner] = {}

    def __getitem__(self, component: str) -> TorchRunner:
        if component not in self._held:
            in_turn = [row.name for row in self._family.components if row.called == "per step"]
            kept = in_turn if component in in_turn else []
            self._held = {name: runner for name, runner in self._held.items() if name in kept}
            alike = (runner.module for name, runner in self._held.items() if whole_of(name) == whole_of(component))
            module = next(alike, None) or self._load(component)
            self._held[component] = torch_runner(component, module, self._config)
        return self._held[component]

    def __iter__(self) -> Iterator[str]:
        return iter(self._family.rows)

    def __len__(self) -> int:
        return len(self._family.rows)
