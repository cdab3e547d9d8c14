"""Write verified exports as one self-contained HTML page that opens from disk, without a network."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Final

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from md_export import __version__
from md_export.diagnose.attribution.attribute import ModuleError
from md_export.diagnose.insight import Insight
from md_export.models.sampling.pictures import to_bytes
from md_export.parity.device.kit import PROGRAMS
from md_export.parity.metrics import compare
from md_export.parity.subject import shortfalls
from md_export.parity.verdict import Verdict, Verification
from md_export.parity.weights.audit import ComponentAudit, WeightError
from md_export.report.diagnoses import hop_cells, module_cells, verdict_line
from md_export.report.plots import Bar, Ticks, bars, course, stacked
from md_export.report.tables import Cells, artifact_cells, decibel
from md_export.report.verdicts import parity_cells
from md_export.spec.manifest import Manifest, manifest_to_dict
from md_export.spec.sampler import steps_in_words
from md_export.spec.tensors import Float32
from md_export.targets.lint.report import LintReport

_LARGEST_FLOAT16: Final = 65504.0
_WORST_WEIGHTS: Final = 10


@dataclass(frozen=True)
class Part:
    """Section about one artifact: a line with the result, advice, plots, and tables with titles."""

    component: str
    line: str
    advice: tuple[str, ...]
    plots: tuple[str, ...]
    tables: tuple[tuple[str, Cells], ...]


def module_parts(found: Insight) -> Iterator[Part]:
    """Yield each artifact's module errors along the network, largest magnitudes, hops, and worst modules."""
    for one in found.modules:
        leaves = _leaves(one.modules)
        ticks = _ticks([item.path for item in leaves])
        errors = {
            "against torch": [item.cumulative_snr_db for item in leaves],
            "on its own input": [item.local_snr_db for item in leaves],
        }
        peaks = {"largest magnitude": [item.peak for item in leaves]}
        name, dots = one.component, ["on its own input"]
        plots = (
            course(f"{name}: module errors", "dB", errors, ticks, one.least_snr_db, dots=dots),
            course(f"{name}: largest activations", "magnitude", peaks, ticks, _LARGEST_FLOAT16, log=True),
        )
        tables = ((f"Hops on {one.case}", hop_cells(one)), ("Worst modules by local error", module_cells(one)))
        yield Part(one.component, verdict_line(one), one.advice, plots, tables)


def weight_parts(found: Insight) -> Iterator[Part]:
    """Yield each artifact's errors of stored weights along the network, and the worst weights."""
    order = {item.path: place for one in found.modules for place, item in enumerate(one.modules)}
    for item in found.weights.components if found.weights else ():
        errors = sorted(item.errors, key=lambda error: order.get(_owner(error.name), len(order)))
        worst = sorted(errors, key=lambda error: error.snr_db)[:_WORST_WEIGHTS]
        rows = tuple((error.name, error.dtype, f"{error.bytes:,}", decibel(error.snr_db)) for error in worst)
        cells = Cells(("tensor", "stored as", "bytes", "SNR dB"), rows)
        plots = (_weight_plot(item.component, errors),) if errors else ()
        yield Part(item.component, _audit_line(item), item.faults, plots, (("Weights farthest from it", cells),))


def _weight_plot(component: str, errors: Sequence[WeightError]) -> str:
    types = sorted({error.dtype for error in errors})
    series = {kind: [e.snr_db if e.dtype == kind else math.nan for e in errors] for kind in types}
    ticks = _ticks([_owner(error.name) for error in errors])
    return course(f"{component}: weight errors", "dB", series, ticks, dots=types)


def lint_cells(reports: Sequence[LintReport]) -> Cells:
    """Return one row for each rule that advises against operations or has a remark on them."""
    rows = tuple(row for report in reports for row in _lint_rows(report))
    return Cells(("artifact", "rule", "verdict", "ops", "says", "what helps"), rows)


def _lint_rows(report: LintReport) -> Iterator[tuple[str, ...]]:
    for rule in report.rules:
        count = sum(rule.id in op.rules for op in report.ops) + report.remarks.count(rule.id)
        if rule.verdict != "likely" and count:
            yield (report.file, rule.id, rule.verdict, str(count), rule.title, rule.advice)


def _leaves(modules: Sequence[ModuleError]) -> list[ModuleError]:
    """Return the modules that contain none of the other modules."""
    parents = {item.path.rsplit(".", size)[0] for item in modules for size in range(1, item.path.count(".") + 1)}
    return [item for item in modules if item.path and item.path not in parents]


def _ticks(paths: Sequence[str]) -> Ticks:
    """Return the place and name of the first module of each block."""
    blocks: Mapping[str, int] = {_block(path): place for place, path in reversed(list(enumerate(paths)))}
    return sorted((place, name) for name, place in blocks.items())


def _block(path: str) -> str:
    """Return the block of a module path: ``down_blocks.1.resnets.0.conv`` → ``down_blocks.1``."""
    parts = path.split(".")
    numbers = [place for place, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[: numbers[0] + 1] if numbers else parts[: max(1, len(parts) - 1)])


def _owner(tensor: str) -> str:
    return tensor.rpartition(".")[0]


def _audit_line(item: ComponentAudit) -> str:
    asked = item.as_requested / max(1, item.promised)
    return (
        f"{item.proven_share:.2%} of the stored bytes are the checkpoint's, within the rounding of their type; "
        f"{asked:.0%} of the weights are {item.requested}, as requested; {len(item.missing) or 'none'} missing"
    )


_MOST_PICTURES: Final = 12
_MOST_OPS: Final = 12
_LARGEST_GAIN: Final = 1024


@dataclass(frozen=True)
class Shown:
    """One golden case's pictures as data URIs: reference, the artifacts' result, ``gain`` times their difference."""

    name: str
    prompt: str
    seed: int
    reference: str
    made: str
    difference: str
    gain: int
    psnr: str


def html_page(exports: Sequence[tuple[str, Verification, Insight]], today: date) -> str:
    """Return an HTML page with one chapter per (name, verification, insight); ``today``: the date that it names."""
    environment = Environment(
        loader=PackageLoader("md_export.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {
        "decibel": decibel,
        "steps": steps_in_words,
        "json": lambda manifest: json.dumps(manifest_to_dict(manifest), indent=1),
    }
    # Functions that the template calls for the tables, plots and pictures of a chapter.
    environment.globals |= {
        "artifact_cells": artifact_cells,
        "lint_cells": lint_cells,
        "module_parts": module_parts,
        "op_plots": _op_plots,
        "parity_cells": parity_cells,
        "pictures": _shown,
        "plots": _plots,
        "weight_parts": weight_parts,
    }
    template = environment.get_template("report.html.jinja")
    results = [(name, verification.result) for name, verification, _ in exports]
    steps = [line for export in exports for line in _next_steps(*export)]
    made = {"sentence": _sentence(results), "next_steps": steps, "today": today.isoformat(), "version": __version__}
    return template.render(title="md-export report", exports=exports, **made)


def _sentence(results: Sequence[tuple[str, Verdict]]) -> str:
    """Return the verdict on all exports in one sentence."""
    short = [name for name, result in results if not result.passed]
    if short:
        first = next(result.failures[0] for _, result in results if not result.passed)
        many = f"{len(short)} of {len(results)} exports fall short" if results[1:] else f"{short[0]} falls short"
        return f"{many} of the recipe's thresholds. The first failure: {first}."
    who = f"All {len(results)} exports are" if results[1:] else f"{results[0][0]} is"
    cases = sum(result.cases for _, result in results)
    pictures = [one.picture for _, one in results if one.picture and one.picture.psnr_db is not None]
    worst = min(pictures, key=lambda one: one.psnr_db or 0.0, default=None)
    least = f"; the worst picture has {decibel(worst.psnr_db)} dB (at least {worst.least_psnr_db:g})" if worst else ""
    return f"{who} verified: each artifact computes what the checkpoint computes, on {cases} golden cases{least}."


def _next_steps(name: str, verification: Verification, found: Insight) -> Iterator[str]:
    """Yield what to do with an export: ship it, or find and correct the cause of its failures."""
    manifest, result = verification.manifest, verification.result
    if result.passed:
        yield f"{name}: pin it, so that CI notices changes: md-export manifest seal {name} -o {name}.pin.json"
        if manifest.target in PROGRAMS:
            yield f"{name}: test it on a phone: md-export device-test {name} -o kit"
        return
    short = [item for item in result.components if item.parity and shortfalls(item.parity, item.tolerance)]
    for item in short:
        advice = [line for one in found.modules if one.component == item.component for line in one.advice]
        yield from (f"{name}, {item.component}: {line}" for line in advice)
        if not advice:
            command = f"md-export attribute {name}/{item.file} --checkpoint DIR"
            yield f"{name}, {item.component}: find the module where accuracy drops: {command}"
    if any(item.faults and item not in short for item in result.components):
        yield f"{name}: each failure below ends with what to do about it"


def _plots(manifest: Manifest, result: Verdict) -> Iterable[str]:
    judged = [Bar(x.component, x.parity.snr_db, x.tolerance.snr_db) for x in result.components if x.parity]
    if result.picture and result.picture.psnr_db is not None:
        judged.append(Bar("picture", result.picture.psnr_db, result.picture.least_psnr_db))
    yield bars("Parity", "dB", judged)
    megabytes = {x.component: {kind: size / 1e6 for kind, size in x.stored.items()} for x in manifest.artifacts}
    yield stacked("Stored weights", "MB", megabytes)


def _op_plots(manifest: Manifest) -> Iterable[str]:
    for entry in manifest.artifacts:
        often = sorted(entry.ops.items(), key=lambda item: (-item[1], item[0]))[:_MOST_OPS]
        yield bars(f"{entry.component}: {sum(entry.ops.values())} ops", "count", [Bar(*item) for item in often])


def _shown(verification: Verification) -> Iterator[Shown]:
    """Yield the cases with the worst pictures, worst first."""
    pairs = zip(verification.golden.cases, verification.pictures, strict=False)
    judged = [(compare(made, np.asarray(case.picture, np.float32)).psnr_db, case, made) for case, made in pairs]
    for psnr, case, made in sorted(judged, key=lambda one: one[0])[:_MOST_PICTURES]:
        wanted = np.asarray(case.picture, np.float32)
        error = np.abs(made - wanted)
        gain = _gain(float(error.max()))
        images = (data_uri(wanted), data_uri(made), data_uri(np.clip(error * gain, 0.0, 1.0)))
        yield Shown(case.name, case.prompt, case.seed, *images, gain, decibel(psnr))


def _gain(largest: float) -> int:
    """Return the power of two that scales the largest difference to nearly 1."""
    return int(2 ** np.clip(np.floor(-np.log2(max(largest, 1e-9))), 0, np.log2(_LARGEST_GAIN)))


def data_uri(picture: Float32) -> str:
    """Encode a ``[H, W, 3]`` picture in [0, 1] as a PNG in a data URI."""
    buffer = io.BytesIO()
    Image.fromarray(to_bytes(picture)).save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
