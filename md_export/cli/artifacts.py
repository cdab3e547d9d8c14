"""Commands on artifacts and exports: run, verify, lint, generate."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click

from md_export.cli.npu import check_npu, npu_options, verify_npu
from md_export.cli.runtimes import check_runtime, library_option, runtime_option, verify_in_library
from md_export.cli.selftest import check_self_test, checkpoint_option, run_self_test, self_test_option
from md_export.cli.shared import (
    PATH,
    checkpoint_or_nano,
    guidance_option,
    json_option,
    lora_option,
    progress,
    say,
    show,
    size_option,
    steps_option,
)
from md_export.errors import UsageError
from md_export.names import COMPONENT_NAMES

# LiteRT's engine for the GPU, in software: minutes for a full-size graph.
GPU_LIMIT_S: Final = 600.0
gpu_option = click.option("--gpu", is_flag=True, help="For TFLite: on LiteRT's GPU engine, by Vulkan in software.")
limit_option = click.option(
    "--limit", "limit_s", type=float, help=f"With --gpu or --npu: seconds for one artifact.  [default: {GPU_LIMIT_S:g}]"
)


@click.command()
@click.argument("artifact", type=PATH)
@click.option("--inputs", type=PATH, required=True, help="An .npz file with one array per input.")
@click.option("-o", "--output", type=PATH, required=True, help="The .npz file to write.")
@runtime_option
@gpu_option
@limit_option
def run(artifact: Path, inputs: Path, output: Path, runtime: str | None, gpu: bool, limit_s: float | None) -> None:
    """Execute any artifact in its own runtime; a Core ML package runs on Linux too."""
    from md_export.npz import read_npz, write_npz
    from md_export.targets import target_of
    from md_export.workers import execute

    target = target_of(artifact)
    check_runtime(runtime, gpu, target.name)
    limit_s = gpu_limit(gpu, limit_s, target.name)
    if gpu:
        target.require()
        from md_export.parity.gpu.verify import run_on_gpu

        outputs, note = run_on_gpu(artifact, read_npz(inputs), limit_s)
        click.echo(note, err=True)
    else:
        (outputs,) = execute(target.name, artifact, [read_npz(inputs)], runtime).outputs
    write_npz(output, outputs)
    click.echo(
        f"{output}: " + ", ".join(f"{name} {list(value.shape)} {value.dtype}" for name, value in outputs.items())
    )


@click.command()
@click.argument("out", type=PATH)
@click.option("--golden", "golden_dir", type=PATH, help="Golden cases; by default those that lie in OUT.")
@gpu_option
@npu_options
@limit_option
@library_option
@self_test_option
@checkpoint_option
@json_option
def verify(
    out: Path,
    golden_dir: Path | None,
    gpu: bool,
    npu: bool,
    soc: str | None,
    cases: int | None,
    max_memory: int | None,
    limit_s: float | None,
    library: str | None,
    self_test: bool,
    checkpoint: Path | None,
    json_file: Path | None,
) -> None:
    """Run every artifact of an export on every golden case, and the chain to the picture; exit 3 if one falls short.

    With --gpu: is all of a TFLite graph on the GPU, and right there? Each op that is not is named with its module.

    With --npu: is all of an ONNX graph on a phone's NPU, and right there? Each operation that is not is named.

    With --runtime: is a TFLite file right in an older library, and without XNNPACK? Each op that is not is named.

    With --self-test: would all this notice? Each way to damage an export is tried, and must be noticed.
    """
    from md_export.artifact import JOIN, read_manifest
    from md_export.cli.join import verify_joined
    from md_export.errors import ParityError
    from md_export.parity.verify import verify as judge
    from md_export.report.tables import parity_table

    if (out / JOIN).is_file():
        flags = {"--golden": golden_dir, "--gpu": gpu, "--runtime": library, "--self-test": self_test}
        verify_joined(out, flags, json_file)
        return
    check_npu(
        npu,
        {"--soc": soc, "--cases": cases, "--max-memory": max_memory},
        {"--gpu": gpu, "--runtime": library, "--self-test": self_test},
    )
    if npu:
        verify_npu(out, golden_dir, soc, cases, limit_s, max_memory, json_file)
        return
    target = read_manifest(out).target
    limit_s = gpu_limit(gpu, limit_s, target)
    check_runtime(library, gpu, target)
    check_self_test(self_test, checkpoint, {"--golden": golden_dir, "--gpu": gpu, "--runtime": library})
    if self_test:
        run_self_test(out, checkpoint, json_file)
        return
    if gpu:
        _verify_on_gpu(out, golden_dir, limit_s, json_file)
        return
    if library:
        verify_in_library(out, golden_dir, library, json_file)
        return
    with progress(len(COMPONENT_NAMES)) as report:
        result = judge(out, golden_dir, report)
    show(json_file, result, parity_table(result))
    if not result.passed:
        raise ParityError("; ".join(result.failures))
    say(json_file, f"{out}: verified")


def gpu_limit(gpu: bool, limit_s: float | None, target: str) -> float:
    """Seconds for one artifact; UsageError where the flags make no sense for the target."""
    if limit_s is not None and not gpu:
        raise UsageError("--limit is for --gpu and --npu; leave it out")
    if gpu and target != "tflite":
        raise UsageError(f"--gpu is LiteRT's engine, which runs TFLite files, not {target}; leave it out")
    return GPU_LIMIT_S if limit_s is None else limit_s


def _verify_on_gpu(out: Path, golden_dir: Path | None, limit_s: float, json_file: Path | None) -> None:
    from md_export.errors import ParityError
    from md_export.targets import TARGETS

    TARGETS["tflite"].require()
    from md_export.parity.gpu.verify import verify_on_gpu
    from md_export.report.gpu import gpu_tables

    with progress(len(COMPONENT_NAMES)) as report:
        result = verify_on_gpu(out, golden_dir, limit_s, report)
    show(json_file, result, *gpu_tables(result))
    if result.failures:
        raise ParityError("; ".join(result.failures))
    say(json_file, f"{out}: all on the GPU, and right there")


@click.command()
@click.argument("path", type=PATH, required=False)
@click.option("--os", "system", help="For Core ML: whose rules, iOS18 for instance. Default: the oldest that loads it.")
@click.option("--inputs", type=PATH, help="An .npz file for one package: what float16 does to its activations.")
@click.option("--rules", "show_rules", is_flag=True, help="Print the rules for Core ML and their sources.")
@json_option
def lint(path: Path | None, system: str | None, inputs: Path | None, show_rules: bool, json_file: Path | None) -> None:
    """Advise on a Core ML package or a TFLite file, or on each of an export with its golden inputs: what the Neural
    Engine or LiteRT's GPU engine may refuse, and what float16 may do to its values. Advice is no failure: exit 0."""
    from md_export.report.lint import lint_tables, rule_table, source_lines

    if show_rules == (path is not None):
        raise UsageError("name a package or an export, or ask for --rules")
    if path is None:
        from md_export.targets.coreml.rules import load_rules

        file = load_rules()
        show(
            json_file, file, rule_table(file.rule, file.hazard, file.version), *source_lines((*file.rule, *file.hazard))
        )
        return
    from md_export.linting import lint as advise

    with progress(len(COMPONENT_NAMES)) as tell:
        reports = advise(path, system, inputs, tell)
    show(json_file, reports, *lint_tables(reports))


@click.command()
@click.argument("prompt")
@click.option("--artifacts", type=PATH, help="An export: the picture is made by its artifacts.")
@click.option("--checkpoint", type=PATH, help="A checkpoint: the picture is made by torch. Default: the nano one.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--init-image", type=PATH, help="A picture, of which a part is kept; needs --mask.")
@click.option("--mask", type=PATH, help="Of the same size: what is white here is painted anew.")
@click.option("--condition", type=PATH, help="For a model with an adapter: the picture that steers it, edges say.")
@size_option
@steps_option
@guidance_option
@lora_option
@click.option("-o", "--output", type=PATH, required=True, help="The .png file to write.")
def generate(
    prompt: str,
    artifacts: Path | None,
    checkpoint: Path | None,
    seed: int,
    init_image: Path | None,
    mask: Path | None,
    condition: Path | None,
    size: int | None,
    steps: int | None,
    guidance: float | None,
    loras: tuple[str, ...],
    output: Path,
) -> None:
    """Make a picture from PROMPT in one UNet step, or in many, by an export's artifacts or by torch.

    With --init-image and --mask: paint a part of a picture anew. That needs the VAE encoder, and keeps the rest best
    where the UNet was trained for it.
    """
    from md_export.checkpoint.lora.source import adapted
    from md_export.generation import (
        condition_shape_of_artifacts,
        condition_shape_of_checkpoint,
        pictures_of_artifacts,
        pictures_of_checkpoint,
        side_of_artifacts,
        side_of_checkpoint,
        write_png,
    )
    from md_export.sampler import sampler_of

    if artifacts and checkpoint:
        raise UsageError("name --artifacts or --checkpoint, not both")
    if artifacts and size:
        raise UsageError("artifacts are of one size; leave out --size, or export with it")
    sampler = sampler_of(steps, guidance)
    if artifacts and sampler:
        raise UsageError("artifacts are for the steps that they were exported for; leave out --steps and --guidance")
    if artifacts and loras:
        raise UsageError("artifacts hold the LoRAs that they were exported with; leave out --lora")
    if artifacts:
        given = _given(init_image, mask, lambda: side_of_artifacts(artifacts))
        steered = _condition(condition, lambda: condition_shape_of_artifacts(artifacts))
        (picture,) = pictures_of_artifacts(artifacts, [(prompt, seed)], given, steered)
    else:
        with adapted(checkpoint_or_nano(checkpoint), loras) as folder:
            given = _given(init_image, mask, lambda: side_of_checkpoint(folder, size))
            steered = _condition(condition, lambda: condition_shape_of_checkpoint(folder, size))
            (picture,) = pictures_of_checkpoint(folder, [(prompt, seed)], size, sampler, given, steered)
    write_png(output, picture)
    click.echo(f"{output}: {picture.shape[1]}×{picture.shape[0]}")


def _condition(file: Path | None, shape: Callable[[], tuple[int, ...]]) -> list[Any] | None:
    """The picture that an adapter takes; None where none was given."""
    if file is None:
        return None
    from md_export.pictures import read_condition

    return [read_condition(file, shape())]


def _given(init_image: Path | None, mask: Path | None, side: Callable[[], int]) -> list[Any] | None:
    """The picture to paint in, a :class:`md_export.inpainting.Given`; None where none was named."""
    if init_image is None and mask is None:
        return None
    if mask is None:
        raise UsageError(
            "--init-image without --mask would start from a noised picture at a later timestep, and a one-step model "
            "knows the last one only; give a --mask of what shall be anew, all white for everything"
        )
    if init_image is None:
        raise UsageError("--mask says what of a picture is painted anew; give the picture with --init-image")
    from md_export.pictures import read_given

    return [read_given(init_image, mask, side())]
