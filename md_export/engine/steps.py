"""One step of a plan, inside its worker process: the same stages as :func:`md_export.engine.export.export`.

The request names folders of the entries that the step needs; what it makes goes to the folder ``folder``.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from md_export.checkpoint import open_checkpoint
from md_export.checkpoint.derived import adapted
from md_export.engine.artifact import BuildStep, build_component
from md_export.engine.export import seal
from md_export.engine.hops import explain
from md_export.engine.request import loras_there
from md_export.engine.swift_bundle import write_bundle
from md_export.parity.golden.calibration import calibration_cases
from md_export.parity.golden.prepare import prepare_golden
from md_export.spec.artifact import GOLDEN_FOLDER, entry_from_dict, entry_to_dict
from md_export.spec.manifest import Drift
from md_export.spec.recipe import Recipe
from md_export.spec.recipe_file import recipe_from_dict

CASES: Final = "cases"


def step_in_worker(request: dict[str, Any]) -> dict[str, Any]:
    """Carry out one step; answers with what is kept beside its files.

    Raises:
        MdExportError: as the stages of an export. An export that falls short answers with ``failures``.
    """
    with adapted(Path(request["checkpoint"]), loras_there(request)) as folder:
        return _KINDS[request["kind"]]({**request, "checkpoint": str(folder)})


def _golden(request: dict[str, Any]) -> dict[str, Any]:
    checkpoint = open_checkpoint(Path(request["checkpoint"]))
    given = request["given"] and Path(request["given"])
    drift = prepare_golden(_recipe(request), checkpoint, given, Path(request["folder"]) / GOLDEN_FOLDER, print)
    return {"drift": drift and dataclasses.asdict(drift)}


def _calibration(request: dict[str, Any]) -> dict[str, Any]:
    checkpoint, folder = open_checkpoint(Path(request["checkpoint"])), Path(request["folder"])
    golden = _files(request, request["golden"]) / GOLDEN_FOLDER
    with calibration_cases(_recipe(request), checkpoint, golden, folder, print) as made:
        assert made is not None  # noqa: S101 (the plan has such a step for recipes that calibrate only)
        shutil.copytree(made, folder / CASES)
    return {}


def _artifact(request: dict[str, Any]) -> dict[str, Any]:
    cases = request["cases"] and _files(request, request["cases"]) / CASES
    golden = _files(request, request["golden"]) / GOLDEN_FOLDER
    step = BuildStep(
        Path(request["checkpoint"]),
        request["component"],
        _recipe(request),
        golden,
        Path(request["folder"]),
        request["notes"],
        cases,
    )
    return entry_to_dict(build_component(step))


def _export(request: dict[str, Any]) -> dict[str, Any]:
    """Seals the artifacts in the worker's folder; of what it holds then only what the step itself made stays."""
    folder, values = Path(request["folder"]), request["values"]
    recipe = _recipe(request)
    checkpoint = open_checkpoint(Path(request["checkpoint"])).at(recipe.size)
    if recipe.layout == "swift":
        write_bundle(checkpoint, folder)
    for key in (request["golden"], *request["parts"]):
        # Not links: onnx takes weights with a second name for an attack.
        shutil.copytree(_files(request, key), folder, copy_function=shutil.copyfile, dirs_exist_ok=True)
    entries = tuple(entry_from_dict(values[key]) for key in request["parts"])
    drift = values[request["golden"]]["drift"]
    _, result = seal(recipe, checkpoint, folder, entries, drift and Drift(**drift), print)
    if not result.passed:
        return {"failures": [*explain(folder, result, checkpoint.root, print), *result.failures]}
    _remove_parts(folder, [GOLDEN_FOLDER, *(name for one in entries for name in (one.file, one.data) if name)])
    return {}


def _remove_parts(folder: Path, names: list[str]) -> None:
    for name in names:
        if (folder / name).is_dir():
            shutil.rmtree(folder / name)
        else:
            (folder / name).unlink()


def _recipe(request: dict[str, Any]) -> Recipe:
    return recipe_from_dict(request["recipe"], "recipe")


def _files(request: dict[str, Any], key: str) -> Path:
    return Path(request["files"][key])


_KINDS: Final[Mapping[str, Callable[[dict[str, Any]], dict[str, Any]]]] = {
    "golden": _golden,
    "calibration": _calibration,
    "artifact": _artifact,
    "export": _export,
}
