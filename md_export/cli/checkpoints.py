"""Commands on checkpoints: inspect, init, adapt, unpack, golden."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click

from md_export.cli import options, shared
from md_export.cli.paths import ARTIFACT_OR_CHECKPOINT, CHECKPOINT, EXISTING, NEW
from md_export.errors import UsageError
from md_export.spec.names import Method
from md_export.spec.variant import Chunks, Size, Variant

PREDICTIONS: Final = ("epsilon", "v_prediction")
ARCHS: Final = ("md", "md-lite", "sd15", "sdxl", "pixart", "dit", "nano")


@click.command()
@click.argument("checkpoint", metavar="[CHECKPOINT|ARTIFACT]", type=ARTIFACT_OR_CHECKPOINT, required=False)
@click.option("--arch", type=click.Choice(ARCHS), help="Inspect this architecture instead; needs no weights.")
@options.json_option
def inspect(checkpoint: Path | None, arch: str | None, json_file: Path | None) -> None:
    """Count a checkpoint's parameters, multiply-adds and blocks.

    Example: md-export inspect path/to/checkpoint

    The counts are printed beside the paper's. For an ARTIFACT, print its metadata, its weights by stored type, and its
    operations. Without an argument, inspect the nano checkpoint that ships.
    """
    from md_export.diagnose.inspect import inspect_config
    from md_export.report.tables import inspection_tables
    from md_export.targets import TARGETS

    if checkpoint and arch:
        raise UsageError("CHECKPOINT and --arch exclude each other; give one of them")
    if checkpoint and checkpoint.suffix in {target.suffix for target in TARGETS.values()}:
        from md_export.report.tables import description_tables
        from md_export.targets import target_of

        found = target_of(checkpoint).open().describe(checkpoint)
        shared.show(json_file, found, *description_tables(found, checkpoint.name))
        return
    if arch:
        from md_export.checkpoint.architectures import arch_config

        config, title = arch_config(arch), arch
    else:
        from md_export.checkpoint import open_checkpoint

        source = shared.checkpoint_or_nano(checkpoint)
        config, title = open_checkpoint(source).config, str(source)
    inspection = inspect_config(config)
    shared.show(json_file, inspection, *inspection_tables(inspection, title, arch))


@click.command()
@click.argument("directory", type=NEW)
@click.option("--arch", type=click.Choice(ARCHS), required=True, help="Choose the architecture.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed the random weights.")
def init(directory: Path, arch: str, seed: int) -> None:
    """Write a checkpoint with random weights to DIRECTORY.

    Example: md-export init md --arch md

    Use it to measure conversion, memory and time at full size.
    """
    from md_export.checkpoint.architectures import init_checkpoint

    init_checkpoint(directory, arch, seed)
    click.echo(f"{directory}: a random {arch} checkpoint; its pictures mean nothing")


@click.command()
@click.argument("checkpoint", type=CHECKPOINT)
@options.output_option
@click.option("--prompts", type=EXISTING, help="Read prompts from this text file, one per line.")
@click.option("--prompt", "single", multiple=True, help="Add this prompt; repeatable.")
@click.option(
    "--seed",
    "seeds",
    type=int,
    multiple=True,
    default=(0,),
    show_default=True,
    help="Seed the starting noise; repeatable, one case per prompt and seed.",
)
@options.encoder_option
@options.chunks_option
@options.variant_options
def golden(
    checkpoint: Path,
    output: Path,
    prompts: Path | None,
    single: tuple[str, ...],
    seeds: tuple[int, ...],
    encoder: bool,
    size: Size | None,
    timestep: int | None,
    clip_skip: int,
    chunks: Chunks | None,
    steps: int | None,
    sampler: Method | None,
    guidance: float | None,
    negative: str | None,
    loras: tuple[str, ...],
) -> None:
    """Write golden cases: inputs and outputs of every component.

    Example: md-export golden path/to/checkpoint --prompt "a cat" -o golden

    Torch computes them for each prompt and seed. Exports calibrate and verify on them with --golden.
    """
    from md_export.checkpoint import open_checkpoint
    from md_export.checkpoint.derived import adapted
    from md_export.parity.golden.folder import write_golden
    from md_export.parity.golden.prepare import golden_source
    from md_export.spec.prompts import prompts_in
    from md_export.spec.sampler import sampler_of
    from md_export.system.files import staging

    texts = [*single, *(prompts_in(prompts) if prompts else [])]
    if not texts:
        raise UsageError("no prompts; give at least one --prompt, or a file with --prompts")
    if chunks == "auto":
        raise UsageError("--chunks auto depends on a recipe, which golden cases do not have; give a number")
    with shared.options_checked():
        plan = sampler_of(steps, guidance, sampler, negative=negative)
    pairs = [(text, seed) for text in texts for seed in seeds]
    with adapted(checkpoint, loras) as place:
        opened = open_checkpoint(place).at(Variant(size, timestep, clip_skip, guidance, chunks))
        source = golden_source(opened, sampler=plan, encodes=encoder)
        with staging(output) as folder, shared.progress(len(pairs)) as report:
            write_golden(source, pairs, folder, report)
    click.echo(f"{output}: {len(pairs)} golden cases")


@click.command()
@click.argument("checkpoint", type=CHECKPOINT)
@options.lora_option
@click.option(
    "--adapter", type=EXISTING, help="Add the T2I-Adapter in this folder (diffusers' config.json and weights)."
)
@click.option(
    "--controlnet", type=EXISTING, help="Add the ControlNet in this folder (diffusers' config.json and weights)."
)
@click.option(
    "--vae",
    "vaes",
    type=EXISTING,
    multiple=True,
    help="Use the VAE in this folder, or a tiny autoencoder from its author's decoder and encoder files; repeatable.",
)
@options.output_option
def adapt(
    checkpoint: Path,
    loras: tuple[str, ...],
    adapter: Path | None,
    controlnet: Path | None,
    vaes: tuple[Path, ...],
    output: Path,
) -> None:
    """Add LoRAs, an adapter, a ControlNet or a VAE to CHECKPOINT.

    Example: md-export adapt path/to/checkpoint --lora style.safetensors -o mine

    The result is a checkpoint folder for every command. It holds the added files and a relative path to CHECKPOINT;
    CHECKPOINT's weights are not copied.
    """
    from md_export.checkpoint import open_checkpoint
    from md_export.checkpoint.derived import write_adapted, write_with_component
    from md_export.checkpoint.tiny_files import vae_folder
    from md_export.spec.loras import parse_loras
    from md_export.system.files import staging

    folders = {"t2i_adapter": adapter, "controlnet": controlnet}
    given = {name: source for name, source in folders.items() if source is not None}
    if len(given) + bool(loras) + bool(vaes) != 1:
        raise UsageError(
            "give exactly one of --lora FILE[:SCALE] (repeatable), --adapter FOLDER, --controlnet FOLDER and --vae; "
            "for LoRAs and one of the others, add the other first, then the LoRAs to the folder that this writes"
        )
    with staging(output) as folder, vae_folder(vaes) as vae:
        if vae is not None:
            write_with_component(folder, checkpoint, vae, "vae")
        if loras:
            write_adapted(folder, checkpoint, parse_loras(loras))
        for component, source in given.items():
            write_with_component(folder, checkpoint, source, component)
        made = open_checkpoint(folder)
        made.check()
        added = f"the VAE of {' and '.join(map(str, vaes))}"
        if loras:
            added = f"{', '.join(map(str, made.loras))} in {' and '.join(made.loras_by_component())}"
        for component, source in given.items():
            shape = made.config.condition_shape
            takes = "a condition picture in colour" if shape and shape[1] == 3 else "a condition picture in one channel"
            added = f"the {component} in {source}, which takes {takes}"
        for line in made.notes:
            shared.note(line)
    click.echo(f"{output}: {checkpoint} with {added}")


@click.command()
@click.argument("file", type=EXISTING)
@click.option(
    "--tokenizer",
    type=EXISTING,
    help="Copy CLIP's vocab.json and merges.txt from this folder.  [default: CONFIG/tokenizer]",
)
@click.option(
    "--config", type=EXISTING, help="Read configs from this checkpoint folder.  [default: derived from FILE's shapes]"
)
@click.option(
    "--prediction",
    type=click.Choice(PREDICTIONS),
    help="Set what the UNet predicts.  [default: read from FILE]",
)
@options.output_option
def unpack(file: Path, tokenizer: Path | None, config: Path | None, prediction: str | None, output: Path) -> None:
    """Unpack a single Stable Diffusion FILE into a folder.

    Example: md-export unpack model.safetensors --tokenizer clip -o checkpoint

    FILE is a .safetensors or .ckpt file of Stable Diffusion 1, 2 or XL. The result is a checkpoint folder in
    diffusers' layout.
    """
    from md_export.checkpoint import read_config
    from md_export.checkpoint.single_file import unpack as write

    if config and prediction:
        raise UsageError("--config already sets what the UNet predicts; leave out --prediction")
    if config and tokenizer is None and (config / "tokenizer").is_dir():
        tokenizer = config / "tokenizer"
    held = write(file, tokenizer, output, read_config(config) if config else None, prediction)
    click.echo(f"{output}: {file}, {held}, in diffusers' layout")
