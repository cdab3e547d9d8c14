"""Tables of what GPU engine, NPU, other runtimes and the self-test found."""

from __future__ import annotations

from itertools import groupby
from typing import Final

from rich.markup import escape
from rich.table import Table

from md_export.parity.gpu import GpuComponent, GpuResult
from md_export.parity.npu.verdict import NpuComponent, NpuResult
from md_export.parity.runtimes import RuntimesResult
from md_export.parity.selftest.command import SelfTest
from md_export.parity.selftest.run import Row
from md_export.parity.selftest.table import Hashes
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
            _verdict_npu(item),
        )
    for soc, picture in result.pictures.items():
        figure = "-" if picture.psnr_db is None else decibel(picture.psnr_db)
        verdict = f"[red]FAIL[/]: {escape(picture.faults[0])}" if picture.faults else "[green]ok[/]"
        table.add_row("picture", soc, "", "", "", "", figure, f"{picture.least_psnr_db:g} (PSNR)", "", "", verdict)
    return table


def _verdict_npu(item: NpuComponent) -> str:
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


def runtimes_tables(result: RuntimesResult) -> tuple[Table, ...]:
    """Figures of each component in each set of kernels; then the ops to blame, if there are any."""
    tables = (_figures_runtimes(result),)
    return (*tables, _findings_runtimes(result)) if any(item.findings for item in result.verdicts) else tables


def _figures_runtimes(result: RuntimesResult) -> Table:
    table = Table(title=f"{result.recipe}: other runtimes on {result.cases} golden cases (worst case)")
    for name in ("component", "runtime", "kernels", "SNR dB", "against LiteRT", "at least", "verdict"):
        table.add_column(name, justify="right" if name in ("SNR dB", "against LiteRT", "at least") else "left")
    for item in result.verdicts:
        table.add_row(
            item.component,
            item.runtime,
            item.kernels,
            "-" if item.parity is None else decibel(item.parity.snr_db),
            "-" if item.agreement_db is None else decibel(item.agreement_db),
            f"{item.tolerance.snr_db:g}",
            f"[red]FAIL[/]: {escape(item.faults[0])}" if item.faults else "[green]ok[/]",
        )
    return table


def _findings_runtimes(result: RuntimesResult) -> Table:
    table = Table(title="the same inputs, other results than LiteRT with XNNPACK", show_lines=True)
    for name in ("component", "runtime", "op", "module and tensor", "shape", "SNR dB"):
        table.add_column(name, overflow="fold")
    for item in result.verdicts:
        for found in item.findings:
            shape = "×".join(str(size) for size in found.shape)
            where = f"{found.module}\n{found.tensor}"
            table.add_row(item.component, item.runtime, found.operator, where, shape, decibel(found.snr_db))
    return table


_HEAD: Final = ("mutation", "of", "component", *Hashes)


def self_test_table(result: SelfTest) -> Table:
    """One row per mutation: for each state of the hashes that was tried, the check that noticed."""
    rejected, skipped = (sum(row.verdict == name for row in result.rows) for name in ("rejected", "not applicable"))
    table = Table(title=f"{result.recipe}: {rejected} rejected, {skipped} not applicable, {result.seconds:.0f} s")
    for name in _HEAD:
        table.add_column(name, no_wrap=name == _HEAD[0])
    for cells, colour in _mutations(result):
        table.add_row(*(f"[{colour}]{escape(cell)}[/]" if cell else "" for cell in cells))
    return table


def _mutations(result: SelfTest) -> list[tuple[tuple[str, ...], str]]:
    return [_mutation(list(rows)) for _, rows in groupby(result.rows, key=lambda row: (row.mutation, row.of))]


def _mutation(rows: list[Row]) -> tuple[tuple[str, ...], str]:
    """Cells and their colour."""
    first = rows[0]
    about = (first.mutation, first.of, first.component)
    if all(row.verdict == "not applicable" for row in rows):
        return (*about, f"not applicable: {first.said}"), "dim"
    by_hashes = {row.hashes: _noticed(row) for row in rows} if first.expected else {Hashes.KEPT: _noticed(first)}
    cells = (*about, *(by_hashes.get(hashes, "") for hashes in Hashes))
    return cells, "green" if all(row.passed for row in rows) else "red"


def _noticed(row: Row) -> str:
    if row.passed:
        return row.expected or row.verdict
    noticed = ", ".join(row.caught_by) or "nothing"
    return f"{row.verdict}: {noticed} noticed" + (f", {row.expected} was to" if row.expected else "")
