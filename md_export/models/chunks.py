"""Cut a module between its parts into chunks that run one after the other.

Each part is in one chunk, with the same path as before; the chunks share the module's tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves

from md_export.errors import UsageError
from md_export.models.chunk_module import BorderValues, ChunkModule
from md_export.models.chunk_run import Run, Shape
from md_export.models.config import ModelConfig
from md_export.models.families import component_of, family_of
from md_export.spec.tensors import TensorSpec

_FLOAT32_BYTES: Final = 4


@dataclass(frozen=True)
class Part:
    """A module that is never cut: its path, and the size of its weights in bytes as float32."""

    path: str
    bytes: int


@dataclass(frozen=True)
class Chunk:
    """One of a module's chunks.

    Attributes:
        module: gets ``inputs`` by position; returns a tensor, or a tuple in the order of ``outputs``.
        inputs: inputs of the whole module that it needs, then values of earlier chunks.
        outputs: values that later chunks need; for the last chunk, the outputs of the whole module.
    """

    module: ChunkModule
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def parts_of(build: Callable[[], nn.Module], inputs: Sequence[TensorSpec]) -> tuple[Part, ...]:
    """Return the parts of the module that ``build`` returns, in the order in which they run; allocates no weights."""
    with FakeTensorMode():
        module = build().eval()
    return tuple(Part(path, _bytes(module.get_submodule(path))) for path in Run(module, inputs).order)


def parts_of_denoiser(config: ModelConfig) -> tuple[Part, ...]:
    """Return the parts of a checkpoint's UNet or transformer."""
    row = component_of(config, family_of(config).denoised.node)
    return parts_of(lambda: row.build(config), row.input_specs(config))


def chunk_ends(config: ModelConfig) -> tuple[str, ...]:
    """Return the last part of each chunk except the last chunk, for the number of chunks in the variant."""
    chunks = config.variant.chunks
    assert isinstance(chunks, int)  # noqa: S101 (the plan has found a number for auto)
    return borders(parts_of_denoiser(config), chunks)


def values_of_denoiser(config: ModelConfig) -> dict[str, Shape]:
    """Return the shapes of the outputs of all parts of a UNet or transformer, as golden cases store them."""
    row = component_of(config, family_of(config).denoised.node)
    with FakeTensorMode():
        module = row.build(config).eval()
    run = Run(module, row.input_specs(config))
    return {name: tuple(run.values[name].shape) for name in run.makers}


def _bytes(module: nn.Module) -> int:
    return sum(_FLOAT32_BYTES * value.numel() for value in module.state_dict().values())


def borders(parts: Sequence[Part], count: int) -> tuple[str, ...]:
    """Return the last part of each chunk except the last chunk, such that the largest chunk is as small as possible.

    Raises:
        UsageError: ``count`` is 1, or larger than the number of parts with weights.
    """
    heavy = [part for part in parts if part.bytes]
    if not 1 < count <= len(heavy):
        raise UsageError(f"chunks {count}: this model can be cut into 2 to {len(heavy)}; give such a number, or auto")
    ends = range(len(heavy) + 1)
    sums = [sum(part.bytes for part in heavy[:end]) for end in ends]
    # By number of chunks and of parts: bytes of the largest chunk, and the first part of the last chunk.
    best = [{end: (sums[end], 0) for end in ends[1:]}]
    for number in range(1, count):
        tried = {end: range(number, end) for end in ends[number + 1 :]}
        best.append(
            {
                end: min((max(best[-1][at][0], sums[end] - sums[at]), at) for at in starts)
                for end, starts in tried.items()
            }
        )
    end, found = len(heavy), list[str]()
    for number in range(count - 1, 0, -1):
        end = best[number][end][1]
        found.append(heavy[end - 1].path)
    return tuple(reversed(found))


def chunk_bytes(parts: Sequence[Part], ends: Sequence[str]) -> tuple[int, ...]:
    """Return the bytes of each chunk's weights in float32; ``ends``: as :func:`borders` returns them."""
    order = [part.path for part in parts]
    places = [0, *(order.index(path) + 1 for path in ends), len(order)]
    return tuple(sum(part.bytes for part in parts[start:end]) for start, end in pairwise(places))


def cut(
    module: nn.Module,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    ends: Sequence[str],
    plain: Mapping[str, Shape] = {},
) -> tuple[Chunk, ...]:
    """Return the chunks of a module, which share its weights.

    Args:
        module: gets ``inputs`` by position and returns ``outputs``.
        ends: as :func:`borders` returns them.
        plain: as :func:`values_of_denoiser` returns them, for a module that was rewritten.

    Raises:
        UsageError: a rewrite has removed a part in ``ends`` or changes a value between chunks, or a part needs a value
            of a later chunk.
    """
    run = Run(module, inputs, plain)
    if missing := [path for path in ends if path not in run.order]:
        raise UsageError(
            f"chunks: a rewrite of the recipe replaces {missing[0]}, where a chunk ends; leave out one of the two"
        )
    places = [run.order.index(end) for end in ends]
    chunk_of = {path: sum(end < place for end in places) for place, path in enumerate(run.order)}
    wanted: set[str] = set()
    chunks: list[Chunk] = []
    for number in range(len(ends), -1, -1):
        is_last = number == len(ends)
        made = tuple(name for name, path in run.makers.items() if name in wanted and chunk_of[path] == number)
        reached = run.reached(
            tree_leaves(run.answer) if is_last else [run.values[name] for name in made], chunk_of, number
        )
        given = tuple(
            name
            for name, value in run.values.items()
            if id(value) in reached and (name not in run.makers or chunk_of[run.makers[name]] < number)
        )
        wanted |= run.makers.keys() & given
        others = [path for path, of in chunk_of.items() if of != number]
        part = ChunkModule(run, BorderValues(given, made), others, reached)
        chunks.append(
            Chunk(part, tuple(map(run.spec, given)), tuple(outputs) if is_last else tuple(map(run.spec, made)))
        )
    crossing = (spec for chunk in chunks for spec in chunk.inputs if spec.name in plain)
    if changed := [spec for spec in crossing if spec.shape[1:] != plain[spec.name][1:]]:
        raise UsageError(
            f"chunks: a rewrite of the recipe changes {changed[0].name}, which chunks exchange; leave out "
            "one of the two"
        )
    return tuple(reversed(chunks))
