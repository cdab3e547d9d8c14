"""The inputs that ranges of activations and rounding are calibrated on."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import overload

from md_export.checkpoint import Checkpoint
from md_export.errors import RecipeError
from md_export.parity.golden.folder import read_case, read_index
from md_export.parity.golden.prepare import golden_source
from md_export.parity.golden.record import write_golden
from md_export.parity.golden.surface import Surface, inputs_of
from md_export.spec.calibration import CalibrationPlan
from md_export.spec.recipe import Recipe
from md_export.spec.tensors import Arrays

Progress = Callable[[str], None]


class CalibrationInputs(Sequence[Arrays]):
    """A component's inputs in some cases of a folder, each call of it; they are read when asked for, and not kept."""

    def __init__(self, recipe: Recipe, part: Surface, folder: Path, step: int = 1) -> None:
        """``step``: 2 for every other case."""
        self._recipe, self._part, self._folder = recipe, part, folder
        index = read_index(folder)
        # Every case of a folder holds as many calls of a component.
        count = len(read_case(folder, index.cases[0]).calls(part.component)) if index.steps else 1
        self._places = [(item, call) for item in index.cases[::step] for call in range(count)]

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> Arrays: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Arrays]: ...
    def __getitem__(self, index: int | slice) -> Arrays | Sequence[Arrays]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        item, call = self._places[index]
        case = read_case(self._folder, item).calls(self._part.component)[call]
        return inputs_of(self._recipe, self._part, case)


@contextmanager
def calibration_cases(
    recipe: Recipe, checkpoint: Checkpoint, golden: Path, scratch: Path, progress: Progress
) -> Iterator[Path | None]:
    """Cases by the recipe's ``[calibration]``, in a folder in ``scratch`` that is removed afterwards.

    They come from the checkpoint's own chain, text encoder → UNet → decoder, with the rewrites that change what it
    computes.

    Args:
        golden: folder of the cases that judge, whose prompts they take where the plan has none.

    Yields:
        the folder; None where the recipe has no plan, or nothing that is calibrated.

    Raises:
        RecipeError: one of them would also judge.
    """
    plan = recipe.calibration if needs_calibration(recipe) else None
    if plan is None:
        yield None
        return
    judging = [(item.prompt, item.seed) for item in read_index(golden).cases]
    pairs = calibration_pairs(recipe.name, plan, judging)
    with tempfile.TemporaryDirectory(prefix=".calibration-", dir=scratch) as name:
        source = golden_source(
            checkpoint.at(recipe.size), recipe.rewrites, recipe.allow_drift, recipe.sampler, recipe.encodes
        )
        write_golden(source, pairs, Path(name), progress, use="calibration")
        yield Path(name)


def calibration_inputs(recipe: Recipe, part: Surface, golden: Path, made: Path | None) -> CalibrationInputs:
    """Inputs of one component in the cases that were ``made`` by a plan, else in every other golden case.

    Every other, so that half of the cases that judge an artifact are not those that it was calibrated on.
    """
    return CalibrationInputs(recipe, part, golden, 2) if made is None else CalibrationInputs(recipe, part, made)


def needs_calibration(recipe: Recipe) -> bool:
    """Whether anything in it depends on calibration inputs."""
    schemes = [recipe.schemes[name] for name in recipe.components]
    return any(scheme.is_static or scheme.is_adjusted for scheme in schemes)


def calibration_pairs(name: str, plan: CalibrationPlan, golden: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
    """Prompt and seed of each case that calibrates, given those of the cases that judge.

    Raises:
        RecipeError: one is among both.
    """
    prompts = plan.prompts or tuple(dict.fromkeys(prompt for prompt, _ in golden))
    pairs = [(prompt, seed) for seed in plan.seeds for prompt in prompts]
    judging = set(golden).intersection(pairs)
    if judging:
        prompt, seed = min(judging)
        raise RecipeError(
            f"recipe {name}: [calibration] seed {seed} with the prompt {prompt!r:.60} is a golden case, too, "
            "which could not judge what was calibrated on it; give other seeds"
        )
    return pairs
