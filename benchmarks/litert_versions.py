"""What each version of LiteRT computes right: file × version × (XNNPACK, GPU engine over software Vulkan).

    python benchmarks/litert_versions.py [--version V ...] [EXPORT ...]

A cell is ``XNNPACK / GPU``: the least SNR in dB of an output, "refused" where the engine does not compile the file,
"n on the CPU" where it leaves operations there, and "-" where the wheel has no GPU engine (before 2.1). The rows are
small graphs of the forms that public reports call wrong and of their neighbours, held against torch; then each
component of each TFLite EXPORT, on its first golden case.

pip installs each wheel of ai-edge-litert into a folder of its own (``$XDG_CACHE_HOME/md-export/litert``), and each
file runs in a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Final

import click
import torch
from ai_edge_litert.hardware_accelerator import HardwareAccelerator
from safetensors.numpy import load_file, save_file
from torch import Tensor, nn

from md_export.errors import MdExportError, one_line
from md_export.parity.golden.folder import read_golden
from md_export.parity.golden.surface import golden_inputs, golden_outputs
from md_export.parity.metrics import compare
from md_export.spec.artifact import artifact_path
from md_export.spec.manifest import read_manifest
from md_export.spec.scheme import QuantScheme
from md_export.spec.tensors import Arrays, TensorSpec
from md_export.targets.contract import LoweringJob
from md_export.targets.tflite.gpu.engine import cache_folder, run_on_gpu
from md_export.targets.tflite.gpu.residency import read_log
from md_export.targets.tflite.products import whole_products
from md_export.targets.tflite.quantize import quantize
from md_export.targets.tflite.run import load
from md_export.targets.tflite.target import TfliteModel
from side_by_side import table
from tflite_measure import naive

VERSIONS: Final = ("1.4.0", "2.0.3", "2.1.3", "2.1.5", "2.1.6", "2.3.0")
FLOAT: Final = QuantScheme("float32", "float32")
INT8: Final = QuantScheme("int8", "int8_dynamic")
HEADS: Final = 4
LENGTH: Final = 77
DEPTH: Final = 16
WIDTH: Final = HEADS * DEPTH
WHOLE: Final = "products lowered whole"


class Attention(nn.Module):
    """Attention on ``[1, L, C]`` with a causal mask of ``mask_heads`` heads (0: none), in batches of ``rank`` axes."""

    mask: Tensor

    def __init__(self, rank: int, mask_heads: int) -> None:
        super().__init__()
        self.project = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.rank, self.masked = rank, mask_heads > 0
        mask = torch.full((LENGTH, LENGTH), -1e4).triu(1).expand(max(mask_heads, 1), -1, -1).contiguous()
        self.register_buffer("mask", mask if rank == 3 else mask[None])

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (self.heads(project(x)) for project in list(self.project)[:3])
        scores = torch.matmul(q, k.transpose(-1, -2)) * DEPTH**-0.5
        weights = torch.softmax(scores + self.mask if self.masked else scores, dim=-1)
        out = torch.matmul(weights, v).reshape(HEADS, LENGTH, DEPTH).transpose(0, 1).reshape(1, LENGTH, WIDTH)
        made: Tensor = self.project[3](out)
        return made

    def heads(self, x: Tensor) -> Tensor:
        split = x.reshape(LENGTH, HEADS, DEPTH).transpose(0, 1)
        return split if self.rank == 3 else split[None]


class Residual(nn.Module):
    """``x + linear(x)`` of ``shape``."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = x + self.linear(x)
        return made


class ReadAgain(Residual):
    """The sum is an output and is read again (LiteRT#8599)."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        made = super().forward(x)
        return made, torch.tanh(made) * 0.5


class Padded(Residual):
    """Rows added by PAD (LiteRT#9272)."""

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = nn.functional.pad(super().forward(x), (0, 0, 3, 0))
        return made


class TwoRanks(Residual):
    """A product of ``[L, C]`` added to a tensor of a rank more (LiteRT#8975)."""

    def forward(self, x: Tensor) -> Tensor:
        flat: Tensor = self.linear(x)[0]
        return x + flat * torch.softmax(flat, dim=0)


def forms() -> Iterator[tuple[str, nn.Module, tuple[int, ...], QuantScheme]]:
    """Name, module, shape of its input, scheme."""
    # torch makes a product of rank 4 one of rank 3 between reshapes, of which the converter drops some.
    tokens = (1, LENGTH, WIDTH)
    for rank, heads, words in (
        (3, 1, "rank 3, mask of one head"),
        (3, 0, "rank 3, no mask"),
        (4, 1, "rank 4, mask of one head"),
        (4, HEADS, "rank 4, mask of all heads"),
        (4, 0, "rank 4, no mask"),
    ):
        yield f"attention, {words}", Attention(rank, heads), tokens, FLOAT
        if rank == 4:
            yield f"attention, {words}, {WHOLE}", Attention(rank, heads), tokens, FLOAT
    yield "sum of two ranks", TwoRanks(), tokens, FLOAT
    yield "output that is read again", ReadAgain(), tokens, FLOAT
    yield "PAD at rank 3", Padded(), tokens, FLOAT
    yield "PAD at rank 4", Padded(), (1, *tokens), FLOAT
    yield "x + FULLY_CONNECTED, rank 3, float32", Residual(), tokens, FLOAT
    yield "x + FULLY_CONNECTED, rank 3, int8 dynamic", Residual(), tokens, INT8


def write_forms(folder: Path) -> Iterator[str]:
    """Write ``NAME.tflite`` with inputs and torch's outputs for each form; yields the names."""
    for name, module, shape, scheme in forms():
        torch.manual_seed(0)
        module.eval().requires_grad_(False)
        x = torch.randn(shape)
        made = module(x)
        outputs = [value.numpy() for value in (made if isinstance(made, tuple) else [made])]
        specs = tuple(TensorSpec(f"out{place}", value.shape, "float32") for place, value in enumerate(outputs))
        given = {"x": x.numpy()}
        job = LoweringJob(name, module, (TensorSpec("x", shape, "float32"),), specs, given, scheme, (given,), folder)
        path = folder / f"{name}.tflite"
        with whole_products() if name.endswith(WHOLE) else nullcontext():
            quantize(TfliteModel(naive(job)), job).save(path)
        write_case(path, given, dict(zip((spec.name for spec in load(path).outputs), outputs, strict=True)))
        yield name


def link_components(export: Path, folder: Path) -> Iterator[str]:
    """As :func:`write_forms`, for the components of an export and the first call of its first golden case."""
    manifest, cases = read_manifest(export), read_golden(export / "golden").cases[:1]
    for entry in manifest.artifacts:
        name = f"{export.name}, {entry.component}"
        path = folder / f"{name}.tflite"
        path.symlink_to(artifact_path(export, entry).resolve())
        inputs, outputs = (of(manifest.recipe, entry, cases)[0] for of in (golden_inputs, golden_outputs))
        write_case(path, inputs, outputs)
        yield name


def write_case(path: Path, inputs: Arrays, outputs: Arrays) -> None:
    """Beside a file, what :func:`measure` reads."""
    save_file(dict(inputs), path.with_suffix(".inputs"))
    save_file(dict(outputs), path.with_suffix(".outputs"))


def least_snr(found: Arrays, wanted: Arrays) -> str:
    """Of all outputs; a file with one output may name it otherwise."""
    names = zip(found, wanted, strict=True) if len(wanted) == 1 else ((name, name) for name in wanted)
    return f"{min(compare(found[name], wanted[own]).snr_db for name, own in names):.1f}"


def measure(stem: Path) -> tuple[str, str]:
    """XNNPACK's and the engine's answer to a file, in this process and by its version of LiteRT."""
    from ai_edge_litert.compiled_model import CompiledModel

    path = stem.with_suffix(".tflite")
    inputs, wanted = load_file(stem.with_suffix(".inputs")), load_file(stem.with_suffix(".outputs"))
    try:
        runner = load(path)
        cpu = least_snr(runner.run(inputs), wanted)
    except MdExportError as error:
        return "fails", one_line(error)
    if not hasattr(HardwareAccelerator, "GPU"):
        return cpu, "-"
    if not hasattr(CompiledModel, "is_fully_accelerated"):
        # 2.1.3: the log tells what is left to the CPU, and the interpreter what an output is.
        details = {spec.name: {"shape": spec.shape, "dtype": spec.dtype} for spec in runner.outputs}
        CompiledModel.is_fully_accelerated = lambda _: True
        CompiledModel.get_output_tensor_details = lambda *_: details
    try:
        (found,) = run_on_gpu(path, [inputs]).outputs
    except MdExportError as error:
        click.echo(str(error), err=True)
        return cpu, "refused"
    return cpu, least_snr(found, wanted)


def answer(stem: Path, version: str) -> str:
    """The cell of a file and a version."""
    with_wheel = os.pathsep.join((str(wheel(version)), *filter(None, (os.environ.get("PYTHONPATH"),))))
    ended = subprocess.run(
        [sys.executable, __file__, "--one", str(stem)],
        env={**os.environ, "PYTHONPATH": with_wheel},
        capture_output=True,
        text=True,
        check=False,
    )
    if ended.returncode:
        return f"process ended with {ended.returncode}"
    cpu, gpu = json.loads(ended.stdout.splitlines()[-1])
    left = read_log(ended.stderr).on_cpu
    return f"{cpu} / {gpu}" + (f" ({left} on the CPU)" if left else "")


def wheel(version: str) -> Path:
    """The folder of a version's wheel, installed by pip where it is not there yet."""
    folder = cache_folder().parent / "litert" / version
    if not folder.is_dir():
        pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps")
        subprocess.run([*pip, "--target", str(folder), f"ai-edge-litert=={version}"], check=True)
    return folder


@click.command()
@click.option("--version", "versions", multiple=True, default=VERSIONS, show_default=True)
@click.option("--one", type=click.Path(path_type=Path), hidden=True)
@click.argument("exports", nargs=-1, type=click.Path(exists=True, file_okay=False, path_type=Path))
def main(versions: tuple[str, ...], one: Path | None, exports: tuple[Path, ...]) -> None:
    """Print the table."""
    if one:
        click.echo(json.dumps(measure(one)))
        return
    with tempfile.TemporaryDirectory(prefix="md-export-") as scratch:
        folder = Path(scratch)
        names = [*write_forms(folder), *(name for export in exports for name in link_components(export, folder))]
        rows = [(name, *(answer(folder / name, version) for version in versions)) for name in names]
    click.echo(table(("file", *versions), rows))


if __name__ == "__main__":
    main()
