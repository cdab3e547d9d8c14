"""Convert golden cases to and from an artifact's names and layout, and read a component's inputs for calibration."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, overload

from md_export.errors import ArtifactError
from md_export.parity.golden.case import GoldenCase
from md_export.parity.golden.folder import read_case, read_index
from md_export.spec.recipe import Recipe
from md_export.spec.tensors import Array, Arrays, TensorSpec, joined, only_output, select
from md_export.targets.layouts import layout_of


class Surface(Protocol):
    """Names, shapes and dtypes of inputs and outputs, of a manifest entry or of a torch module to be lowered."""

    @property
    def component(self) -> str:
        """Name of the component in COMPONENTS."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Specifications of the inputs."""

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Specifications of the outputs."""


def packed(recipe: Recipe, part: Surface, arrays: Arrays) -> dict[str, Array]:
    """Convert inputs under our names to the part's inputs and layout; KeyError for an input that is missing."""
    return select(layout_of(recipe).pack(part.component, arrays), part.inputs)


def inputs_of(recipe: Recipe, part: Surface, case: GoldenCase) -> dict[str, Array]:
    """Return a golden case's inputs under the part's names and in its layout."""
    return packed(recipe, part, case.inputs(part.component))


def outputs_of(recipe: Recipe, part: Surface, case: GoldenCase) -> dict[str, Array]:
    """Return a golden case's expected outputs by the part's names."""
    layout = layout_of(recipe)
    return {
        spec.name: case.output(part.component, layout.output_of(part.component, spec.name)) for spec in part.outputs
    }


def named(part: Surface, outputs: Arrays) -> Arrays:
    """Return an artifact's outputs under the manifest's names; a single output may have any name.

    Raises:
        ArtifactError: several outputs have other names than in the manifest.
    """
    names = [spec.name for spec in part.outputs]
    if len(names) == 1:
        return {names[0]: only_output(outputs)}
    if set(outputs) != set(names):
        raise ArtifactError(
            f"its outputs are {', '.join(outputs)}, not the manifest's {', '.join(names)}; export again"
        )
    return outputs


def unpacked(recipe: Recipe, part: Surface, outputs: Arrays) -> dict[str, Array]:
    """Return an artifact's outputs under our names."""
    layout = layout_of(recipe)
    return {layout.output_of(part.component, name): value for name, value in named(part, outputs).items()}


def each_call(component: str, cases: Sequence[GoldenCase]) -> list[GoldenCase]:
    """Return each case once for every call of the component that it holds."""
    return [call for case in cases for call in case.calls(component)]


def golden_inputs(recipe: Recipe, part: Surface, cases: Sequence[GoldenCase]) -> list[Arrays]:
    """Return an artifact's inputs for each case and call, by its names.

    Raises:
        ArtifactError: the names in the manifest are not the component's.
    """
    with _of_the_component(part):
        return [inputs_of(recipe, part, call) for call in each_call(part.component, cases)]


def golden_outputs(recipe: Recipe, part: Surface, cases: Sequence[GoldenCase]) -> list[dict[str, Array]]:
    """Return an artifact's expected outputs for each case and call, by its names.

    Raises:
        ArtifactError: as :func:`golden_inputs`.
    """
    with _of_the_component(part):
        if not part.outputs:
            raise ValueError("it gives nothing")
        return [outputs_of(recipe, part, call) for call in each_call(part.component, cases)]


def golden_cases(recipe: Recipe, part: Surface, cases: Sequence[GoldenCase]) -> tuple[list[Arrays], list[Array]]:
    """Return an artifact's inputs for each case and call, and the expected outputs as one array each: see :func:`joined
    <md_export.spec.tensors.joined>`.

    Raises:
        ArtifactError: as :func:`golden_inputs`.
    """
    wanted = [joined(outputs) for outputs in golden_outputs(recipe, part, cases)]
    return golden_inputs(recipe, part, cases), wanted


@contextmanager
def _of_the_component(part: Surface) -> Iterator[None]:
    """Turn a KeyError for a name that the golden cases do not have into an ArtifactError about the manifest."""
    try:
        yield
    except (KeyError, ValueError) as error:
        raise ArtifactError(
            f"the manifest's inputs and outputs of {part.component} are not that component's ({error}); it was edited, "
            "export again"
        ) from error


class ReadInputs(Sequence[Arrays]):
    """Inputs of a component that are read on access and not kept; :meth:`read` and ``len`` are to be defined."""

    def read(self, index: int) -> Arrays:
        """Read the inputs at a place."""
        raise NotImplementedError

    @overload
    def __getitem__(self, index: int) -> Arrays: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Arrays]: ...
    def __getitem__(self, index: int | slice) -> Arrays | Sequence[Arrays]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        return self.read(index)


class CalibrationInputs(ReadInputs):
    """A component's inputs in each call of some cases of a folder."""

    def __init__(self, recipe: Recipe, part: Surface, folder: Path, step: int = 1) -> None:
        """Open the folder's index; ``step``: 2 uses every other case."""
        index = read_index(folder)
        self._recipe, self._part, self._folder, self._family = recipe, part, folder, index.family
        # Every case of a folder has the same number of calls of a component.
        count = len(read_case(folder, index.cases[0], index.family).calls(part.component)) if index.steps else 1
        base = [item for item in index.cases if item.style is None]
        self._places = [(item, call) for item in base[::step] for call in range(count)]

    def __len__(self) -> int:
        return len(self._places)

    def read(self, index: int) -> Arrays:
        """Read the inputs of one call."""
        item, call = self._places[index]
        case = read_case(self._folder, item, self._family).calls(self._part.component)[call]
        return inputs_of(self._recipe, self._part, case)


def calibration_inputs(recipe: Recipe, part: Surface, golden: Path, made: Path | None) -> CalibrationInputs:
    """Return a component's inputs in the calibration cases in ``made``; if None, in every other golden case.

    Every other case, so that an artifact is judged on cases that it was not calibrated on, too.
    """
    return CalibrationInputs(recipe, part, golden, 2) if made is None else CalibrationInputs(recipe, part, made)
