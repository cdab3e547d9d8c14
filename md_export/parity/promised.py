"""Check golden cases and files that apps read against the manifest, without the checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from pydantic_core import from_json

from md_export.errors import ArtifactError
from md_export.models.values import NOISE
from md_export.parity.golden.folder import INDEX
from md_export.parity.golden.recomputed import case_lines, expected_cases
from md_export.parity.metrics import Check, Fault
from md_export.parity.opened_export import OpenedExport
from md_export.spec.artifact import GOLDEN_FOLDER
from md_export.spec.loras import STYLE_FOLDER
from md_export.spec.manifest import Manifest, altered_files
from md_export.spec.style import style_file
from md_export.spec.tensors import is_style_input
from md_export.system.files import read_limited

_LIMIT: Final = 1 << 20


def promise_faults(export: OpenedExport) -> list[Fault]:
    """Return a fault for each missing golden case, and for each constant in an app's files that differs."""
    lines = (*_case_lines(export), *_style_lines(export.manifest))
    faults = [Fault(Check.CASES, line) for line in lines]
    faults += [Fault(Check.BYTES, f"{line}; export again") for line in altered_files(export.out, export.manifest)]
    try:
        return faults + [Fault(Check.APP_FILES, line) for line in _file_lines(export)]
    except (ArtifactError, ValueError) as error:
        return [*faults, Fault(Check.APP_FILES, str(error))]


def _case_lines(export: OpenedExport) -> Iterator[str]:
    golden = export.golden
    if golden.folder != export.out / GOLDEN_FOLDER:
        return
    yield from case_lines(expected_cases(export.manifest.recipe), golden)
    styles = dict.fromkeys(case.style for case in golden.cases if case.style)
    for style in export.manifest.styles:
        if style.name not in styles:
            yield f"no golden case is of the style {style.name!r:.80}; it was edited, export again"
    listed = {INDEX, *(item.file for item in golden.index.cases)}
    for name in sorted({path.name for path in golden.folder.iterdir()} - listed):
        yield f"{GOLDEN_FOLDER}/{name} is not listed in {GOLDEN_FOLDER}/{INDEX}; it was edited, export again"


def _style_lines(manifest: Manifest) -> Iterator[str]:
    """Yield a line for each component that lacks its styles, and for each file of a style that the manifest lacks."""
    for entry in manifest.artifacts:
        takes = any(is_style_input(spec.name) for spec in entry.inputs)
        if takes and not any(entry.component in style.components for style in manifest.styles):
            yield f"{entry.component} has inputs for styles, and no style changes it; it was edited, export again"
    known = {style_file(style.name, name) for style in manifest.styles for name in style.components}
    for name in manifest.files:
        if name.startswith(f"{STYLE_FOLDER}/") and name not in known:
            yield f"{name} is of no style of the export; it was edited, export again"


def _file_lines(export: OpenedExport) -> Iterator[str]:
    """Yield a line for each field of a layout's files that differs from the manifest."""
    manifest, step = export.manifest, export.manifest.one_step
    model = {"scaling_factor": step.scaling_factor, "prediction_type": step.prediction_type}
    shared = {
        "timestep": step.timestep,
        "a": step.a,
        "b": step.b,
        "latent_shape": list(export.golden.cases[0].values[NOISE.key].shape),
    }
    if manifest.recipe.layout == "swift":
        yield from differences("schedule.json", _read(export, "schedule.json"), shared | model)
    if manifest.target == "coreai":
        held = _read(export, "metadata.json")
        assets = {entry.component: entry.file for entry in manifest.artifacts}
        wanted: dict[str, object] = {"name": manifest.recipe.name, "assets": assets, "one_step": shared}
        if "diffusion" in held:  # only for a prediction type that Apple's package supports
            model["decoder_scale_factor"] = model.pop("scaling_factor")
            wanted["diffusion"] = model
        yield from differences("metadata.json", held, wanted)


def _read(export: OpenedExport, name: str) -> Mapping[str, object]:
    held = from_json(read_limited(export.out / name, _LIMIT, ArtifactError, "export again"))
    return held if isinstance(held, dict) else {}


def differences(where: str, held: object, wanted: Mapping[str, object]) -> Iterator[str]:
    """Yield a line for each field of ``wanted`` that ``held`` lacks or has with another value."""
    for key, value in wanted.items():
        found = held.get(key) if isinstance(held, dict) else None
        if isinstance(value, dict):
            yield from differences(f"{where}: {key}", found, value)
        elif found != value:
            yield f"{where}: {key} is {found!s:.80}, not {value!s:.80}; it was edited, export again"
