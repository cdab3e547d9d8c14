"""Commands on checkpoints: inspect, init, adapt, unpack, golden."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click

from md_export.cli import shared
from md_export.cli.paths import ARTIFACT_OR_CHECKPOINT, CHECKPOINT, EXISTING, NEW
from md_export.errors import UsageError
from md_export.spec.names import Method
from md_export.spec.variant import Chunks, Size, Variant

PREDICTIONS: Final = ("epsilon", "v_prediction")
ARCHS: Final = ("md", "md-lite", "sd15", "sdxl", "pixart", "dit", "nano")


@click.command()
@click.argument("checkpoint", metavar="[CHECKPOINT|ARTIFACT]", type=ARTIFACT_OR_CHECKPOINT, required=False)
@click.option("--arch", type=click.Choice(ARCHS), help="Inspect a named architecture instead; needs no weights.")
@shared.json_option
def inspect(checkpoint: Path | None, arch: str | None, json_file: Path | None) -> None:
    """Count parameters, multiply-adds and blocks of each component, beside the paper's numbers.

    Of an ARTIFACT, print its metadata, its weights by stored type, and its operations.
    """
    from md_export.diagnose.inspect import inspect_config
    from md_export.report.tables import inspection_tables
    from md_export.targets import TARGETS

    if checkpoint and arch:
        raise UsageError("name a CHECKPOINT or an --arch, not both")
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
@click.option("--arch", type=click.Choice(ARCHS), required=True)
@click.option("--seed", type=int, default=0, show_default=True)
def init(directory: Path, arch: str, seed: int) -> None:
    """Write a checkpoint with random weights into DIRECTORY, for work at full scale."""
    from md_export.checkpoint.architectures import init_checkpoint

    init_checkpoint(directory, arch, seed)
    click.echo(f"{directory}: a random {arch} checkpoint; its pictures mean nothing")


@click.command()
@click.argument("checkpoint", type=CHECKPOINT)
@shared.output_option
@click.option("--prompts", type=EXISTING, help="Read prompts from a text file, one a line.")
@click.option("--prompt", "single", multiple=True, help="Add a prompt; repeatable.")
@click.option("--seed", "seeds", type=int, multiple=True, default=(0,), show_default=True)
@click.option("--encoder", is_flag=True, help="Record the VAE encoder's output for each picture, too.")
@shared.size_option
@shared.timestep_option
@shared.clip_skip_option
@shared.chunks_option
@shared.steps_option
@shared.sampler_option
@shared.guidance_option
@shared.negative_option
@shared.lora_option
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
    """Write golden cases: every component's inputs and outputs for each prompt and seed, computed by torch."""
    from md_export.checkpoint import open_checkpoint
    from md_export.checkpoint.derived import adapted
    from md_export.parity.golden.folder import read_prompts, write_golden
    from md_export.parity.golden.prepare import golden_source
    from md_export.spec.sampler import sampler_of
    from md_export.system.files import staging

    texts = [*single, *(read_prompts(prompts) if prompts else [])]
    if not texts:
        raise UsageError("give at least one --prompt, or a file of them with --prompts")
    if chunks == "auto":
        raise UsageError("--chunks auto depends on a recipe's weights; give golden cases a number")
    pairs = [(text, seed) for text in texts for seed in seeds]
    with adapted(checkpoint, loras) as place:
        opened = open_checkpoint(place).at(Variant(size, timestep, clip_skip, guidance, chunks))
        source = golden_source(opened, sampler=sampler_of(steps, guidance, sampler, negative=negative), encodes=encoder)
        with staging(output) as folder, shared.progress(len(pairs)) as report:
            write_golden(source, pairs, folder, report)
    click.echo(f"{output}: {len(pairs)} golden cases")


@click.command()
@click.argument("checkpoint", type=CHECKPOINT)
@shared.lora_option
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
    help="Take the VAE in this folder instead, or a tiny autoencoder in its author's decoder and encoder files.",
)
@shared.output_option
def adapt(
    checkpoint: Path,
    loras: tuple[str, ...],
    adapter: Path | None,
    controlnet: Path | None,
    vaes: tuple[Path, ...],
    output: Path,
) -> None:
    """Write a checkpoint folder that adds LoRAs, an adapter, a ControlNet or another VAE to CHECKPOINT.

    The folder holds the added files and a relative path to CHECKPOINT, whose weights are not copied.
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
            "name LoRAs with --lora FILE or --lora FILE:scale, an --adapter FOLDER, a --controlnet FOLDER or a --vae; "
            "for LoRAs and one of the others, first the other, then LoRAs on the folder that this writes"
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
    "--tokenizer", type=EXISTING, help="Folder of CLIP's vocab.json and merges.txt.  [default: CONFIG/tokenizer]"
)
@click.option("--config", type=EXISTING, help="Read configs from a checkpoint folder.  [default: from FILE's shapes]")
@click.option("--prediction", type=click.Choice(PREDICTIONS), help="What the UNet predicts.  [default: as FILE says]")
@shared.output_option
def unpack(file: Path, tokenizer: Path | None, config: Path | None, prediction: str | None, output: Path) -> None:
    """Unpack FILE, a single .safetensors or .ckpt file of Stable Diffusion 1, 2 or XL, into a checkpoint folder."""
    from md_export.checkpoint import read_config
    from md_export.checkpoint.single_file import unpack as write

    if config and prediction:
        raise UsageError("the folder of --config says what the UNet predicts; leave out --prediction")
    if config and tokenizer is None and (config / "tokenizer").is_dir():
        tokenizer = config / "tokenizer"
    held = write(file, tokenizer, output, read_config(config) if config else None, prediction)
    click.echo(f"{output}: {file}, {held}, in diffusers' layout")
