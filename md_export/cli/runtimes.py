"""What ``--runtime`` of run and verify stands for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import click

from md_export.cli.shared import progress, say, show
from md_export.errors import UsageError
from md_export.names import COMPONENT_NAMES

# Spelled out, since the targets' own tables are heavy to import; a test holds this against them.
LIBRARIES: Final = ("litert", "tensorflow")
RUNTIMES: Final[Mapping[str, tuple[str, ...]]] = {
    "coreml": ("mil", "coreml"),
    "tflite": tuple(f"{library}{kernels}" for library in LIBRARIES for kernels in ("", "-builtin", "-reference")),
}

runtime_option = click.option(
    "--runtime",
    type=click.Choice([name for names in RUNTIMES.values() for name in names]),
    help="For a Core ML package: ours, or Apple's on a Mac. For a TFLite file: a library and its kernels.",
)
library_option = click.option(
    "--runtime",
    "library",
    type=click.Choice(LIBRARIES),
    help="For TFLite: in all kernels of this library, and against LiteRT with XNNPACK.",
)


def check_runtime(runtime: str | None, gpu: bool, target: str) -> None:
    """UsageError where an artifact of the target has no such runtime, or another engine is asked for, too."""
    known = RUNTIMES.get(target, ())
    if runtime is not None and runtime not in known:
        raise UsageError(
            f"--runtime {runtime} does not run {target}; " + (f"choose {', '.join(known)}" if known else "leave it out")
        )
    if runtime is not None and gpu:
        raise UsageError("--gpu is a runtime of its own; leave out --runtime")


def verify_in_library(out: Path, golden_dir: Path | None, library: str, json_file: Path | None) -> None:
    """The body of ``verify --runtime``."""
    from md_export.errors import ParityError
    from md_export.targets import TARGETS

    TARGETS["tflite"].require()
    from md_export.parity.runtimes.verify import verify_in_runtimes
    from md_export.report.runtimes import runtimes_tables

    with progress(len(COMPONENT_NAMES) * len(RUNTIMES["tflite"]) // len(LIBRARIES)) as report:
        result = verify_in_runtimes(out, golden_dir, library, report)
    show(json_file, result, *runtimes_tables(result))
    if result.failures:
        raise ParityError("; ".join(result.failures))
    say(json_file, f"{out}: right in every set of kernels of {library}")
