"""One export command for each target."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from md_export.cli.shared import (
    PATH,
    cache_option,
    cache_root,
    checkpoint_or_nano,
    conclude,
    guidance_option,
    json_option,
    lora_option,
    max_memory_option,
    no_cache_option,
    progress,
    recipe_named,
    say,
    show,
    size,
    size_option,
    steps_option,
)
from md_export.errors import UsageError
from md_export.spec.names import COMPONENT_NAMES, ORDER, SOCS

_F = TypeVar("_F", bound=Callable[..., Any])
# Default time limit of one process in seconds: the simulator takes minutes for each run of a full-size graph.
NPU_LIMIT_S: Final = 600.0


def _some(_context: click.Context, _option: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...] | None:
    """Return None if no chip is named, so that the recipe's chips apply."""
    return value or None


npu_export_option = click.option(
    "--npu",
    type=click.Choice(tuple(SOCS)),
    multiple=True,
    callback=_some,
    help="Also compile for the NPU of these phones; may be given several times.",
)


def npu_options(command: _F) -> _F:
    """Add the NPU options of ``verify`` to a command."""
    for option in (
        click.option(
            "--max-memory", type=size, help="With --npu: of one process: 8G.  [default: 9/10 of the machine's]"
        ),
        click.option("--blocks", is_flag=True, help="With --npu: block by block even where the whole would do."),
        click.option("--cases", type=click.IntRange(min=1), help="With --npu: only so many golden cases."),
        click.option("--soc", type=click.Choice(tuple(SOCS)), help="With --npu: this phone.  [default: the recipe's]"),
        click.option("--npu", is_flag=True, help="For ONNX: on the simulator of Qualcomm's Hexagon NPU."),
    ):
        command = option(command)
    return command


def check_npu(npu: bool, own: Mapping[str, object], others: Mapping[str, object]) -> None:
    """Raise UsageError if flags contradict each other; ``own`` require ``--npu``, ``others`` exclude it."""
    given = [name for name, value in own.items() if value is not None]
    if given and not npu:
        raise UsageError(f"{', '.join(given)} goes with --npu; leave it out")
    against = [name for name, value in others.items() if value]
    if npu and against:
        raise UsageError(f"--npu is a runtime of its own; leave out {', '.join(against)}")


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

    limits = NpuLimits(
        NPU_LIMIT_S if limit_s is None else limit_s, **({"most_bytes": max_memory} if max_memory else {})
    )
    with progress(len(COMPONENT_NAMES)) as report:
        found = verify_on_npu(out, golden_dir, soc, cases, limits, report, blocks)
    results = tuple(item.result for item in found)
    where = " block by block" if any(item.engine.blocks for one in results for item in one.components) else ""
    passed = f"{out}: all on the NPU, and right there{where}, as its simulator computes"
    conclude(json_file, results, failures_of(results), npu_tables(results), passed)


PRECISIONS: Final = ("fp32", "fp16", "int8")
# Each command is a target's name; a test compares this with the TARGETS table.
TARGET_TITLES: Final = {
    "coreml": "Core ML packages for the iPhone Neural Engine",
    "tflite": "TFLite (LiteRT) files for the Android GPU",
    "onnx": "ONNX files for onnxruntime",
    "coreai": "Core AI assets for iOS 27 and macOS 27",
}
DEFAULT_PRECISION: Final = "fp16"
_OWN_OPTIONS: Final = {
    "coreml": (
        click.option("--layout", type=click.Choice(["swift"]), help="Names and shapes as Apple's Swift package reads."),
    ),
    "onnx": (
        click.option(
            "--cpu-fused",
            "form",
            flag_value="cpu_fused",
            help="Instead, ONNX as onnxruntime fuses it for this machine's processor. Not portable.",
        ),
        click.option(
            "--ort", "form", flag_value="ort", help="Instead, .ort files for onnxruntime's mobile builds, fused by it."
        ),
        npu_export_option,
    ),
    "coreai": (
        click.option("--palette", type=click.Choice(["8", "6", "4"]), help="The recipe coreai-palette8, 6 or 4."),
    ),
}


def _export_command(target: str) -> Callable[..., None]:
    def command(
        checkpoint: Path | None,
        precision: str | None,
        recipe_file: Path | None,
        components: tuple[str, ...],
        encoder: bool,
        rewrites: tuple[str, ...],
        allow_drift: bool,
        golden_dir: Path | None,
        size: int | None,
        steps: int | None,
        guidance: float | None,
        loras: tuple[str, ...],
        jobs: int | None,
        max_memory: int | None,
        cache: Path | None,
        keep: bool,
        output: Path,
        json_file: Path | None,
        **own: str | tuple[str, ...] | None,
    ) -> None:
        from md_export.engine.export import export
        from md_export.engine.request import Resources, default_jobs
        from md_export.report.tables import artifact_table
        from md_export.report.verdicts import parity_table

        many = steps is not None
        asked = (*components, "vae_encoder") if encoder and components else components
        recipe = _recipe(target, precision, recipe_file, asked, rewrites, allow_drift, own, many)
        recipe = recipe.widened(("vae_encoder",)) if encoder else recipe
        recipe = recipe.sampled(steps, guidance).sized(size).adapted(loras)
        resources = Resources(cache_root(cache) if keep else None, jobs or default_jobs(), max_memory)
        with progress(3 + len(recipe.components)) as report:
            manifest, result = export(
                recipe, checkpoint_or_nano(checkpoint), output, golden_dir, report, resources, note=_note
            )
        show(json_file, manifest, artifact_table(manifest), parity_table(result))
        if manifest.drift:
            drift = manifest.drift
            say(
                json_file,
                f"drift against the checkpoint as it is: UNet output {drift.unet_snr_db:.1f} dB SNR, "
                f"picture {drift.picture_psnr_db:.1f} dB PSNR",
            )
        say(json_file, f"{output}: verified")

    command.__doc__ = (
        f"Export CHECKPOINT to {TARGET_TITLES[target]}, verified. Without CHECKPOINT the nano one that ships is used."
    )
    return command


def _note(text: str) -> None:
    click.echo(text, err=True)


def _recipe(
    target: str,
    precision: str | None,
    file: Path | None,
    components: tuple[str, ...],
    rewrites: tuple[str, ...],
    allow_drift: bool,
    own: Mapping[str, str | tuple[str, ...] | None],
    many_steps: bool,
) -> Any:
    """Build the recipe that the flags describe; ``own`` are recipe fields that only this target has.

    ``many_steps``: use the precision's recipe for many steps, if one exists.
    """
    import dataclasses

    from md_export.spec.recipe_file import load_recipe
    from md_export.spec.shipped_files import builtin_recipe, builtin_recipes

    palette = own.get("palette")
    if file and precision:
        raise UsageError(f"--{precision} names a recipe, and --recipe names another; give one of them")
    if palette and (file or precision):
        raise UsageError("--palette names a recipe, and another is named beside it; give one of them")
    named = f"palette{palette}" if palette else precision or DEFAULT_PRECISION
    if many_steps and f"{target}-{named}-ddim" in builtin_recipes():
        named += "-ddim"
    recipe = load_recipe(recipe_named(file) if file else builtin_recipe(target, named))
    if recipe.target != target:
        raise UsageError(f"{file} is for {recipe.target}; run: md-export {recipe.target} --recipe {file}")
    fields: dict[str, Any] = {name: value for name, value in own.items() if value is not None and name != "palette"}
    recipe = dataclasses.replace(recipe, rewrites=(*recipe.rewrites, *rewrites), **fields)
    recipe = dataclasses.replace(recipe, allow_drift=recipe.allow_drift or allow_drift)
    return recipe.widened(components).narrowed(components)


def _options(target: str) -> Iterator[Callable[[Any], Any]]:
    """Yield the options of a target's command in reverse order, because decorators apply from the last to the first."""
    yield json_option
    yield click.option("-o", "--output", type=PATH, required=True, help="Folder to write; must not exist.")
    yield no_cache_option
    yield cache_option
    yield max_memory_option
    yield click.option("--jobs", type=click.IntRange(min=1), help="Steps at a time.  [default: one for two cores]")
    yield lora_option
    yield guidance_option
    yield steps_option
    yield size_option
    yield click.option("--golden", "golden_dir", type=PATH, help="Golden cases to calibrate on and to be judged by.")
    yield click.option("--allow-drift", is_flag=True, help="Apply rewrites that the checkpoint was not trained with.")
    yield click.option(
        "--rewrite", "rewrites", multiple=True, help="Apply a named rewrite; may be given several times."
    )
    yield click.option("--encoder", is_flag=True, help="The VAE encoder, too: it makes latents of given pictures.")
    yield click.option("--component", "components", type=click.Choice(ORDER), multiple=True, help="Only this one.")
    yield click.option("--recipe", "recipe_file", type=PATH, help="A recipe's file or name instead of a flag.")
    for name in PRECISIONS:
        yield click.option(f"--{name}", "precision", flag_value=name, help=f"The recipe {target}-{name}.")
    yield click.argument("checkpoint", type=PATH, required=False)
    yield from _OWN_OPTIONS.get(target, ())


def _command(target: str) -> click.Command:
    function = _export_command(target)
    for option in _options(target):
        function = option(function)
    return click.command(name=target)(function)


EXPORTS: Final = tuple(_command(target) for target in TARGET_TITLES)
