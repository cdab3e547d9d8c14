"""Commands on checkpoints: inspect, init, golden."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click

from md_export.cli.shared import (
    PATH,
    checkpoint_or_nano,
    guidance_option,
    json_option,
    lora_option,
    progress,
    show,
    size_option,
    steps_option,
)
from md_export.errors import UsageError

ARCHS: Final = ("md", "md-lite", "sd15", "nano")


@click.command()
@click.argument("checkpoint", metavar="[CHECKPOINT|ARTIFACT]", type=PATH, required=False)
@click.option(
    "--arch", type=click.Choice(ARCHS), help="A named architecture instead of a checkpoint; needs no weights."
)
@json_option
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

        source = checkpoint_or_nano(checkpoint)
        config, title = open_checkpoint(source).config, str(source)
    inspection = inspect_config(config)
    show(json_file, inspection, *inspection_tables(inspection, title, arch))


def _inspect_artifact(artifact: Path, json_file: Path | None) -> None:
    from md_export.report.description import description_tables
    from md_export.targets import target_of

    found = target_of(artifact).open().describe(artifact)
    show(json_file, found, *description_tables(found, artifact.name))


@click.command()
@click.argument("directory", type=PATH)
@click.option("--arch", type=click.Choice(ARCHS), required=True)
@click.option("--seed", type=int, default=0, show_default=True)
def init(directory: Path, arch: str, seed: int) -> None:
    """Write a checkpoint with random weights into DIRECTORY, for work at full scale."""
    from md_export.init import init_checkpoint

    init_checkpoint(directory, arch, seed)
    click.echo(f"{directory}: a random {arch} checkpoint; its pictures mean nothing")


@click.command()
@click.argument("checkpoint", type=PATH)
@click.option("-o", "--output", type=PATH, required=True, help="Folder to write; must not exist.")
@click.option("--prompts", type=PATH, help="Text file with one prompt a line.")
@click.option("--prompt", "single", multiple=True, help="A prompt; may be given several times.")
@click.option("--seed", "seeds", type=int, multiple=True, default=(0,), show_default=True)
@click.option("--encoder", is_flag=True, help="Also what the VAE encoder makes of each picture.")
@size_option
@steps_option
@guidance_option
@lora_option
def golden(
    checkpoint: Path,
    output: Path,
    prompts: Path | None,
    single: tuple[str, ...],
    seeds: tuple[int, ...],
    encoder: bool,
    size: int | None,
    steps: int | None,
    guidance: float | None,
    loras: tuple[str, ...],
) -> None:
    """Write golden cases: every component's inputs and outputs for each prompt and seed, computed by torch."""
    from md_export.checkpoint import open_checkpoint
    from md_export.checkpoint.lora.source import adapted
    from md_export.files import staging
    from md_export.parity.prepare import golden_source
    from md_export.parity.recording import read_prompts, write_golden
    from md_export.sampler import sampler_of

    texts = [*single, *(read_prompts(prompts) if prompts else [])]
    if not texts:
        raise UsageError("give at least one --prompt, or a file of them with --prompts")
    pairs = [(text, seed) for text in texts for seed in seeds]
    with adapted(checkpoint, loras) as place:
        source = golden_source(open_checkpoint(place).at(size), sampler=sampler_of(steps, guidance), encodes=encoder)
        with staging(output) as folder, progress(len(pairs)) as report:
            write_golden(source, pairs, folder, report)
    click.echo(f"{output}: {len(pairs)} golden cases")
