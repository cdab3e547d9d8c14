"""Our recipes beside the peers' own algorithms: same weights, same float graph, same calibration inputs, one table.

    python benchmarks/peers_quantization.py [--checkpoint FOLDER]... [--tiny FOLDER] [TARGET ...]

Models: the nano checkpoint, or those that ``--checkpoint`` names; with ``--tiny``, also FLUX.2's trained tiny decoder
(see taef2.py), which decodes what its own encoder makes of the photographs of scikit-learn. Figures are the worst of
all golden cases: SNR of each component, PSNR of the picture (of the tiny decoder's output, where there is no chain).

A peer's method gets the float artifact that our recipe starts from. A row "ours: …, with …" is our recipe with one part
of a peer's in it, hence the same bytes. Calibration cases are the same for all, and none of them judges.
"""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
import torch
from torch import nn

from md_export.checkpoint import Checkpoint, open_checkpoint
from md_export.engine.artifact import BuildStep, build_component
from md_export.engine.steps import manifest_of
from md_export.errors import MdExportError
from md_export.models.values import LAST, PICTURE
from md_export.models.walk import Tensors
from md_export.parity.golden.folder import GoldenSource, write_golden
from md_export.parity.golden.prepare import calibration_cases, golden_source, prepare_golden
from md_export.parity.golden.surface import calibration_inputs
from md_export.parity.judge import judge
from md_export.spec.artifact import GOLDEN_FOLDER, ArtifactEntry, bytes_of_artifact
from md_export.spec.manifest import write_manifest
from md_export.spec.recipe import Recipe
from md_export.spec.recipe_file import load_recipe
from md_export.spec.shipped_files import builtin_recipe, nano_checkpoint
from md_export.spec.tensors import Array
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
from quantization import GPTQ, Row, other, recipe_of
from side_by_side import table
from taef2 import tiny_checkpoint

HEADER: Final = ("model", "target", "method", "bytes", "text encoder dB", "UNet dB", "decoder dB", "picture dB")
COMPONENTS: Final = ("text_encoder", "unet", "vae_decoder")
SIDE: Final = 128
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
FLOAT: Final = {"coreml": "fp16", "tflite": "fp32", "onnx": "fp32", "coreai": "fp32"}
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
        Theirs("Apple's mixed bits", mixed_palettes(), "palette4"),
        Theirs("Apple's mixed bits, groups of 16", mixed_palettes(16), "palette4"),
    ),
    "coreai": (Ours(Row("int8")), Ours(Row("palette4")), Ours(Row("w8a8"))),
}


@dataclass(frozen=True)
class Model:
    """A checkpoint, the components that are compared, and the cases that judge and calibrate."""

    name: str
    checkpoint: Path
    components: tuple[str, ...]
    golden: Path
    calibration: Path


def whole(name: str, folder: Path, scratch: Path) -> Model:
    """All components of a checkpoint, judged by its golden cases and calibrated on other noise."""
    recipe, checkpoint = load_recipe(builtin_recipe("onnx", "int8")), open_checkpoint(folder)
    golden, calibration = scratch / "golden", scratch / "calibration"
    prepare_golden(recipe, checkpoint, None, golden, lambda _: None)
    with calibration_cases(recipe, checkpoint, golden, scratch, lambda _: None) as made:
        assert made is not None
        shutil.copytree(made, calibration)
    return Model(name, folder, COMPONENTS, golden, calibration)


@dataclass(frozen=True)
class Photographs(GoldenSource):
    """Golden cases whose latents an encoder made of photographs; the UNet of such a case is random, and not judged."""

    decoder: nn.Module = dataclasses.field(default_factory=nn.Identity)
    crops: tuple[Array, ...] = ()

    def generate(self, prompt: str, seed: int) -> Tensors:
        values, family = super().generate(prompt, seed), self.pipeline.family
        values[PICTURE.key] = self.crops[seed]
        (values[family.encoded.key],) = self.pipeline.encoded([self.crops[seed]])
        values[LAST.key] = values[family.encoded.key]
        with torch.no_grad():
            values[family.image.key] = self.decoder(torch.from_numpy(values[LAST.key])).numpy()
        return values


def tiny(weights: Path, scratch: Path) -> Model:
    """The trained decoder: left halves of photographs calibrate, right halves judge."""
    folder = tiny_checkpoint(weights, SIDE, scratch)
    checkpoint = open_checkpoint(folder)
    plain = golden_source(checkpoint, encodes=True)
    fields = {field.name: getattr(plain, field.name) for field in dataclasses.fields(plain)}
    halves = crops()
    for name, half in halves.items():
        (scratch / name).mkdir()
        source = Photographs(**fields, decoder=checkpoint.module("vae_decoder"), crops=half)
        write_golden(source, [("a", seed) for seed in range(len(half))], scratch / name)
    return Model("taef2 decoder", folder, ("vae_decoder",), scratch / "golden", scratch / "calibration")


def crops() -> dict[str, tuple[Array, ...]]:
    """Squares ``[1, 3, SIDE, SIDE]`` in [-1, 1] of two photographs that scikit-learn ships."""
    from sklearn.datasets import load_sample_images

    found: dict[str, list[Array]] = {"calibration": [], "golden": []}
    for picture in load_sample_images().images:
        height, width, _ = picture.shape
        for top in range(0, height - SIDE + 1, SIDE):
            for left in range(0, width - SIDE + 1, SIDE):
                square = picture[top : top + SIDE, left : left + SIDE].transpose(2, 0, 1)[None] / 127.5 - 1
                half = "calibration" if 2 * left + SIDE <= width else "golden"
                found[half].append(np.ascontiguousarray(square, dtype=np.float32))
    return {half: tuple(squares) for half, squares in found.items()}


@dataclass
class Bench:
    """One model in one target: artifacts by row, each with the figures of its judgement."""

    model: Model
    target: str
    folder: Path
    checkpoint: Checkpoint
    entries: dict[str, tuple[ArtifactEntry, ...]] = dataclasses.field(default_factory=dict)

    def recipe(self, row: Row) -> Recipe:
        """Return the recipe for the model's components, its globs for first and last layers named."""
        recipe = recipe_of(self.target, row).narrowed(self.model.components)
        schemes = dict(recipe.schemes)
        for name in recipe.components:
            layers = self.checkpoint.module(name).named_modules()
            paths = [path for path, layer in layers if isinstance(layer, nn.Conv2d | nn.Linear)]
            schemes[name] = schemes[name].for_layers(paths)
        return dataclasses.replace(recipe, schemes=schemes)

    def built(self, name: str, recipe: Recipe, context: Context = nullcontext) -> Path:
        """Build all artifacts of a recipe, once."""
        out = self.folder / name.replace(" ", "_")
        if name not in self.entries:
            out.mkdir(parents=True)
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
    return run_batches(Job(target, path, batches))


def models(folders: tuple[Path, ...], tiny_weights: Path | None, scratch: Path) -> Iterator[Model]:
    for folder in folders:
        place = scratch / folder.name
        place.mkdir()
        yield whole(folder.name, folder, place)
    if tiny_weights is not None:
        place = scratch / "tiny"
        place.mkdir()
        yield tiny(tiny_weights, place)


_FOLDER: Final = click.Path(path_type=Path, exists=True, file_okay=False)


@click.command()
@click.option("--checkpoint", "folders", multiple=True, type=_FOLDER, help="Checkpoint to compare on (default: nano).")
@click.option("--tiny", "tiny_weights", type=_FOLDER, help="Folder with taef2_*.safetensors; alone: without nano.")
@click.argument("targets", nargs=-1, type=click.Choice(tuple(ROWS)))
def main(folders: tuple[Path, ...], tiny_weights: Path | None, targets: tuple[str, ...]) -> None:
    """Print the table."""
    torch.set_num_threads(1)
    lines = []
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        chosen = folders or (() if tiny_weights else (nano_checkpoint(),))
        for model in models(chosen, tiny_weights, scratch):
            for target in targets or tuple(ROWS):
                bench = Bench(model, target, scratch / f"{model.name} {target}", open_checkpoint(model.checkpoint))
                for row in ROWS[target]:
                    lines.append((model.name, target, row.name, *bench.figures(row)))
                    click.echo(" | ".join(lines[-1]), err=True)
    click.echo(table(HEADER, lines))


if __name__ == "__main__":
    main()
