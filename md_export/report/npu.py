"""What a phone's NPU makes of an export, as terminal tables."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table

from md_export.parity.npu.verdict import NpuComponent, NpuResult
from md_export.report.tables import decibel

_LEFT = ("component", "phone", "verdict")


def npu_tables(result: NpuResult) -> tuple[Table, ...]:
    """Placement and figures of each component and phone; then the blocks of each that was executed so, and every
    operation that is left to the CPU, if there are any."""
    blocks = tuple(_blocks(item) for item in result.components if item.blocks)
    refused = (_refused(result),) if any(item.refused for item in result.components) else ()
    return (_figures(result), *blocks, *refused)


def _figures(result: NpuResult) -> Table:
    table = Table(
        title=f"{result.recipe}: Qualcomm's simulator of the Hexagon NPU, {result.cases} golden cases",
        caption="seconds and memory are the compiler's and the simulator's; they say nothing about a phone",
    )
    for name in (
        *_LEFT[:2],
        "on the NPU",
        "context MB",
        "compile s",
        "GB",
        "SNR dB",
        "at least",
        "run",
        "s",
        "verdict",
    ):
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
            item.extent,
            f"{item.run_seconds:.2f}",
            _verdict(item),
        )
    for soc, picture in result.pictures.items():
        figure = "-" if picture.psnr_db is None else decibel(picture.psnr_db)
        verdict = f"[red]FAIL[/]: {escape(picture.faults[0])}" if picture.faults else "[green]ok[/]"
        table.add_row("picture", soc, "", "", "", "", figure, f"{picture.least_psnr_db:g} (PSNR)", "", "", verdict)
    return table


def _verdict(item: NpuComponent) -> str:
    if not item.faults:
        return "[green]all on the NPU, and right[/]"
    short = f"{len(item.refused)} operations left to the CPU" if item.refused else escape(item.faults[0])
    return f"[red]FAIL[/]: {short}"


def _blocks(item: NpuComponent) -> Table:
    worst = min((block.snr_db for block in item.blocks if block.snr_db is not None), default=None)
    table = Table(
        title=f"{item.component} on {item.soc}, block by block ({escape(item.why)})",
        caption="SNR of each block alone, against float32 on the same inputs; each takes what those before it made.\n"
        "The component's figure has the errors of all. What the compiler does across the cuts is not seen.",
    )
    for name in ("modules", "on the NPU", "compile s", "GB", "run s", "SNR dB", "verdict"):
        table.add_column(name, justify="left" if name in ("modules", "verdict") else "right")
    for block in item.blocks:
        faults = f"[red]FAIL[/]: {escape(block.faults[0])}" if block.faults else "[green]ok[/]"
        least = " [yellow](the least)[/]" if block.snr_db is not None and block.snr_db == worst else ""
        table.add_row(
            escape(block.title),
            f"all {block.nodes}" if block.nodes else "-",
            f"{block.compile_seconds:.1f}",
            f"{block.peak_bytes / 1e9:.2f}",
            f"{block.run_seconds:.2f}",
            "-" if block.snr_db is None else decibel(block.snr_db),
            f"{faults}{least}",
        )
    return table


def _refused(result: NpuResult) -> Table:
    table = Table(title="what the NPU leaves to the CPU", show_lines=True)
    for name in ("component", "phone", "operation", "module", "node"):
        table.add_column(name, overflow="fold")
    for item in result.components:
        for op in item.refused:
            modules = "\n".join(module or "the component itself" for module in op.modules) or "?"
            table.add_row(item.component, item.soc, op.operator, escape(modules), escape(op.node))
    return table
