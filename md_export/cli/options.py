"""Options that several commands share, and the types of their values."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import click

from md_export.cli.paths import CHECKPOINT, EXISTING, FILE, GOLDEN, NEW, PATH
from md_export.spec.loras import LARGEST_RANK
from md_export.spec.names import METHODS, MOST_CHUNKS, MOST_STEPS
from md_export.spec.variant import Chunks, Size


class _SizeType(click.ParamType[Size]):
    """Option type for ``512``, or ``512x768`` for width and height, in pixels."""

    name = "WIDTH[xHEIGHT]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Size:
        """Return the size; click reports anything else as a usage error."""
        sides = [int(side) for side in str(value).split("x") if side.isascii() and side.isdigit() and len(side) < 6]
        if len(sides) != str(value).count("x") + 1 or len(sides) > 2 or not all(sides):
            self.fail(f"{value!r:.40} is not a size; give pixels, as 512, or width and height, as 512x768", param, ctx)
        return sides[0] if len(sides) == 1 else (sides[0], sides[1])


_SIZES: Final = {"K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_AGES: Final = {"M": 60.0, "H": 3600.0, "D": 86400.0, "W": 7 * 86400.0}


def size(text: str) -> int:
    """Parse a size such as ``8G`` into bytes; raises click's BadParameter for anything else."""
    return _number(text, _SIZES, "B", "a size: write 8G or 500M")


def age(text: str) -> int:
    """Parse an age such as ``30d`` into seconds; raises click's BadParameter for anything else."""
    return _number(text, _AGES, "", "a time: write 30d, 12h or 2w")


def _number(text: str, units: Mapping[str, float], ending: str, wanted: str) -> int:
    found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)\s*([a-zA-Z]+)", text)
    unit = units.get(found[2].upper().removesuffix(ending)) if found else None
    if found is None or unit is None or not float(found[1]):
        raise click.BadParameter(f"{text!r:.40} is not {wanted}")
    return int(float(found[1]) * unit)


size_option = click.option(
    "--size", type=_SizeType(), help="Set the picture's size in pixels.  [default: the checkpoint's size]"
)


class _ChunksType(click.ParamType[Chunks]):
    """Option type for a number of chunks, or ``auto``."""

    name = "N|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Chunks:
        """Return the number or ``auto``; click reports anything else as a usage error."""
        if value == "auto":
            return "auto"
        number = int(value) if str(value).isascii() and str(value).isdigit() and len(str(value)) < 4 else 0
        if not 2 <= number <= MOST_CHUNKS:
            self.fail(f"{value!r:.40} is not a number of chunks; give 2 to {MOST_CHUNKS}, or auto", param, ctx)
        return number


chunks_option = click.option(
    "--chunks",
    type=_ChunksType(),
    help="Cut the UNet or transformer into this many files; auto: as many as keep each file below 1 GB.  "
    "[default: one file]",
)
timestep_option = click.option(
    "--timestep",
    type=click.IntRange(min=0),
    help="Set the timestep of a one-step sample.  [default: the checkpoint's last timestep]",
)
clip_skip_option = click.option(
    "--clip-skip",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Skip this many of the text encoder's last layers, like diffusers' clip_skip.",
)
steps_option = click.option(
    "--steps", type=click.IntRange(1, MOST_STEPS), help="Sample in this many steps.  [default: one step]"
)
sampler_option = click.option(
    "--sampler",
    type=click.Choice(METHODS),
    help="Choose the sampler; needs --steps.  [default: the recipe's, or the checkpoint's scheduler]",
)
guidance_option = click.option(
    "--guidance",
    type=float,
    help="Set the guidance scale; needs --steps. 1: no guidance. A UNet that embeds the scale (LCM) still computes one "
    "sample per step.  [default: the recipe's, or 7.5; 1 for LCM and TCD; 8.5 if the UNet embeds it]",
)
negative_option = click.option(
    "--negative-prompt",
    "negative",
    help="Steer guidance away from this prompt; needs --steps.  [default: the empty prompt]",
)


def _loras(_context: click.Context, _option: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    """Return the LoRAs that were named; raises UsageError if a file is missing."""
    from md_export.spec.loras import parse_loras

    parse_loras(value)
    return value


def _lora_files(flag: str, name: str, text: str) -> Callable[..., Any]:
    """Return an option for LoRAs, each ``FILE`` or ``FILE:scale``."""
    return click.option(flag, name, metavar="FILE[:SCALE]", multiple=True, callback=_loras, help=f"{text}; repeatable.")


used_lora_option = _lora_files(
    "--lora", "loras", "Name a LoRA that was fused into the weights, or that is a style of the export"
)
lora_option = _lora_files(
    "--lora", "loras", "Fuse a LoRA (.safetensors file or peft folder) into the weights, by SCALE (default 1)"
)
style_option = _lora_files(
    "--style", "styles", "Give the artifacts inputs for styles, and prove this LoRA as one of them"
)
unfused_option = click.option(
    "--unfused",
    is_flag=True,
    help="Compute LoRAs beside the weights, which do not change. Core ML exports made so can be joined, with one "
    "function for each style.",
)
style_rank_option = click.option(
    "--style-rank",
    type=click.IntRange(1, LARGEST_RANK),
    help="Set the rank of the inputs for styles, so that later styles may have it.  [default: that of the styles]",
)
encoder_option = click.option(
    "--encoder", is_flag=True, help="Add the VAE encoder, which turns given pictures into latents."
)
checkpoint_option = click.option(
    "--checkpoint",
    type=CHECKPOINT,
    help="Read the checkpoint from this folder.  [default: the nano checkpoint that ships]",
)
json_option = click.option("--json", "json_file", type=FILE, help="Also write the result as JSON ('-': to stdout).")
output_option = click.option("-o", "--output", type=NEW, required=True, help="Write to this folder; must not exist.")
golden_option = click.option(
    "--golden", "golden_dir", type=GOLDEN, help="Verify on these golden cases.  [default: those in OUT/golden]"
)
calibration_option = click.option(
    "--golden",
    "golden_dir",
    type=GOLDEN,
    help="Calibrate and verify on these golden cases.  [default: the checkpoint's, or made from the recipe's prompts]",
)
recipe_option = click.option(
    "--recipe", "recipe_file", type=PATH, help="Use this recipe: a .toml file, or the name of one that ships."
)

max_memory_option = click.option(
    "--max-memory",
    type=size,
    help="Limit the memory of all running steps together: 8G, 500M.  [default: 3/4 of the machine's]",
)
jobs_option = click.option(
    "--jobs", type=click.IntRange(min=1), help="Run this many steps at a time.  [default: one for two cores]"
)
dask_option = click.option("--dask", metavar="ADDRESS", help="Run on the workers of this Dask scheduler.")
store_option = click.option(
    "--store", metavar="URL", help="With --dask: exchange files through this storage (s3://…, file://…)."
)
# LiteRT's GPU engine in software and the NPU's simulator take minutes for one run of a full-size graph.
LIMIT_S: Final = 600.0
gpu_option = click.option("--gpu", is_flag=True, help="Use LiteRT's GPU engine on a software Vulkan driver (TFLite).")
limit_option = click.option(
    "--limit",
    "limit_s",
    type=float,
    help=f"With --gpu or --npu: stop each artifact after so many seconds.  [default: {LIMIT_S:g}]",
)
junit_option = click.option("--junit", type=FILE, help="Write the verdicts to this file as JUnit XML, for CI.")
markdown_option = click.option(
    "--markdown", type=FILE, help="Write the verdicts to this file as Markdown, for pull requests."
)
cache_option = click.option(
    "--cache", type=PATH, help="Use this cache folder.  [default: $MD_EXPORT_CACHE, or the platform's cache folder]"
)
no_cache_option = click.option(
    "--no-cache", "keep", flag_value=False, default=True, help="Neither read the cache nor write to it."
)
annotate_option = click.option(
    "--annotate", metavar="FILE", help="Print each failure as a GitHub error annotation at FILE, such as the recipe."
)

pin_option = click.option(
    "--pin", "pin_file", type=EXISTING, help="Compare with this pin from manifest seal; exit 3 names each difference."
)
allowed_signers_option = click.option(
    "--allowed-signers",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Require that the pin is signed by a key in this file (OpenSSH's allowed_signers format).",
)


def with_options(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return a decorator that adds the options to a command in this order."""
    return lambda command: functools.reduce(lambda made, option: option(made), reversed(options), command)


prompts_option = with_options(
    click.option(
        "--prompts",
        "prompts_file",
        type=EXISTING,
        help="Also store the text embeddings of the prompts in this text file, one per line.",
    ),
    click.option(
        "--no-text-encoder",
        "text_encoder",
        flag_value=False,
        default=True,
        help="Leave out the text encoder; pictures are then possible of the stored prompts only. Needs --prompts.",
    ),
)

# Which picture is computed, by which sampler: of golden, generate and the exports.
variant_options = with_options(
    size_option,
    timestep_option,
    clip_skip_option,
    steps_option,
    sampler_option,
    guidance_option,
    negative_option,
    lora_option,
)
