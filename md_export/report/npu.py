"""What a phone's NPU makes of an export, as terminal tables."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table

from md_export.parity.npu.verify import NpuComponent, NpuResult
from md_export.report.tables import decibel

_LEFT = ("component", "phone", "verdict")


def npu_tables(result: NpuResult) -> tuple[Table, ...]:
    """Placement and figures of each component and phone; then every operation that is left to the CPU, if one is."""
    tables = (_figures(result),)
    return (*tables, _refused(result)) if any(item.refused for item in result.components) else tables


def _figures(result: NpuResult) -> Table:
    table = Table(
        title=f"{result.recipe}: Qualcomm's simulator of the Hexagon NPU, {result.cases} golden cases",
        caption="seconds and memory are the compiler's and the simulator's; they say nothing about a phone",
    )
    for name in (*_LEFT[:2], "on the NPU", "context MB", "compile s", "GB", "SNR dB", "at least", "run s", "verdict"):
        table.add_column(name, justify="left" if name in _LEFT else "right")
    for item in result.components:
        table.add_row(
            item.component,
            item.soc,
            f"all {item.nodes}" if item.nodes else "-",
            f"{item.context_bytes / 1e6:.2f}",
            f"{item.compile_seconds:.1f}",
            f"{item.compile_bytes / 1e9:.2f}",
            "-" if item.parity is None else decibel(item.parity.snr_db),
            f"{item.tolerance.snr_db:g}",
            f"{item.run_seconds:.2f}",
            _verdict(item),
        )
    for soc, picture in result.pictures.items():
        figure = "-" if picture.psnr_db is None else decibel(picture.psnr_db)
        verdict = f"[red]FAIL[/]: {escape(picture.faults[0])}" if picture.faults else "[green]ok[/]"
        table.add_row("picture", soc, "", "", "", "", figure, f"{picture.least_psnr_db:g} (PSNR)", "", verdict)
    return table


def _verdict(item: NpuComponent) -> str:
    if not item.faults:
        return "[green]all on the NPU, and right[/]"
    short = f"{len(item.refused)} operations left to the CPU" if item.refused else escape(item.faults[0])
    return f"[red]FAIL[/]: {short}"


def _refused(result: NpuResult) -> Table:
    table = Table(title="what the NPU leaves to the CPU", show_lines=True)
    for name in ("component", "phone", "operation", "module", "node"):
        table.add_column(name, overflow="fold")
    for item in result.components:
        for op in item.refused:
            modules = "\n".join(module or "the component itself" for module in op.modules) or "?"
            table.add_row(item.component, item.soc, op.operator, escape(modules), escape(op.node))
    return table
