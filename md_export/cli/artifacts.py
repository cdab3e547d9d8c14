"""Commands that run artifacts and verify exports in any runtime: run, verify."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from md_export.cli import options, shared
from md_export.cli.options import LIMIT_S
from md_export.cli.paths import ARTIFACT, CHECKPOINT, EXISTING, EXPORT_OR_JOINED, FILE
from md_export.errors import UsageError
from md_export.spec.names import COMPONENT_NAMES, SOCS

if TYPE_CHECKING:
    from md_export.parity.pin import Pin


def _check_alone(
    self_test: bool, golden_dir: Path | None, own: Mapping[str, object], engines: Mapping[str, object]
) -> None:
    """Raise UsageError for options that contradict each other; ``own`` are options of the target's own runtime."""
    here, elsewhere = ([name for name, value in given.items() if value] for given in (own, engines))
    beside = [*(["--golden"] if golden_dir else []), *elsewhere, *(name for name in here if name != "--checkpoint")]
    if self_test and beside:
        raise UsageError(f"--self-test verifies damaged copies of OUT in one way only; leave out {', '.join(beside)}")
    if here and elsewhere:
        raise UsageError(f"{here[0]} needs the target's own runtime; leave out {', '.join(elsewhere)}")


def _verify_here(
    out: Path,
    golden_dir: Path | None,
    checkpoint: Path | None,
    loras: tuple[str, ...],
    pin: Pin | None,
    json_file: Path | None,
) -> None:
    """Verify in the target's own runtime, and against the checkpoint and the pin if they are given."""
    from md_export.engine.against_checkpoint import verify as verify_against
    from md_export.parity.judge import verify as judge
    from md_export.parity.pin import pin_findings
    from md_export.report.verdicts import parity_table

    if loras and checkpoint is None:
        raise UsageError("--lora needs the checkpoint that it was added to; name it with --checkpoint")
    with shared.progress(len(COMPONENT_NAMES)) as report:
        if checkpoint is None:
            result = judge(out, golden_dir, report)
        else:
            result = verify_against(out, checkpoint, golden_dir, report, loras)
    result = result.with_findings(pin_findings(out, pin)) if pin else result
    known = f"derived again from {checkpoint}" if checkpoint else "not checked against a checkpoint (--checkpoint)"
    shared.note(f"golden cases, metadata and files: {known}")
    shared.conclude(json_file, result, result.failures, [parity_table(result)], f"{out}: verified")


def _run_self_test(out: Path, checkpoint: Path | None, loras: tuple[str, ...], json_file: Path | None) -> None:
    """Print the self-test's table; raises ParityError if a mutation was not noticed, or only by accident."""
    from md_export.engine.selftest import self_test
    from md_export.report.diagnoses import self_test_table
    from md_export.spec.shipped_files import nano_checkpoint

    with shared.progress(1) as tell:
        result = self_test(out, checkpoint or nano_checkpoint(), tell, loras)
    shared.conclude(
        json_file, result, result.failures, [self_test_table(result)], f"{out}: the gate noticed everything"
    )


# Repeated here because the targets' tables are slow to import; a test compares the two.
LIBRARIES: Final = ("litert", "tensorflow")
RUNTIMES: Final[Mapping[str, tuple[str, ...]]] = {
    "coreml": ("mil", "coreml"),
    "tflite": tuple(f"{library}{kernels}" for library in LIBRARIES for kernels in ("", "-builtin", "-reference")),
}


def _check_runtime(runtime: str | None, gpu: bool, target: str) -> None:
    """Raise UsageError if the target has no such runtime, or if ``--gpu`` is given, too."""
    known = RUNTIMES.get(target, ())
    if runtime is not None and runtime not in known:
        raise UsageError(
            f"--runtime {runtime} does not run {target}; " + (f"choose {', '.join(known)}" if known else "leave it out")
        )
    if runtime is not None and gpu:
        raise UsageError("--gpu already chooses a runtime; leave out --runtime")


def _verify_in_library(out: Path, golden_dir: Path | None, library: str, json_file: Path | None) -> None:
    from md_export.targets import TARGETS

    TARGETS["tflite"].require()
    from md_export.parity.runtimes import verify_in_runtimes
    from md_export.parity.verdict import failures_of
    from md_export.report.verdicts import runtimes_tables

    with shared.progress(len(COMPONENT_NAMES) * len(RUNTIMES["tflite"]) // len(LIBRARIES)) as report:
        result = verify_in_runtimes(out, golden_dir, library, report)
    passed = f"{out}: right in every set of kernels of {library}"
    shared.conclude(json_file, result, failures_of(result), runtimes_tables(result), passed)


def check_npu(npu: bool, own: Mapping[str, object], others: Mapping[str, object]) -> None:
    """Raise UsageError if flags contradict each other; ``own`` require ``--npu``, ``others`` exclude it."""
    given = [name for name, value in own.items() if value is not None]
    if given and not npu:
        raise UsageError(f"{', '.join(given)} needs --npu; add it, or leave out {', '.join(given)}")
    against = [name for name, value in others.items() if value]
    if npu and against:
        raise UsageError(f"--npu already chooses a runtime; leave out {', '.join(against)}")


def verify_npu(
    out: Path,
    golden_dir: Path | None,
    soc: str | None,
    cases: int | None,
    limit_s: float | None,
    max_memory: int | None,
    blocks: bool,
    json_file: Path | None,
) -> None:
    """Run ``verify --npu``."""
    from md_export.parity.npu.verify import verify_on_npu
    from md_export.parity.verdict import failures_of
    from md_export.report.verdicts import npu_tables
    from md_export.targets.onnx.npu.process import NpuLimits

    limits = NpuLimits(LIMIT_S if limit_s is None else limit_s, **({"most_bytes": max_memory} if max_memory else {}))
    with shared.progress(len(COMPONENT_NAMES)) as report:
        found = verify_on_npu(out, golden_dir, soc, cases, limits, report, blocks)
    results = tuple(item.result for item in found)
    where = " block by block" if any(item.engine.blocks for one in results for item in one.components) else ""
    passed = f"{out}: all on the NPU, and right there{where}, as its simulator computes"
    shared.conclude(json_file, results, failures_of(results), npu_tables(results), passed)


def verify_joined(out: Path, flags: Mapping[str, object], json_file: Path | None) -> None:
    """Verify a joined export; ``flags`` are the options that joined exports do not support, by name."""
    from md_export.engine.join import verify_functions
    from md_export.report.verdicts import parity_table

    if given := [name for name, value in flags.items() if value]:
        raise UsageError(
            f"{given[0]} does not work on a joined export; take one out first: md-export split {out} FUNCTION -o DIR"
        )
    with shared.progress(8) as report:
        results = verify_functions(out, report)
    failures = [f"{name}: {fault}" for name, result in results.items() for fault in result.failures]
    tables = map(parity_table, results.values())
    shared.conclude(json_file, results, failures, tables, f"{out}: {', '.join(results)} verified")


@click.command()
@click.argument("artifact", type=ARTIFACT)
@click.option("--inputs", type=EXISTING, required=True, help="Read inputs from this .npz file, one array per input.")
@click.option("-o", "--output", type=FILE, required=True, help="Write outputs to this .npz file.")
@click.option(
    "--runtime",
    type=click.Choice([name for names in RUNTIMES.values() for name in names]),
    help="Choose mil (ours) or coreml (Apple's, on a Mac) for a Core ML package, or a TFLite library and its kernels.",
)
@options.gpu_option
@options.limit_option
def run(artifact: Path, inputs: Path, output: Path, runtime: str | None, gpu: bool, limit_s: float | None) -> None:
    """Run one artifact on inputs from a file.

    Example: md-export run ios/unet.mlpackage --inputs x.npz -o y.npz

    Each kind of artifact runs in its own runtime; a Core ML package runs on Linux, too.
    """
    from md_export.spec.tensors import read_npz, write_npz
    from md_export.targets import target_of
    from md_export.targets.execution import execute

    target = target_of(artifact)
    _check_runtime(runtime, gpu, target.name)
    limit_s = gpu_limit(gpu, limit_s, target.name)
    if gpu:
        target.require()
        from md_export.parity.gpu import run_on_gpu

        outputs, note = run_on_gpu(artifact, read_npz(inputs), limit_s)
        click.echo(note, err=True)
    else:
        (outputs,) = execute(target.name, artifact, [read_npz(inputs)], runtime).outputs
    write_npz(output, outputs)
    made = ", ".join(f"{name} {list(value.shape)} {value.dtype}" for name, value in outputs.items())
    shared.say(None, f"{output}: {made}")


@click.command()
@click.argument("out", type=EXPORT_OR_JOINED)
@options.golden_option
@options.gpu_option
@click.option("--npu", is_flag=True, help="Use the simulator of Qualcomm's Hexagon NPU (ONNX).")
@click.option(
    "--soc", type=click.Choice(tuple(SOCS)), help="With --npu: simulate this Snapdragon chip.  [default: the recipe's]"
)
@click.option(
    "--cases", type=click.IntRange(min=1), help="With --npu: run only this many golden cases.  [default: all]"
)
@click.option("--blocks", is_flag=True, help="With --npu: run block by block even if the whole graph would run.")
@click.option(
    "--max-memory",
    type=options.size,
    help="With --npu: limit the memory of each process: 8G, 500M.  [default: 9/10 of the machine's]",
)
@options.limit_option
@click.option(
    "--runtime",
    "library",
    type=click.Choice(LIBRARIES),
    help="Run TFLite files in all kernels of this library and compare with LiteRT and XNNPACK.",
)
@click.option("--self-test", is_flag=True, help="Check that verify notices every known damage, on copies of OUT.")
@click.option(
    "--checkpoint",
    type=CHECKPOINT,
    help="Derive golden cases, constants and files again from this checkpoint of OUT.  "
    "[default: not checked; with --self-test, the nano checkpoint]",
)
@options.used_lora_option
@options.pin_option
@options.allowed_signers_option
@options.json_option
def verify(
    out: Path,
    golden_dir: Path | None,
    gpu: bool,
    npu: bool,
    soc: str | None,
    cases: int | None,
    max_memory: int | None,
    blocks: bool,
    limit_s: float | None,
    library: str | None,
    self_test: bool,
    checkpoint: Path | None,
    loras: tuple[str, ...],
    pin_file: Path | None,
    allowed_signers: Path | None,
    json_file: Path | None,
) -> None:
    """Run an export on its golden cases and judge it by its recipe.

    Example: md-export verify ios --json verdict.json

    Every artifact runs on every golden case, then the chain from the prompt to the picture. Exit 3 if a figure misses a
    threshold of the recipe.

    --gpu, --npu and --runtime check that the whole graph runs on LiteRT's GPU engine, on a phone's NPU or in another
    TensorFlow library, and computes the same there; operations that do not are printed with their modules.
    """
    from md_export.spec.given import JOIN
    from md_export.spec.manifest import read_manifest

    engines = {"--gpu": gpu, "--runtime": library}
    own = {"--checkpoint": checkpoint, "--pin": pin_file, "--allowed-signers": allowed_signers}
    if (out / JOIN).is_file():
        flags = {"--golden": golden_dir, **engines, "--self-test": self_test, **own}
        verify_joined(out, flags, json_file)
        return
    check_npu(
        npu,
        {"--soc": soc, "--cases": cases, "--max-memory": max_memory, "--blocks": blocks or None},
        {**engines, "--self-test": self_test, **own},
    )
    if npu:
        verify_npu(out, golden_dir, soc, cases, limit_s, max_memory, blocks, json_file)
        return
    target = read_manifest(out).target
    limit_s = gpu_limit(gpu, limit_s, target)
    _check_runtime(library, gpu, target)
    _check_alone(self_test, golden_dir, own, engines)
    if self_test:
        _run_self_test(out, checkpoint, loras, json_file)
    elif gpu:
        _verify_on_gpu(out, golden_dir, limit_s, json_file)
    elif library:
        _verify_in_library(out, golden_dir, library, json_file)
    else:
        _verify_here(out, golden_dir, checkpoint, loras, shared.pinned(pin_file, allowed_signers), json_file)


def gpu_limit(gpu: bool, limit_s: float | None, target: str) -> float:
    """Return the time limit per artifact in seconds; raises UsageError if the flags do not suit the target."""
    if limit_s is not None and not gpu:
        raise UsageError("--limit needs --gpu or --npu; leave it out")
    if gpu and target != "tflite":
        raise UsageError(f"--gpu runs TFLite files (in LiteRT's GPU engine), not {target}; leave it out")
    return LIMIT_S if limit_s is None else limit_s


def _verify_on_gpu(out: Path, golden_dir: Path | None, limit_s: float, json_file: Path | None) -> None:
    from md_export.targets import TARGETS

    TARGETS["tflite"].require()
    from md_export.parity.gpu import verify_on_gpu
    from md_export.report.verdicts import gpu_tables

    with shared.progress(len(COMPONENT_NAMES)) as report:
        result = verify_on_gpu(out, golden_dir, limit_s, report)
    passed = f"{out}: all on the GPU, and right there: necessary for a phone, not sufficient"
    shared.conclude(json_file, result, result.failures, gpu_tables(result), passed)
