"""Our recipes beside the peers' own algorithms: same weights, same float graph, same calibration inputs, one table.

    python benchmarks/peers_quantization.py [--model NAME]... [--weights FOLDER] [TARGET ...]

Models: the nano checkpoint; nano with planted outliers (see outliers.py); FLUX.2's trained tiny decoder (see taef2.py),
which decodes what its own encoder makes of the photographs of scikit-learn. Figures are the worst of all golden cases:
SNR of each component, PSNR of the picture (of the tiny decoder's output, where there is no chain).

A peer's method gets the float artifact that our recipe starts from. A row "ours: …, with …" is our recipe with one part
of a peer's in it, hence the same bytes. Calibration cases are the same for all, and none of them judges.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click
import torch

from md_export.checkpoint import Checkpoint, open_checkpoint
from md_export.checkpoint.modules import layers_of
from md_export.engine.artifact import BuildStep, build_component
from md_export.engine.steps import manifest_of
from md_export.errors import MdExportError, RuntimeFault
from md_export.parity.golden.surface import calibration_inputs
from md_export.parity.judge import judge
from md_export.spec.artifact import GOLDEN_FOLDER, ArtifactEntry, bytes_of_artifact
from md_export.spec.manifest import write_manifest
from md_export.spec.recipe import Recipe
from md_export.targets import TARGETS
from md_export.targets.execution import Execution, Job, run_batches
from peer_methods import (
    Method,
    Source,
    ai_edge,
    ai_edge_algorithm,
    mixed_palettes,
    onnx_calibrator,
    onnx_static,
    palettes,
    silent,
)
from peer_models import COMPONENTS, MODELS, Model, models
from quantization import GPTQ, Row, other, recipe_of
from side_by_side import table

HEADER: Final = ("model", "target", "method", "bytes", "text encoder dB", "UNet dB", "decoder dB", "picture dB")
Context = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Ours:
    """A recipe of ours, or one with a part of a peer's."""

    row: Row
    title: str = ""
    context: Context = nullcontext

    @property
    def name(self) -> str:
        return f"ours: {self.row.name}{', with ' * bool(self.title)}{self.title}"


@dataclass(frozen=True)
class Theirs:
    """A peer's method on the float artifact of one of our recipes; ``rival``: whose bytes it is compared with."""

    name: str
    method: Method
    rival: str


def with_algorithm(recipe: str, algorithm: str) -> Ours:
    return Ours(Row(recipe), f"{algorithm} of ai-edge-quantizer", lambda: ai_edge_algorithm(algorithm))


def with_calibrator(calibrator: str) -> Ours:
    return Ours(Row("int8"), f"{calibrator} of onnxruntime", lambda: onnx_calibrator(calibrator))


CALIBRATORS: Final = ("MinMax", "Entropy", "Percentile")
FLOAT: Final = {"coreml": "fp16", "tflite": "fp32", "onnx": "fp32"}
ROWS: Final[dict[str, tuple[Ours | Theirs, ...]]] = {
    "tflite": (
        Ours(Row("int8")),
        with_algorithm("int8", "OCTAV"),
        Theirs("ai-edge-quantizer dynamic_wi8", ai_edge("dynamic_wi8_afp32"), "int8"),
        Theirs("ai-edge-quantizer dynamic_wi8, OCTAV", ai_edge("dynamic_wi8_afp32", "OCTAV"), "int8"),
        Ours(Row("int8-weights")),
        Theirs("ai-edge-quantizer weight_only_wi8", ai_edge("weight_only_wi8_afp32"), "int8-weights"),
        Ours(Row("int8-static")),
        Theirs("ai-edge-quantizer static_wi8_ai8", ai_edge("static_wi8_ai8"), "int8-static"),
        Ours(Row("int4")),
        Ours(other("int4", "least squares", rounding="mse")),
        Ours(other("int4", "compensated", **GPTQ)),
        with_algorithm("int4", "OCTAV"),
        with_algorithm("int4", "MSE"),
        Theirs("ai-edge-quantizer dynamic_wi4", ai_edge("dynamic_wi4_afp32"), "int4"),
        Theirs("ai-edge-quantizer dynamic_wi4, OCTAV", ai_edge("dynamic_wi4_afp32", "OCTAV"), "int4"),
    ),
    "onnx": (
        Ours(Row("int8")),
        *(with_calibrator(name) for name in CALIBRATORS),
        *(Theirs(f"onnxruntime quantize_static, {name}", onnx_static(name), "int8") for name in CALIBRATORS),
    ),
    "coreml": (
        Ours(Row("palette4")),
        Ours(other("palette4", "least squares", rounding="mse")),
        Ours(other("palette4", "compensated", **GPTQ)),
        Theirs("coremltools k-means, 4 bits, groups of 16", palettes(4, 16), "palette4"),
        Theirs("Apple's mixed bits", mixed_palettes, "palette4"),
    ),
}


@dataclass
class Bench:
    """One model in one target: artifacts by row, each with the figures of its judgement."""

    model: Model
    target: str
    folder: Path
    checkpoint: Checkpoint
    entries: dict[str, tuple[ArtifactEntry, ...]] = dataclasses.field(default_factory=dict)

    def recipe(self, row: Row) -> Recipe:
        """Return the recipe for the model's components, its globs for first and last layers named.

        Globs of rules that name no layer of the model go: int4 of TFLite has some for our decoder's levels.
        """
        recipe = recipe_of(self.target, row).narrowed(self.model.components)
        schemes = dict(recipe.schemes)
        for name in recipe.components:
            paths = layers_of(self.checkpoint.module(name))
            scheme = schemes[name].for_layers(paths)
            rules = [
                dataclasses.replace(rule, modules=found)
                for rule in scheme.rules
                if (found := tuple(glob for glob in rule.modules if fnmatch.filter(paths, glob)))
            ]
            schemes[name] = dataclasses.replace(scheme, rules=tuple(rules))
        return dataclasses.replace(recipe, schemes=schemes)

    def built(self, name: str, recipe: Recipe, context: Context = nullcontext) -> Path:
        """Build all artifacts of a recipe, once."""
        out = self.folder / name.replace(" ", "_")
        if name not in self.entries:
            out.mkdir(parents=True, exist_ok=True)
            with context():
                self.entries[name] = tuple(
                    build_component(
                        BuildStep(
                            self.model.checkpoint, part, recipe, self.model.golden, out, {}, self.model.calibration
                        )
                    )
                    for part in recipe.components
                )
        return out

    def converted(self, row: Theirs) -> tuple[Path, Recipe]:
        """Convert the float artifacts by a peer's method."""
        rival = self.recipe(Row(row.rival))
        plain = self.recipe(Row(FLOAT[self.target]))
        plain = dataclasses.replace(plain, rewrites=rival.rewrites, deployment_target=rival.deployment_target)
        name = f"float for {'-'.join(plain.rewrites)[:80]} {plain.deployment_target}"
        source, own = self.built(name, plain), self.built(f"ours: {row.rival}", rival)
        out = self.folder / row.name.replace(" ", "_")
        out.mkdir()
        for entry in self.entries[name]:
            given = Source(
                source / entry.file,
                self.checkpoint.module(entry.component),
                calibration_inputs(plain, entry, self.model.golden, self.model.calibration),
                bytes_of_artifact(own / entry.file),
            )
            row.method(given, out / entry.file)
        self.entries[row.name] = self.entries[name]
        return out, plain

    def figures(self, row: Ours | Theirs) -> tuple[str, ...]:
        """Return bytes, SNR of each component and PSNR of the picture; why not, where a peer's tool fails."""
        try:
            with silent():
                if isinstance(row, Ours):
                    recipe = self.recipe(row.row)
                    out = self.built(row.name, recipe, row.context)
                else:
                    out, recipe = self.converted(row)
        except (MdExportError, RuntimeError, ValueError, TypeError, LookupError) as error:
            return ("-", *["-"] * len(COMPONENTS), str(error).splitlines()[0][:60])
        return judged(out, recipe, self.checkpoint, self.model, self.entries[row.name])


def judged(
    out: Path, recipe: Recipe, checkpoint: Checkpoint, model: Model, entries: tuple[ArtifactEntry, ...]
) -> tuple[str, ...]:
    """Execute artifacts on the golden cases, in this process."""
    (out / GOLDEN_FOLDER).symlink_to(model.golden.resolve())
    write_manifest(manifest_of(recipe, checkpoint, out, entries, None), out)
    with silent():
        verdict = judge(out, model.golden, execute=run_here).result
    found = {one.component: one.parity for one in verdict.components if one.parity}
    for one in verdict.components:
        if one.parity is None:
            click.echo(f"{one.component}: {one.faults}", err=True)
    snr = [f"{found[name].snr_db:.1f}" if name in found else "-" for name in COMPONENTS]
    picture = verdict.picture.psnr_db if verdict.picture else None
    if model.components == ("vae_decoder",) and "vae_decoder" in found:
        picture = found["vae_decoder"].psnr_db
    size = sum(bytes_of_artifact(out / entry.file) for entry in entries)
    return (f"{size:,}", *snr, "-" if picture is None else f"{picture:.1f}")


def run_here(target: str, path: Path, batches: Any) -> Execution:
    """Execute in this process; a file that onnxruntime's optimizer fails on as it is written."""
    try:
        return run_batches(Job(target, path, batches))
    except RuntimeFault:
        if (plain := TARGETS[target].as_written) is None:
            raise
        return run_batches(Job(target, path, batches, plain))


@click.command()
@click.option(
    "--model", "names", multiple=True, type=click.Choice(MODELS), help="Model to compare on (default: all three)."
)
@click.option(
    "--weights",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder with taef2_decoder.safetensors and taef2_encoder.safetensors (default: leave the tiny decoder out).",
)
@click.argument("targets", nargs=-1, type=click.Choice(tuple(ROWS)))
def main(names: tuple[str, ...], weights: Path | None, targets: tuple[str, ...]) -> None:
    """Print the table."""
    torch.set_num_threads(1)
    lines = []
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        for model in models(names or MODELS, weights, scratch):
            for target in targets or tuple(ROWS):
                bench = Bench(model, target, scratch / model.name / target, open_checkpoint(model.checkpoint))
                for row in ROWS[target]:
                    lines.append((model.name, target, row.name, *bench.figures(row)))
                    click.echo(" | ".join(lines[-1]), err=True)
    click.echo(table(HEADER, lines))


if __name__ == "__main__":
    main()
