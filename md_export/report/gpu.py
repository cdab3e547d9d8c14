"""What the GPU engine made of an export, as terminal tables."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table

from md_export.parity.gpu.verify import GpuComponent, GpuResult
from md_export.report.tables import decibel


def gpu_tables(result: GpuResult) -> tuple[Table, ...]:
    """Residency and figures of each component; then every op to blame, if there is one."""
    tables = (_residency(result),)
    return (*tables, _findings(result)) if any(item.findings for item in result.components) else tables


def _residency(result: GpuResult) -> Table:
    adapters = ", ".join(sorted({item.adapter for item in result.components}))
    table = Table(
        title=f"{result.recipe}: LiteRT's GPU engine on {adapters}, {result.cases} golden cases",
        caption="measured: residency, and values in float32. What float16 arithmetic on a phone may lose or overflow "
        "is bounded by `md-export lint`",
    )
    for name in ("component", "ops", "on the CPU", "SNR dB", "at least", "compile s", "run s", "verdict"):
        table.add_column(name, justify="left" if name in ("component", "verdict") else "right")
    for item in result.components:
        table.add_row(
            item.component,
            str(item.ops),
            "-" if item.resident is None else str(item.on_cpu),
            "-" if item.parity is None else decibel(item.parity.snr_db),
            f"{item.tolerance.snr_db:g}",
            f"{item.compile_seconds:.1f}",
            f"{item.run_seconds:.2f}",
            _verdict(item),
        )
    return table


def _verdict(item: GpuComponent) -> str:
    if not item.faults:
        return "[green]all on the GPU, and right[/]"
    # The faults of the other two are a table's length.
    short = {None: "the engine failed", False: "not all on the GPU", True: escape(item.faults[0])}
    return f"[red]FAIL[/]: {short[item.resident]}"


def _findings(result: GpuResult) -> Table:
    table = Table(title="what keeps it from the GPU", show_lines=True)
    for name in ("component", "op", "module and tensor", "shape", "the engine says", "what helps"):
        table.add_column(name, overflow="fold")
    for item in result.components:
        for finding in item.findings:
            kind = finding.operator if finding.certain else f"{finding.operator}?"
            shape = "×".join(str(size) for size in finding.shape)
            where = f"{finding.module}\n{finding.tensor}"
            # Shapes in square brackets are no markup.
            table.add_row(item.component, kind, where, shape, escape(finding.reason), escape(finding.advice))
    return table
