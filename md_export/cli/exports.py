"""Commands that make exports: one for each target."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import click

from md_export.cli import options, shared
from md_export.cli.options import with_options
from md_export.cli.paths import CHECKPOINT
from md_export.errors import ParityError, UsageError
from md_export.spec.names import ORDER, SOCS, Method
from md_export.spec.variant import Chunks, Size, Variant


def _some(_context: click.Context, _option: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...] | None:
    """Return None if no chip is named, so that the recipe's chips apply."""
    return value or None


PRECISIONS: Final = ("int8", "fp16", "fp32")
# Each command is a target's name; a test compares this with the TARGETS table.
TARGET_TITLES: Final = {
    "coreml": "Core ML for the iPhone Neural Engine",
    "tflite": "TFLite (LiteRT) for the Android GPU",
    "onnx": "ONNX for onnxruntime",
    "coreai": "Core AI for iOS 27 and macOS 27",
}
_EXAMPLES: Final = {
    "coreml": "md-export coreml path/to/checkpoint --fp16 -o ios",
    "tflite": "md-export tflite path/to/checkpoint --int8 -o android",
    "onnx": "md-export onnx path/to/checkpoint --int8 -o server",
    "coreai": "md-export coreai path/to/checkpoint --palette 8 -o ios27",
}
DEFAULT_PRECISION: Final = "fp16"
# Repeated here because the rewrites are slow to import; a test compares the two.
REWRITE_NAMES: Final = (
    "gelu_to_swish",
    "softmax_to_relu",
    "linear_to_conv2d",
    "group_norm_to_instance_norm",
    "fold_attention_scale",
    "split_attention_heads",
    "fold_timestep",
    "tokens_to_maps",
    "rank_4_attention",
    "vector_linear_to_conv2d",
    "staged_group_norm",
    "fold_norm_affine",
    "equalize",
    "split_wide_conv2d",
    "upsample_to_four_convs",
    "upsample_by_repeating",
    "tabulate_timestep",
    "fold_x0",
)
_OWN_OPTIONS: Final = {
    "coreml": (
        click.option(
            "--layout",
            type=click.Choice(["swift"]),
            help="Use the names and shapes that Apple's ml-stable-diffusion Swift package reads.",
        ),
    ),
    "onnx": (
        click.option(
            "--npu",
            type=click.Choice(tuple(SOCS)),
            multiple=True,
            callback=_some,
            help="Also compile for the NPU of this Snapdragon chip; repeatable.",
        ),
        click.option(
            "--ort",
            "form",
            flag_value="ort",
            help="Write .ort files, fused by onnxruntime for its mobile builds, instead of .onnx.",
        ),
        click.option(
            "--cpu-fused",
            "form",
            flag_value="cpu_fused",
            help="Write ONNX that onnxruntime has fused for this machine's processor. Not portable.",
        ),
    ),
    "coreai": (
        click.option(
            "--palette",
            type=click.Choice(["8", "6", "4"]),
            help="Store weights as palettes of so many bits (recipe coreai-palette8, 6 or 4).",
        ),
    ),
}


def _command(target: str) -> click.Command:
    title = TARGET_TITLES[target]
    precisions = [
        click.option(
            f"--{name}",
            f"is_{name}",
            is_flag=True,
            help=f"Use the recipe {target}-{name}{' (default)' if name == DEFAULT_PRECISION else ''}.",
        )
        for name in PRECISIONS
    ]

    @click.command(
        name=target,
        help=f"Export CHECKPOINT to {title}.\n\nExample: {_EXAMPLES[target]}\n\n"
        "Every artifact is verified before the folder appears. Without CHECKPOINT, the nano checkpoint that ships is "
        "exported. Exit 3 if an artifact misses a threshold of the recipe.",
    )
    @with_options(*_OWN_OPTIONS.get(target, ()))
    @click.argument("checkpoint", type=CHECKPOINT, required=False)
    @with_options(*precisions)
    @options.recipe_option
    @click.option(
        "--component",
        "components",
        type=click.Choice(ORDER),
        multiple=True,
        help="Export only this component; repeatable.  [default: all]",
    )
    @options.encoder_option
    @click.option(
        "--rewrite",
        "rewrites",
        type=click.Choice(REWRITE_NAMES),
        multiple=True,
        metavar="NAME",
        help="Apply this rewrite, too; repeatable. See docs/rewrites.md.",
    )
    @click.option("--allow-drift", is_flag=True, help="Apply rewrites that the checkpoint was not trained with.")
    @options.calibration_option
    @options.chunks_option
    @options.variant_options
    @options.unfused_option
    @options.style_option
    @options.style_rank_option
    @options.prompts_option
    @options.jobs_option
    @options.max_memory_option
    @options.cache_option
    @options.no_cache_option
    @options.output_option
    @options.json_option
    def command(
        checkpoint: Path | None,
        recipe_file: Path | None,
        components: tuple[str, ...],
        encoder: bool,
        rewrites: tuple[str, ...],
        allow_drift: bool,
        golden_dir: Path | None,
        size: Size | None,
        timestep: int | None,
        clip_skip: int,
        chunks: Chunks | None,
        steps: int | None,
        sampler: Method | None,
        guidance: float | None,
        negative: str | None,
        loras: tuple[str, ...],
        unfused: bool,
        styles: tuple[str, ...],
        style_rank: int | None,
        prompts_file: Path | None,
        text_encoder: bool,
        jobs: int | None,
        max_memory: int | None,
        cache: Path | None,
        keep: bool,
        output: Path,
        json_file: Path | None,
        **own: Any,
    ) -> None:
        named = [name for name in PRECISIONS if own.pop(f"is_{name}")]
        if len(named) > 1:
            raise UsageError(f"--{' and --'.join(named)} each name a recipe; give one of them")
        precision = named[0] if named else None
        many = steps is not None
        asked = (*components, "vae_encoder") if encoder and components else components
        recipe = _recipe(target, precision, recipe_file, asked, rewrites, allow_drift, own, many)
        recipe = recipe.widened(("vae_encoder",)) if encoder else recipe
        from md_export.spec.prompts import prompts_in

        with shared.options_checked():
            recipe = (
                recipe.sampled(steps, guidance, sampler, negative)
                .varied(Variant(size, timestep, clip_skip, chunks=chunks))
                .adapted(loras, unfused)
                .styled(styles, style_rank)
                .prompted(tuple(dict.fromkeys(prompts_in(prompts_file))) if prompts_file else (), text_encoder)
            )
        from md_export.engine.export import export
        from md_export.engine.request import Resources, default_jobs
        from md_export.report.progress import exporting_to_stderr
        from md_export.report.tables import artifact_table
        from md_export.report.verdicts import parity_table

        resources = Resources(shared.cache_root(cache) if keep else None, jobs or default_jobs(), max_memory)
        source = shared.checkpoint_or_nano(checkpoint)
        try:
            with exporting_to_stderr() as listener:
                manifest, result = export(recipe, source, output, golden_dir, resources=resources, listener=listener)
        except ParityError as error:
            from md_export.diagnose.rejection import next_steps

            rejected = output.with_name(f"{output.name}.rejected")
            with shared.progress(1) as report:
                advice = next_steps(rejected, source, recipe.loras, report)
            raise ParityError("\n  ".join([str(error), *advice])) from error
        shared.show(json_file, manifest, artifact_table(manifest), parity_table(result))
        if manifest.drift:
            drift = manifest.drift
            shared.say(
                json_file,
                f"drift against the unchanged checkpoint: UNet output {drift.unet_snr_db:.1f} dB SNR, "
                f"picture {drift.picture_psnr_db:.1f} dB PSNR",
            )
        shared.say(json_file, f"{output}: verified")

    return command


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
    """Build the recipe that the flags describe.

    Args:
        own: recipe fields that only this target has.
        many_steps: use the precision's recipe for many steps, if one exists.
    """
    import dataclasses

    from md_export.spec.recipe_file import load_recipe
    from md_export.spec.shipped_files import builtin_recipe, builtin_recipes

    palette = own.get("palette")
    if file and precision:
        raise UsageError(f"--{precision} names a recipe, and --recipe names another; give one of them")
    if palette and (file or precision):
        raise UsageError("--palette names a recipe, and --recipe or a precision names another; give one of them")
    named = f"palette{palette}" if palette else precision or DEFAULT_PRECISION
    if many_steps and f"{target}-{named}-steps" in builtin_recipes():
        named += "-steps"
    recipe = load_recipe(shared.recipe_named(file) if file else builtin_recipe(target, named))
    if recipe.target != target:
        raise UsageError(f"{file} is for {recipe.target}; run: md-export {recipe.target} --recipe {file}")
    fields: dict[str, Any] = {name: value for name, value in own.items() if value is not None and name != "palette"}
    with shared.options_checked():
        recipe = dataclasses.replace(recipe, rewrites=(*recipe.rewrites, *rewrites), **fields)
        recipe = dataclasses.replace(recipe, allow_drift=recipe.allow_drift or allow_drift)
        return recipe.widened(components).narrowed(components)


EXPORTS: Final = tuple(_command(target) for target in TARGET_TITLES)
