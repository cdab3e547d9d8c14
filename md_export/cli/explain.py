"""Commands that explain an export or a failure: attribute, crosscheck, estimate, doctor, lint."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from md_export.cli import shared
from md_export.cli.paths import ARTIFACT, CHECKPOINT, EXISTING, EXPORT, FILE, PATH
from md_export.errors import MdExportError, UsageError
from md_export.spec.names import COMPONENT_NAMES


@click.command()
@click.argument("artifact", type=ARTIFACT)
@click.argument("checkpoint", type=CHECKPOINT, required=False)
@click.option("--hops", "lower_again", is_flag=True, help="Convert to float32 again, to check the lowering.")
@click.option(
    "--model-explorer",
    "node_data",
    metavar="FILE",
    type=FILE,
    help="Write node data for Google's Model Explorer, one file per figure: FILE is x.json → x-local_snr_db.json, ….",
)
@shared.json_option
def attribute(
    artifact: Path, checkpoint: Path | None, lower_again: bool, node_data: Path | None, json_file: Path | None
) -> None:
    """Compare ARTIFACT, a file of an export, with torch module by module, on the golden case where it is worst.

    Names the stage and the first module where accuracy drops, the ten worst modules, and what to change in the recipe.
    CHECKPOINT is the one that the export was made from (default: the nano one). Advice is no failure: exit 0.
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
@click.option("--checkpoint", type=CHECKPOINT, help="Checkpoint of both artifacts.  [default: the nano one]")
@click.option("--ops", is_flag=True, help="Compare single float16 operations of Core ML and Core AI instead.")
@shared.json_option
def crosscheck(artifacts: tuple[Path, ...], checkpoint: Path | None, ops: bool, json_file: Path | None) -> None:
    """Run two ARTIFACTS of one component, each in its own runtime, on the same golden inputs.

    Names the modules where one is less accurate than the other by more than rounding explains. Advice is no failure:
    exit 0.
    """
    from md_export.report.diagnoses import crosscheck_tables, operation_table

    if ops and (artifacts or checkpoint):
        raise UsageError("--ops makes its artifacts itself; leave out yours and --checkpoint")
    if ops:
        from md_export.diagnose.crosscheck.operations import crosscheck_operations

        with shared.progress(1) as tell:
            operations = crosscheck_operations(tell)
        shared.show(json_file, operations, operation_table(operations))
        return
    if len(artifacts) != len(("A", "B")):
        raise UsageError("name two artifacts of one component, such as ios/unet.mlpackage ios27/unet.aimodel, or --ops")
    from md_export.diagnose.crosscheck.artifacts import crosscheck as compare

    first, second = artifacts
    with shared.progress(1) as tell:
        found = compare(first, second, shared.checkpoint_or_nano(checkpoint), tell)
    shared.show(json_file, found, *crosscheck_tables(found))


@click.command()
@click.argument("out", type=EXPORT)
@click.option("--device", required=True, help="Phone, such as iphone15pro or galaxy-s24; an unknown name lists all.")
@shared.json_option
def estimate(out: Path, device: str, json_file: Path | None) -> None:
    """Estimate how long each artifact of an export takes on a phone, and rank what to change for speed.

    The estimate is a roofline of the lowered graphs, fitted to published latencies; it is printed with the fit's error
    and the physical lower bound. Nothing is run, and no phone is needed.
    """
    from md_export.diagnose.estimate.command import estimate as judge
    from md_export.report.estimate import estimate_tables

    with shared.progress(len(COMPONENT_NAMES)) as tell:
        found = judge(out, device, tell)
    shared.show(json_file, found, *estimate_tables(found))


@click.command()
@click.argument("recipe", type=PATH, required=False)
@click.option("--checkpoint", type=CHECKPOINT, help="Checkpoint to export, with RECIPE.  [default: the nano one]")
@click.option("--canary/--no-canary", default=True, help="Convert and run a small module on each target.")
@shared.json_option
def doctor(recipe: Path | None, checkpoint: Path | None, canary: bool, json_file: Path | None) -> None:
    """Check that exports can work on this machine; exit 1 if something is broken.

    Compares library versions with the supported ones, free memory and disk with what RECIPE needs, looks for the GPU
    driver, and converts a small module on each installed target. The text after the table is for bug reports.
    """
    from md_export.spec.recipe_file import load_recipe
    from md_export.spec.shipped_files import nano_checkpoint

    if checkpoint and not recipe:
        raise UsageError("--checkpoint is for the prediction of a RECIPE; name one, coreml-fp16 for instance")
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
        raise MdExportError(f"broken: {names}; what to do stands behind each of them above")


@click.command()
@click.argument("path", type=ARTIFACT, required=False)
@click.option("--os", "system", help="Core ML rules to apply, such as iOS18.  [default: the oldest system]")
@click.option("--inputs", type=EXISTING, help="Inputs (.npz) on which float16 activations of one package are checked.")
@click.option("--rules", "show_rules", is_flag=True, help="List the Core ML rules and their sources, and lint nothing.")
@click.option("--faults", "show_faults", is_flag=True, help="List known faults of runtimes (Markdown), lint nothing.")
@shared.json_option
def lint(
    path: Path | None,
    system: str | None,
    inputs: Path | None,
    show_rules: bool,
    show_faults: bool,
    json_file: Path | None,
) -> None:
    """Advise on a Core ML package, a Core AI asset or a TFLite file, or on every artifact of an export.

    Says on which versions of the runtime a known fault concerns the artifact. Lists what the Neural Engine or LiteRT's
    GPU engine may refuse, and what float16 may do to values; an export's golden cases are the inputs. Advice is no
    failure: exit 0.
    """
    from md_export.report.lint import fault_page, lint_tables, rule_table, source_lines

    if (path is not None) + show_rules + show_faults != 1:
        raise UsageError("name a package or an export, or ask for --rules or --faults")
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
