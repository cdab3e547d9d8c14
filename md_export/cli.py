"""The command line: parse → one call → print. Everything heavy is imported inside the bodies."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal

import click

from md_export import __version__
from md_export.errors import MdExportError, UsageError

COMPONENTS: Final = ("text_encoder", "unet", "vae_decoder")
ARCHS: Final = ("md", "md-lite", "nano")
PRECISIONS: Final = ("fp32", "fp16", "int8")
# Each command is a target's name; a test holds this against the TARGETS table.
TARGET_TITLES: Final = {
    "coreml": "Core ML packages for the iPhone Neural Engine",
    "tflite": "TFLite (LiteRT) files for the Android GPU",
    "onnx": "ONNX files for onnxruntime",
}
DEFAULT_PRECISION: Final = "fp16"

_path = click.Path(path_type=Path)
_json_option = click.option("--json", "json_file", type=_path, help="Also write the result as JSON ('-': stdout).")


# LiteRT's engine for the GPU, in software: minutes for a full-size graph.
GPU_LIMIT_S: Final = 600.0
_gpu_option = click.option("--gpu", is_flag=True, help="For TFLite: on LiteRT's GPU engine, by Vulkan in software.")
_limit_option = click.option(
    "--limit", "limit_s", type=float, help=f"With --gpu: seconds for one artifact.  [default: {GPU_LIMIT_S:g}]"
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="md-export")
def cli() -> None:
    """Lower MobileDiffusion checkpoints to Core ML, TFLite and ONNX, and prove every artifact without a phone.

    Shell completion: _MD_EXPORT_COMPLETE=bash_source md-export (or zsh_source, fish_source).

    Exit codes: 0 ok, 1 error, 2 usage, 3 parity failed.
    """


@cli.command()
@click.argument("checkpoint", metavar="[CHECKPOINT|ARTIFACT]", type=_path, required=False)
@click.option(
    "--arch", type=click.Choice(ARCHS), help="A named architecture instead of a checkpoint; needs no weights."
)
@_json_option
def inspect(checkpoint: Path | None, arch: str | None, json_file: Path | None) -> None:
    """Count parameters, multiply-adds and blocks of each component, beside the paper's numbers.

    Of an ARTIFACT: what it tells an app, its weights by stored type, and its operations.
    """
    from md_export.inspection import inspect_config
    from md_export.report.inspection import inspection_tables
    from md_export.targets import TARGETS

    if checkpoint and arch:
        raise UsageError("name a CHECKPOINT or an --arch, not both")
    if checkpoint and checkpoint.suffix in {target.suffix for target in TARGETS.values()}:
        _inspect_artifact(checkpoint, json_file)
        return
    if arch:
        from md_export.arch import arch_config

        config, title = arch_config(arch), arch
    else:
        from md_export.checkpoint import open_checkpoint

        source = _checkpoint_or_nano(checkpoint)
        config, title = open_checkpoint(source).config, str(source)
    inspection = inspect_config(config)
    _write_json(json_file, inspection)
    _print(*inspection_tables(inspection, title, arch))


@cli.command()
@click.argument("directory", type=_path)
@click.option("--arch", type=click.Choice(ARCHS), required=True)
@click.option("--seed", type=int, default=0, show_default=True)
def init(directory: Path, arch: str, seed: int) -> None:
    """Write a checkpoint with random weights into DIRECTORY, for work at full scale."""
    from md_export.init import init_checkpoint

    init_checkpoint(directory, arch, seed)
    click.echo(f"{directory}: a random {arch} checkpoint; its pictures mean nothing")


@cli.command()
@click.argument("checkpoint", type=_path)
@click.option("-o", "--output", type=_path, required=True, help="Folder to write; must not exist.")
@click.option("--prompts", type=_path, help="Text file with one prompt a line.")
@click.option("--prompt", "single", multiple=True, help="A prompt; may be given several times.")
@click.option("--seed", "seeds", type=int, multiple=True, default=(0,), show_default=True)
def golden(
    checkpoint: Path, output: Path, prompts: Path | None, single: tuple[str, ...], seeds: tuple[int, ...]
) -> None:
    """Write golden cases: every component's inputs and outputs for each prompt and seed, computed by torch."""
    from md_export.checkpoint import open_checkpoint
    from md_export.files import staging
    from md_export.parity.golden import read_prompts, write_golden
    from md_export.parity.prepare import golden_source

    texts = [*single, *(read_prompts(prompts) if prompts else [])]
    if not texts:
        raise UsageError("give at least one --prompt, or a file of them with --prompts")
    pairs = [(text, seed) for text in texts for seed in seeds]
    source = golden_source(open_checkpoint(checkpoint))
    with staging(output) as folder, _progress(len(pairs)) as report:
        write_golden(source, pairs, folder, report)
    click.echo(f"{output}: {len(pairs)} golden cases")


def _export_command(target: str) -> Callable[..., None]:
    def command(
        checkpoint: Path | None,
        precision: str | None,
        recipe_file: Path | None,
        components: tuple[str, ...],
        rewrites: tuple[str, ...],
        allow_drift: bool,
        golden_dir: Path | None,
        output: Path,
        json_file: Path | None,
        layout: Literal["swift"] | None = None,
    ) -> None:
        from md_export.pipeline import export
        from md_export.report.tables import artifact_table, parity_table

        recipe = _recipe(target, precision, recipe_file, components, rewrites, allow_drift, layout)
        with _progress(2 * len(recipe.components)) as report:
            manifest, result = export(recipe, _checkpoint_or_nano(checkpoint), output, golden_dir, report)
        _write_json(json_file, manifest)
        _print(artifact_table(manifest), parity_table(result))
        if manifest.drift:
            drift = manifest.drift
            click.echo(
                f"drift against the checkpoint as it is: UNet output {drift.unet_snr_db:.1f} dB SNR, "
                f"picture {drift.picture_psnr_db:.1f} dB PSNR"
            )
        click.echo(f"{output}: verified")

    command.__doc__ = (
        f"Export CHECKPOINT to {TARGET_TITLES[target]}, verified. Without CHECKPOINT the nano one that ships is used."
    )
    return command


_OWN_OPTIONS: Final = {
    "coreml": (
        click.option("--layout", type=click.Choice(["swift"]), help="Names and shapes as Apple's Swift package reads."),
    ),
}
for _target in TARGET_TITLES:
    _command: Any = _export_command(_target)
    for _option in (
        _json_option,
        click.option("-o", "--output", type=_path, required=True, help="Folder to write; must not exist."),
        click.option("--golden", "golden_dir", type=_path, help="Golden cases to calibrate on and to be judged by."),
        click.option("--allow-drift", is_flag=True, help="Apply rewrites that the checkpoint was not trained with."),
        click.option("--rewrite", "rewrites", multiple=True, help="Apply a named rewrite; may be given several times."),
        click.option("--component", "components", type=click.Choice(COMPONENTS), multiple=True, help="Only this one."),
        click.option("--recipe", "recipe_file", type=_path, help="A recipe's file or name instead of a flag."),
        *(
            click.option(f"--{name}", "precision", flag_value=name, help=f"The recipe {_target}-{name}.")
            for name in PRECISIONS
        ),
        click.argument("checkpoint", type=_path, required=False),
        *_OWN_OPTIONS.get(_target, ()),
    ):
        _command = _option(_command)
    cli.command(name=_target)(_command)


@cli.command()
@click.argument("artifact", type=_path)
@click.option("--inputs", type=_path, required=True, help="An .npz file with one array per input.")
@click.option("-o", "--output", type=_path, required=True, help="The .npz file to write.")
@click.option(
    "--runtime", type=click.Choice(["mil", "coreml"]), help="For a Core ML package: ours, or Apple's on a Mac."
)
@_gpu_option
@_limit_option
def run(artifact: Path, inputs: Path, output: Path, runtime: str | None, gpu: bool, limit_s: float | None) -> None:
    """Execute any artifact in its own runtime; a Core ML package runs on Linux too."""
    from md_export.npz import read_npz, write_npz
    from md_export.targets import target_of
    from md_export.workers import execute

    target = target_of(artifact)
    if runtime and target.name != "coreml":
        raise UsageError(f"--runtime is for Core ML packages; {artifact.name} has one runtime only")
    limit_s = _gpu_limit(gpu, limit_s, target.name)
    if gpu:
        target.require()
        from md_export.parity.gpu import run_on_gpu

        outputs, note = run_on_gpu(artifact, read_npz(inputs), limit_s)
        click.echo(note, err=True)
    else:
        (outputs,) = execute(target.name, artifact, [read_npz(inputs)], runtime).outputs
    write_npz(output, outputs)
    click.echo(
        f"{output}: " + ", ".join(f"{name} {list(value.shape)} {value.dtype}" for name, value in outputs.items())
    )


@cli.command()
@click.argument("out", type=_path)
@click.option("--golden", "golden_dir", type=_path, help="Golden cases; by default those that lie in OUT.")
@_gpu_option
@_limit_option
@_json_option
def verify(out: Path, golden_dir: Path | None, gpu: bool, limit_s: float | None, json_file: Path | None) -> None:
    """Run every artifact of an export on every golden case, and the chain to the picture; exit 3 if one falls short.

    With --gpu: is all of a TFLite graph on the GPU, and right there? Each op that is not is named with its module.
    """
    from md_export.artifact import read_manifest
    from md_export.errors import ParityError
    from md_export.parity.verify import verify as judge
    from md_export.report.tables import parity_table

    limit_s = _gpu_limit(gpu, limit_s, read_manifest(out).target)
    if gpu:
        _verify_on_gpu(out, golden_dir, limit_s, json_file)
        return
    with _progress(len(COMPONENTS)) as report:
        result = judge(out, golden_dir, report)
    _write_json(json_file, result)
    _print(parity_table(result))
    if not result.passed:
        raise ParityError("; ".join(result.failures))
    click.echo(f"{out}: verified")


@cli.command()
@click.argument("path", type=_path, required=False)
@click.option("--os", "system", help="Whose rules to apply, iOS18 for instance. Default: the oldest that loads it.")
@click.option("--inputs", type=_path, help="An .npz file for one package: activations for the float16 hazards.")
@click.option("--rules", "show_rules", is_flag=True, help="Print the rules and their sources.")
@_json_option
def lint(path: Path | None, system: str | None, inputs: Path | None, show_rules: bool, json_file: Path | None) -> None:
    """Advise on a Core ML package, or on each of an export with its golden inputs: what the Neural Engine may refuse
    or pay for, and which values float16 cannot hold. Advice is no failure: exit 0."""
    from md_export.report.lint import lint_tables, rule_table, source_lines

    if show_rules == (path is not None):
        raise UsageError("name a package or an export, or ask for --rules")
    if path is None:
        from md_export.targets.coreml.rules import load_rules

        file = load_rules()
        _write_json(json_file, file)
        _print(rule_table(file.rule, file.hazard, file.version), *source_lines((*file.rule, *file.hazard)))
        return
    from md_export.linting import lint as advise

    with _progress(len(COMPONENTS)) as tell:
        reports = advise(path, system, inputs, tell)
    _write_json(json_file, reports)
    _print(*lint_tables(reports))


@cli.command()
@click.argument("outs", metavar="OUT...", type=_path, nargs=-1, required=True)
@click.option("-o", "--output", type=_path, help="The .html file to write.")
@click.option("--junit", type=_path, help="Also write JUnit XML, for a CI system.")
@click.option("--markdown", type=_path, help="Also write Markdown, for a pull request's comment.")
@_json_option
def report(
    outs: tuple[Path, ...], output: Path | None, junit: Path | None, markdown: Path | None, json_file: Path | None
) -> None:
    """Verify exports and write what was found as one page that opens without a network; exit 3 as verify does."""
    from md_export.artifact import read_manifest
    from md_export.errors import ParityError
    from md_export.parity.verify import judge

    if not (output or junit or markdown or json_file):
        raise UsageError("say what to write: -o report.html, --junit, --markdown or --json")
    with _progress(len(COMPONENTS) * len(outs)) as tell:
        exports = [(out.resolve().name, read_manifest(out), judge(out, progress=tell)) for out in outs]
    results = [(name, verification.result) for name, _, verification in exports]
    if output:
        from md_export.report.html import html_page

        output.write_text(html_page(exports), encoding="utf-8")
    if junit:
        from md_export.report.junit import junit_xml

        junit.write_text(junit_xml(results), encoding="utf-8")
    if markdown:
        from md_export.report.markdown import markdown_page

        markdown.write_text(markdown_page(results), encoding="utf-8")
    _write_json(json_file, [result for _, result in results])
    failures = [f"{name}: {failure}" for name, result in results for failure in result.failures]
    if failures:
        raise ParityError("; ".join(failures))


@cli.command()
@click.argument("prompt")
@click.option("--artifacts", type=_path, help="An export: the picture is made by its artifacts.")
@click.option("--checkpoint", type=_path, help="A checkpoint: the picture is made by torch. Default: the nano one.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("-o", "--output", type=_path, required=True, help="The .png file to write.")
def generate(prompt: str, artifacts: Path | None, checkpoint: Path | None, seed: int, output: Path) -> None:
    """Make a picture from PROMPT in one UNet step, by an export's artifacts or by torch."""
    from md_export.generation import pictures_of_artifacts, pictures_of_checkpoint, write_png

    if artifacts and checkpoint:
        raise UsageError("name --artifacts or --checkpoint, not both")
    if artifacts:
        (picture,) = pictures_of_artifacts(artifacts, [(prompt, seed)])
    else:
        (picture,) = pictures_of_checkpoint(_checkpoint_or_nano(checkpoint), [(prompt, seed)])
    write_png(output, picture)
    click.echo(f"{output}: {picture.shape[1]}×{picture.shape[0]}")


def _inspect_artifact(artifact: Path, json_file: Path | None) -> None:
    from md_export.report.description import description_tables
    from md_export.targets import target_of

    found = target_of(artifact).open().describe(artifact)
    _write_json(json_file, found)
    _print(*description_tables(found, artifact.name))


def _gpu_limit(gpu: bool, limit_s: float | None, target: str) -> float:
    if limit_s is not None and not gpu:
        raise UsageError("--limit is for --gpu; leave it out")
    if gpu and target != "tflite":
        raise UsageError(f"--gpu is LiteRT's engine, which runs TFLite files, not {target}; leave it out")
    return GPU_LIMIT_S if limit_s is None else limit_s


def _verify_on_gpu(out: Path, golden_dir: Path | None, limit_s: float, json_file: Path | None) -> None:
    from md_export.errors import ParityError
    from md_export.targets import TARGETS

    TARGETS["tflite"].require()
    from md_export.parity.gpu import verify_on_gpu
    from md_export.report.gpu import gpu_tables

    with _progress(len(COMPONENTS)) as report:
        result = verify_on_gpu(out, golden_dir, limit_s, report)
    _write_json(json_file, result)
    _print(*gpu_tables(result))
    if result.failures:
        raise ParityError("; ".join(result.failures))
    click.echo(f"{out}: all on the GPU, and right there")


def _recipe(
    target: str,
    precision: str | None,
    file: Path | None,
    components: tuple[str, ...],
    rewrites: tuple[str, ...],
    allow_drift: bool,
    layout: Literal["swift"] | None,
) -> Any:
    """The recipe that the flags stand for."""
    import dataclasses

    from md_export.data import builtin_recipe, builtin_recipes, recipe_file
    from md_export.recipe import load_recipe

    if file and precision:
        raise UsageError(f"--{precision} names a recipe, and --recipe names another; give one of them")
    source = recipe_file(file) if file else builtin_recipe(target, precision or DEFAULT_PRECISION)
    if not source.suffix and not source.exists():
        raise UsageError(f"no recipe {file}; name a .toml file or one of {', '.join(builtin_recipes())}")
    recipe = load_recipe(source)
    if recipe.target != target:
        raise UsageError(f"{file} is for {recipe.target}; run: md-export {recipe.target} --recipe {file}")
    recipe = dataclasses.replace(recipe, rewrites=(*recipe.rewrites, *rewrites), layout=layout or recipe.layout)
    return dataclasses.replace(recipe, allow_drift=recipe.allow_drift or allow_drift).narrowed(components)


def _checkpoint_or_nano(checkpoint: Path | None) -> Path:
    if checkpoint is not None:
        return checkpoint
    from md_export.data import nano_checkpoint

    click.echo("no checkpoint named: using the nano checkpoint that ships with md-export", err=True)
    return nano_checkpoint()


def _progress(steps: int) -> Any:
    from md_export.report.progress import progress_to_stderr

    return progress_to_stderr(steps)


def _print(*tables: Any) -> None:
    from md_export.report.tables import console

    for table in tables:
        console().print(table, soft_wrap=isinstance(table, str))


def _write_json(file: Path | None, result: Any) -> None:
    if file is None:
        return
    from pydantic import TypeAdapter

    text = TypeAdapter(type(result)).dump_json(result, indent=2).decode()
    if str(file) == "-":
        click.echo(text)
    else:
        file.write_text(text + "\n", encoding="utf-8")


def main() -> None:
    """Entry point. The only place where errors become text and exit codes."""
    try:
        cli.main(prog_name="md-export", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted; nothing was written", err=True)
        sys.exit(130)
    except MdExportError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except OSError as error:
        click.echo(f"error: {_os_error(error)}", err=True)
        sys.exit(1)


def _os_error(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "no space left on the disk; nothing was kept. Free some space, or choose another disk with -o"
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}; nothing was kept"
