"""Verified exports as one self-contained HTML page: it opens from disk, without a network."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from md_export import __version__
from md_export.manifest import Manifest, manifest_to_dict
from md_export.parity.insight import Insight
from md_export.parity.metrics import compare
from md_export.parity.verify import Verification, VerifyResult
from md_export.pictures import to_bytes
from md_export.report.inside import Part, lint_cells, module_parts, weight_parts
from md_export.report.plots import Bar, bars, stacked
from md_export.report.tables import Cells, artifact_cells, decibel, parity_cells
from md_export.sampler import steps_in_words
from md_export.sampling import Float32

_MOST_PICTURES: Final = 12
_MOST_OPS: Final = 12
_LARGEST_GAIN: Final = 1024


@dataclass(frozen=True)
class Shown:
    """One golden case: reference, what the artifacts made, and ``gain`` times their difference, as data URIs."""

    prompt: str
    seed: int
    reference: str
    made: str
    difference: str
    gain: int
    psnr: str


@dataclass(frozen=True)
class Chapter:
    """One export."""

    name: str
    passed: bool
    failures: tuple[str, ...]
    cases: int
    steps: str
    bytes: int
    picture: str
    least_picture: str
    parity: Cells
    artifacts: Cells
    plots: tuple[str, ...]
    op_plots: tuple[str, ...]
    pictures: tuple[Shown, ...]
    explained: bool
    unexplained: tuple[str, ...]
    modules: tuple[Part, ...]
    weights: tuple[Part, ...]
    lint: Cells
    manifest: str


def html_page(exports: Sequence[tuple[str, Verification, Insight]]) -> str:
    """A page with one chapter per (name, verification, what explains it)."""
    environment = Environment(
        loader=PackageLoader("md_export.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    chapters = [_chapter(*item) for item in exports]
    template = environment.get_template("report.html.jinja")
    return template.render(title="md-export report", chapters=chapters, version=__version__)


def _chapter(name: str, verification: Verification, found: Insight) -> Chapter:
    manifest, result = verification.manifest, verification.result
    picture = result.picture
    return Chapter(
        name=name,
        passed=result.passed,
        failures=result.failures,
        cases=result.cases,
        steps=steps_in_words(manifest.ddim),
        bytes=sum(entry.bytes for entry in manifest.artifacts),
        picture="-" if picture is None or picture.psnr_db is None else decibel(picture.psnr_db),
        least_picture="-" if picture is None else f"{picture.least_psnr_db:g}",
        parity=parity_cells(result),
        artifacts=artifact_cells(manifest),
        plots=tuple(_plots(manifest, result)),
        op_plots=tuple(_op_plots(manifest)),
        pictures=tuple(_shown(verification)),
        explained=found.explained,
        unexplained=tuple(found.failures),
        modules=tuple(module_parts(found)),
        weights=tuple(weight_parts(found)),
        lint=lint_cells(found.lint),
        manifest=json.dumps(manifest_to_dict(manifest), indent=1),
    )


def _plots(manifest: Manifest, result: VerifyResult) -> Iterable[str]:
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


def _shown(verification: Verification) -> Iterable[Shown]:
    for case, made in list(zip(verification.golden.cases, verification.pictures, strict=False))[:_MOST_PICTURES]:
        wanted = np.asarray(case.values.picture, np.float32)
        error = np.abs(made - wanted)
        gain = _gain(float(error.max()))
        psnr = decibel(compare(made, wanted).psnr_db)
        images = (data_uri(wanted), data_uri(made), data_uri(np.clip(error * gain, 0.0, 1.0)))
        yield Shown(case.prompt, case.seed, *images, gain, psnr)


def _gain(largest: float) -> int:
    """The power of two that brings the largest difference near 1."""
    return int(2 ** np.clip(np.floor(-np.log2(max(largest, 1e-9))), 0, np.log2(_LARGEST_GAIN)))


def data_uri(picture: Float32) -> str:
    """A ``[H, W, 3]`` picture in [0, 1] as an inline PNG."""
    buffer = io.BytesIO()
    Image.fromarray(to_bytes(picture)).save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
