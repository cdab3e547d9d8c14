"""Tables of verdicts for every runtime: figures with the recipe's thresholds, and details of the engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Final

from rich.table import Table

from md_export.parity.verdict import ComponentVerdict, Engine, Verdict
from md_export.report.tables import Cells, decibel, drawn, markdown_row, said, spelled_shape

if TYPE_CHECKING:
    from md_export.parity.device.results import DeviceReport
    from md_export.parity.gpu import GpuDetails
    from md_export.parity.npu.verify import NpuDetails
    from md_export.parity.runtimes import KernelDetails, OpDisagreement
    from md_export.targets.tflite.gpu.residency import OpFinding

# Heading of a column, and its cell for one component.
Column = tuple[str, Callable[[ComponentVerdict[Engine]], str]]

_GPU: Final[tuple[Column[GpuDetails], ...]] = (
    ("values", lambda item: _answer(item.engine.correct, "right", "WRONG")),
    ("resident", lambda item: _answer(item.engine.resident, "all", "NOT all")),
    ("ops", lambda item: str(item.engine.ops)),
    ("on the CPU", lambda item: "-" if item.engine.resident is None else str(item.engine.on_cpu)),
    ("compile s", lambda item: f"{item.engine.compile_seconds:.1f}"),
    ("run s", lambda item: f"{item.engine.run_seconds:.2f}"),
)
_NPU: Final[tuple[Column[NpuDetails], ...]] = (
    ("on the NPU", lambda item: _all(item.engine.nodes)),
    ("context MB", lambda item: f"{item.engine.context_bytes / 1e6:.2f}"),
    ("compile s", lambda item: f"{item.engine.compile_seconds:.1f}"),
    ("GB", lambda item: f"{item.engine.compile_bytes / 1e9:.2f}"),
    ("run", lambda item: item.engine.extent),
    ("run s", lambda item: f"{item.engine.run_seconds:.2f}"),
)
# SNR of the prompt's effect, and the recipe's threshold.
_GUIDANCE: Final = "guidance dB"
_DEVICE: Final[tuple[Column[None], ...]] = (
    ("cosine", lambda item: f"{item.parity.cosine:.6f}" if item.parity else "-"),
    ("max error", lambda item: f"{item.parity.max_abs:.2e}" if item.parity else "-"),
)
_KERNELS: Final[tuple[Column[KernelDetails], ...]] = (
    ("kernels", lambda item: item.engine.kernels),
    ("against LiteRT", lambda item: decibel(item.engine.agreement_db)),
)
# Columns of docs/devices.md.
_DEVICE_WORDS: Final = ("device", "OS", "GPU driver", "runtime", "backend")
DEVICE_HEAD: Final = (*_DEVICE_WORDS, "recipe", "cases", "SNR dB", "verdict", "date")


def parity_table(verdict: Verdict) -> Table:
    """Return one row per component and one for the picture, with each figure and its threshold."""
    title = f"{verdict.recipe}: parity on {verdict.cases} golden cases (worst case of each figure)"
    return drawn(title, *parity_cells(verdict))


def parity_cells(verdict: Verdict) -> Cells:
    """Return the parity table as plain text."""
    return verdict_cells([verdict], ())


def gpu_tables(verdict: Verdict[GpuDetails]) -> Iterator[Table]:
    """Yield residency and figures of each component; then the ops to blame, if there are any."""
    adapters = ", ".join(sorted({item.engine.adapter for item in verdict.components}))
    yield drawn(
        f"{verdict.recipe}: LiteRT's GPU engine on {adapters}, {verdict.cases} golden cases",
        *verdict_cells([verdict], _GPU),
        caption="values and residency are separate results; passing is necessary, not sufficient: this is one "
        "version and one backend of the engine, in float32. `md-export lint` lists known faults of others and bounds "
        "errors and overflows of float16 arithmetic on a phone",
    )
    head = ("component", "op", "module and tensor", "shape", "engine message", "what to do")
    rows = []
    for item in verdict.components:
        for one in item.engine.findings:
            kind = one.operator + ("" if one.certain else "?")
            rows.append((item.component, kind, _where(one), spelled_shape(one.shape), one.reason, one.advice))
    yield from _if_any("ops that keep it from the GPU", head, rows)


def device_table(report: DeviceReport) -> Table:
    """Return the figures of each component on a real device."""
    device, verdict = report.device, report.verdict
    return drawn(
        f"{verdict.recipe}: {device.device}, {report.extent} golden cases (worst case of each figure)",
        *verdict_cells([verdict], _DEVICE),
        caption=f"{device.os}; GPU driver: {device.driver}; {device.date}",
    )


def device_row(report: DeviceReport) -> str:
    """Return a row of the Markdown table with :data:`DEVICE_HEAD`."""
    device, verdict = report.device, report.verdict
    figures = [
        f"{item.component} {decibel(item.parity.snr_db if item.parity else None)}" for item in verdict.components
    ]
    short = [f"{item.component} {said(item.faults, brief=True)}" for item in verdict.components if item.faults]
    cells = (device.device, device.os, device.driver, device.runtime, device.backend, verdict.recipe, report.extent)
    return markdown_row((*cells, ", ".join(figures), "; ".join(short) or "ok", device.date[:10]))


def npu_tables(verdicts: Sequence[Verdict[NpuDetails]]) -> Iterator[Table]:
    """Yield placement and figures of each component and phone; then its blocks and the operations left to the CPU."""
    yield drawn(
        f"{verdicts[0].recipe}: Qualcomm's simulator of the Hexagon NPU, {verdicts[0].cases} golden cases",
        *verdict_cells(verdicts, _NPU),
        caption="seconds and memory are those of the compiler and the simulator, not of a phone",
    )
    found = [(verdict.runtime, item) for verdict in verdicts for item in verdict.components]
    yield from (_blocks(phone, item) for phone, item in found if item.engine.blocks)
    rows = []
    for phone, item in found:
        for op in item.engine.refused:
            modules = "\n".join(name or "the component itself" for name in op.modules) or "?"
            rows.append((item.component, phone, op.operator, modules, op.node))
    yield from _if_any("operations left to the CPU", ("component", "runtime", "operation", "module", "node"), rows)


def runtimes_tables(verdicts: Sequence[Verdict[KernelDetails]]) -> Iterator[Table]:
    """Yield the figures of each component in each set of kernels; then the ops to blame, if there are any."""
    title = f"{verdicts[0].recipe}: other runtimes on {verdicts[0].cases} golden cases (worst case)"
    yield drawn(title, *verdict_cells(verdicts, _KERNELS))
    rows = [
        (item.component, verdict.runtime, one.operator, _where(one), spelled_shape(one.shape), decibel(one.snr_db))
        for verdict in verdicts
        for item in verdict.components
        for one in item.engine.findings
    ]
    head = ("component", "runtime", "op", "module and tensor", "shape", "SNR dB")
    yield from _if_any("ops that differ from LiteRT with XNNPACK on the same inputs", head, rows)


def _answer(found: bool | None, yes: str, no: str) -> str:
    """Return the words for an answer; "-" if the engine failed."""
    return "-" if found is None else yes if found else no


def verdict_cells(verdicts: Sequence[Verdict[Engine]], columns: Sequence[Column[Engine]]) -> Cells:
    """Return one row per component and one for the picture, for each verdict.

    Args:
        columns: details of the engine. Without columns, each row has all figures and all faults, and the picture has a
            row even if it was not judged.
    """
    named = any(verdict.runtime for verdict in verdicts)
    figures = ("SNR dB", "at least", "PSNR dB", "cosine", "max error")[: 3 if columns else 5]
    parities = [item.parity for verdict in verdicts for item in verdict.components if item.parity]
    guided = [_GUIDANCE] if any(parity.guidance_snr_db is not None for parity in parities) else []
    head = ("component", *(["runtime"] if named else []), *figures, *guided, *(name for name, _ in columns), "verdict")
    rows = []
    for verdict in verdicts:
        runtime = {"runtime": verdict.runtime}
        for item in verdict.components:
            engine = {name: cell(item) for name, cell in columns}
            cells = {"component": item.component, **runtime, **_figures(item), **engine}
            rows.append({**cells, "verdict": said(item.faults, brief=bool(columns))})
        if verdict.picture:
            figure, least = decibel(verdict.picture.psnr_db), f"{verdict.picture.least_psnr_db:g} (PSNR)"
            cells = {"component": "picture", **runtime, "at least": least, "PSNR dB": figure}
            rows.append({**cells, "verdict": said(verdict.picture.faults, brief=bool(columns))})
        elif not columns:
            rows.append({"component": "picture", "verdict": "not judged: the export lacks a component"})
    return Cells(head, tuple(tuple(row.get(name, "-") for name in head) for row in rows))


def _figures(item: ComponentVerdict[Engine]) -> dict[str, str]:
    least = {"at least": f"{item.tolerance.snr_db:g}"}
    if item.parity is None:
        return least
    snr, psnr = decibel(item.parity.snr_db), decibel(item.parity.psnr_db)
    others = {"cosine": f"{item.parity.cosine:.6f}", "max error": f"{item.parity.max_abs:.2e}"}
    if item.parity.guidance_snr_db is not None:
        others[_GUIDANCE] = f"{decibel(item.parity.guidance_snr_db)} ({item.tolerance.guidance_snr_db:g})"
    return {**least, "SNR dB": snr, "PSNR dB": psnr, **others}


def _blocks(phone: str, item: ComponentVerdict[NpuDetails]) -> Table:
    blocks = item.engine.blocks
    worst = min((block.snr_db for block in blocks if block.snr_db is not None), default=None)
    rows = [
        (
            block.title,
            _all(block.nodes),
            f"{block.compile_seconds:.1f}",
            f"{block.peak_bytes / 1e9:.2f}",
            f"{block.run_seconds:.2f}",
            decibel(block.snr_db),
            said(block.faults, brief=True) + (" (the least)" if worst is not None and block.snr_db == worst else ""),
        )
        for block in blocks
    ]
    return drawn(
        f"{item.component} on {phone}, block by block ({item.engine.why})",
        ("modules", "on the NPU", "compile s", "GB", "run s", "SNR dB", "verdict"),
        rows,
        caption="SNR of each block alone, against float32 on the same inputs; inputs come from earlier blocks.\n"
        "The component's figure has the errors of all blocks. Optimizations across the cuts are not covered.",
    )


def _where(op: OpFinding | OpDisagreement) -> str:
    return f"{op.module}\n{op.tensor}"


def _all(nodes: int) -> str:
    return f"all {nodes}" if nodes else "-"


def _if_any(title: str, head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Iterator[Table]:
    """Yield a table of ops with lines between the rows, if there are any."""
    if rows:
        yield drawn(title, head, rows, lines=True)
