"""Commands that explain an export: attribute, crosscheck, estimate."""

from __future__ import annotations

from pathlib import Path

import click

from md_export.cli.shared import PATH, checkpoint_or_nano, json_option, progress, show
from md_export.errors import UsageError
from md_export.spec.names import COMPONENT_NAMES


@click.command()
@click.argument("artifact", type=PATH)
@click.argument("checkpoint", type=PATH, required=False)
@click.option("--hops", "lower_again", is_flag=True, help="Also convert to float32 once more: is it the lowering?")
@json_option
def attribute(artifact: Path, checkpoint: Path | None, lower_again: bool, json_file: Path | None) -> None:
    """Follow ARTIFACT, a file of an export, module by module beside torch, in the golden case in which it is worst.

    Names the hop and the first module that diverge, the ten worst, and what to change in the recipe. CHECKPOINT is
    the one that the export was made from; by default the nano one. Advice is no failure: exit 0.
    """
    from md_export.diagnose.attribution.attribute import attribute as follow
    from md_export.report.diagnoses import attribution_tables

    with progress(2) as tell:
        found = follow(artifact, checkpoint_or_nano(checkpoint), tell, lower_again)
    show(json_file, found, *attribution_tables(found))


@click.command()
@click.argument("artifacts", type=PATH, nargs=-1)
@click.option("--checkpoint", type=PATH, help="That both were exported from.  [default: the nano one that ships]")
@click.option("--ops", is_flag=True, help="No artifacts: a corpus of operations in float16, Core ML and Core AI.")
@json_option
def crosscheck(artifacts: tuple[Path, ...], checkpoint: Path | None, ops: bool, json_file: Path | None) -> None:
    """Run two ARTIFACTS of one component, files of two exports, each in its own runtime on the same golden inputs.

    Names the modules that one computes worse than the other by more than rounding explains. Advice is no failure:
    exit 0.
    """
    if ops and (artifacts or checkpoint):
        raise UsageError("--ops makes artifacts of its own; leave out yours and --checkpoint")
    if not ops and len(artifacts) != len(("A", "B")):
        raise UsageError("name two artifacts of one component, such as ios/unet.mlpackage ios27/unet.aimodel, or --ops")
    if ops:
        _operations(json_file)
    else:
        _artifacts(artifacts, checkpoint, json_file)


def _artifacts(artifacts: tuple[Path, ...], checkpoint: Path | None, json_file: Path | None) -> None:
    from md_export.diagnose.crosscheck.artifacts import crosscheck as hold
    from md_export.report.diagnoses import crosscheck_tables

    first, second = artifacts
    with progress(1) as tell:
        found = hold(first, second, checkpoint_or_nano(checkpoint), tell)
    show(json_file, found, *crosscheck_tables(found))


def _operations(json_file: Path | None) -> None:
    from md_export.diagnose.crosscheck.operations import crosscheck_operations
    from md_export.report.diagnoses import operation_table

    with progress(1) as tell:
        found = crosscheck_operations(tell)
    show(json_file, found, operation_table(found))


@click.command()
@click.argument("out", type=PATH)
@click.option("--device", required=True, help="A phone: iphone15pro, galaxy-s24, …; any other name lists them all.")
@json_option
def estimate(out: Path, device: str, json_file: Path | None) -> None:
    """Estimate how long each artifact of an export might take on a phone, and rank what to change for speed.

    A roofline of the lowered graphs, fitted to latencies that others published; printed with the fit's error and
    beside the physical floor. No phone is asked, and nothing is run.
    """
    from md_export.diagnose.estimate.command import estimate as judge
    from md_export.report.estimate import estimate_tables

    with progress(len(COMPONENT_NAMES)) as tell:
        found = judge(out, device, tell)
    show(json_file, found, *estimate_tables(found))
