"""Commands that explain an export or a failure: attribute, crosscheck, estimate, doctor, lint."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from md_export.cli import options, shared
from md_export.cli.paths import ARTIFACT, EXISTING, EXPORT, FILE, PATH
from md_export.errors import MdExportError, UsageError
from md_export.spec.names import COMPONENT_NAMES


@click.command()
@click.argument("artifact", type=ARTIFACT)
@options.checkpoint_option
@click.option("--hops", "lower_again", is_flag=True, help="Also convert to float32, to check the lowering alone.")
@click.option(
    "--model-explorer",
    "node_data",
    metavar="FILE",
    type=FILE,
    help="Write node data for Google's Model Explorer, one file per figure: x.json becomes x-local_snr_db.json, ….",
)
@options.json_option
def attribute(
    artifact: Path, checkpoint: Path | None, lower_again: bool, node_data: Path | None, json_file: Path | None
) -> None:
    """Find the module and stage where accuracy drops.

    Example: md-export attribute ios/unet.mlpackage --checkpoint path/to/it

    Compares ARTIFACT, a file of an export, with torch module by module, on the golden case with the lowest SNR. Prints
    the stage and the first module where accuracy drops, the ten worst modules, and what to change in the recipe. Advice
    does not fail: exit 0.
    """
    from md_export.diagnose.attribution.attribute import attribute as follow
    from md_export.report.diagnoses import attribution_tables
    from md_export.report.model_explorer import write_node_data

    if node_data and artifact.suffix not in (".tflite", ".onnx"):
        raise UsageError(
            f"Model Explorer shows .tflite and .onnx files, not {artifact.name}; leave out --model-explorer"
        )
    with shared.progress(2) as tell:
        found = follow(artifact, shared.checkpoint_or_nano(checkpoint), tell, lower_again)
    shared.show(json_file, found, *attribution_tables(found))
    if node_data:
        files = ",".join(map(str, write_node_data(found, node_data)))
        adapter = " --extensions=model_explorer_onnx" if artifact.suffix == ".onnx" else ""
        shared.say(json_file, f"model-explorer {artifact}{adapter} --node_data_paths={files}")


@click.command()
@click.argument("artifacts", type=ARTIFACT, nargs=-1)
@options.checkpoint_option
@click.option("--ops", is_flag=True, help="Compare single float16 operations of Core ML and Core AI instead.")
@options.json_option
def crosscheck(artifacts: tuple[Path, ...], checkpoint: Path | None, ops: bool, json_file: Path | None) -> None:
    """Compare two ARTIFACTS of one component in two runtimes.

    Example: md-export crosscheck ios/unet.mlpackage ios27/unet.aimodel

    Each runs in its own runtime on the same golden inputs. Prints the modules where one is less accurate than the other
    by more than rounding explains. Advice does not fail: exit 0.
    """
    from md_export.report.diagnoses import crosscheck_tables, operation_table

    if ops and (artifacts or checkpoint):
        raise UsageError("--ops needs no artifacts and no checkpoint; leave out ARTIFACTS and --checkpoint")
    if ops:
        from md_export.diagnose.crosscheck.operations import crosscheck_operations

        with shared.progress(1) as tell:
            operations = crosscheck_operations(tell)
        shared.show(json_file, operations, operation_table(operations))
        return
    if len(artifacts) != len(("A", "B")):
        raise UsageError("give two artifacts of one component, such as ios/unet.mlpackage ios27/unet.aimodel, or --ops")
    from md_export.diagnose.crosscheck.artifacts import crosscheck as compare

    first, second = artifacts
    with shared.progress(1) as tell:
        found = compare(first, second, shared.checkpoint_or_nano(checkpoint), tell)
    shared.show(json_file, found, *crosscheck_tables(found))


@click.command()
@click.argument("out", type=EXPORT)
@click.option(
    "--device", required=True, help="Estimate for this phone: iphone15pro, galaxy-s24; an unknown name lists all."
)
@options.json_option
def estimate(out: Path, device: str, json_file: Path | None) -> None:
    """Estimate how long each artifact takes on a phone.

    Example: md-export estimate ios --device iphone15pro

    The estimate is a roofline of the lowered graphs, fitted to published latencies. It is printed with the fit's error
    and the physical lower bound, and with changes ranked by the time that they save. Nothing runs; no phone is needed.
    """
    from md_export.diagnose.estimate.command import estimate as judge
    from md_export.report.estimate import estimate_tables

    with shared.progress(len(COMPONENT_NAMES)) as tell:
        found = judge(out, device, tell)
    shared.show(json_file, found, *estimate_tables(found))


@click.command()
@click.argument("recipe", type=PATH, required=False)
@options.checkpoint_option
@click.option(
    "--canary/--no-canary", default=True, show_default=True, help="Convert and run a small module on each target."
)
@options.json_option
def doctor(recipe: Path | None, checkpoint: Path | None, canary: bool, json_file: Path | None) -> None:
    """Check that this machine can export.

    Example: md-export doctor coreml-fp16

    Compares library versions with the supported ones, and free memory and disk with what RECIPE needs for the
    checkpoint; looks for the GPU driver, and converts a small module on each installed target. The text after the table
    is for bug reports. Exit 1 if something is broken.
    """
    from md_export.spec.recipe_file import load_recipe
    from md_export.spec.shipped_files import nano_checkpoint

    if checkpoint and not recipe:
        raise UsageError("--checkpoint needs a RECIPE to predict memory and disk for; name one, such as coreml-fp16")
    wanted = None if recipe is None else load_recipe(shared.recipe_named(recipe))

    from md_export.diagnose.doctor.examine import examine
    from md_export.report.tables import doctor_table, doctor_text

    with shared.progress(3) as report:
        found = examine(wanted, checkpoint or nano_checkpoint(), canary, report)
    text = doctor_text(found)
    if sys.stdout.isatty() and str(json_file) != "-":
        shared.show(json_file, found, doctor_table(found))
        shared.say(json_file, "\nFor a bug report:\n")
    else:
        shared.show(json_file, found)
    shared.say(json_file, text)
    if found.broken:
        names = ", ".join(item.what for item in found.broken)
        raise MdExportError(f"broken: {names}; the table above says what to do about each")


@click.command()
@click.argument("path", type=ARTIFACT, required=False)
@click.option("--os", "system", help="Apply the Core ML rules of this system, such as iOS18.  [default: the oldest]")
@click.option(
    "--inputs", type=EXISTING, help="Check float16 activations of one package on the inputs in this .npz file."
)
@click.option("--rules", "show_rules", is_flag=True, help="List the Core ML rules and their sources instead.")
@click.option("--faults", "show_faults", is_flag=True, help="List known faults of runtimes as Markdown instead.")
@options.json_option
def lint(
    path: Path | None,
    system: str | None,
    inputs: Path | None,
    show_rules: bool,
    show_faults: bool,
    json_file: Path | None,
) -> None:
    """List what an accelerator may refuse in an artifact.

    Example: md-export lint ios/unet.mlpackage --os iOS18

    PATH is a Core ML package, a Core AI asset, a TFLite file or an export. Lists operations that the Neural Engine or
    LiteRT's GPU engine may refuse, values that float16 may overflow or lose (on an export's golden cases), and runtime
    versions with a known fault that affects the artifact. Advice does not fail: exit 0.
    """
    from md_export.report.lint import fault_page, lint_tables, rule_table, source_lines

    if (path is not None) + show_rules + show_faults != 1:
        raise UsageError("give exactly one of PATH (an artifact or an export), --rules and --faults")
    if path is None:
        from md_export.targets.lint.rules import FAULT_TARGETS, faults_of, rules_of

        if show_faults:
            files = {target: faults_of(target) for target in FAULT_TARGETS}
            shared.show(json_file, files)
            shared.say(json_file, fault_page(files.values()))
            return
        file = rules_of("coreml")
        shared.show(
            json_file, file, rule_table(file.rule, file.hazard, file.version), *source_lines((*file.rule, *file.hazard))
        )
        return
    from md_export.diagnose.lint import lint as advise

    with shared.progress(len(COMPONENT_NAMES)) as tell:
        reports = advise(path, system, inputs, tell)
    shared.show(json_file, reports, *lint_tables(reports))
