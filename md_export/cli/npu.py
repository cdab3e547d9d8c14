"""What ``--npu`` of an export and of verify stands for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from md_export.cli.shared import progress, say, show
from md_export.cli.units import size
from md_export.errors import UsageError
from md_export.names import COMPONENT_NAMES
from md_export.socs import SOCS

_F = TypeVar("_F", bound=Callable[..., Any])
# The simulator takes minutes for each run of a full-size graph.
NPU_LIMIT_S: Final = 600.0


def _some(_context: click.Context, _option: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...] | None:
    """None where none is named, so that a recipe's own chips stay."""
    return value or None


npu_export_option = click.option(
    "--npu",
    type=click.Choice(tuple(SOCS)),
    multiple=True,
    callback=_some,
    help="Also compile for the NPU of these phones; may be given several times.",
)


def npu_options(command: _F) -> _F:
    """Those of verify."""
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
    """UsageError where flags contradict each other; ``own`` go with ``--npu`` alone, ``others`` never with it."""
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
    """The body of ``verify --npu``."""
    from md_export.errors import ParityError
    from md_export.npu import NpuLimits
    from md_export.parity.npu.verify import verify_on_npu
    from md_export.report.npu import npu_tables

    limits = NpuLimits(
        NPU_LIMIT_S if limit_s is None else limit_s, **({"most_bytes": max_memory} if max_memory else {})
    )
    with progress(len(COMPONENT_NAMES)) as report:
        result = verify_on_npu(out, golden_dir, soc, cases, limits, report, blocks).result
    show(json_file, result, *npu_tables(result))
    if result.failures:
        raise ParityError("; ".join(result.failures))
    where = " block by block" if any(item.blocks for item in result.components) else ""
    say(json_file, f"{out}: all on the NPU, and right there{where}, as its simulator computes")
