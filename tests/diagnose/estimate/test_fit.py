"""The data files, and the fit: it finds what made its rows, and rows held out are not seen."""

from __future__ import annotations

import dataclasses
import math
from typing import Final

import pytest

from md_export.checkpoint import build_on_meta
from md_export.checkpoint.architectures import arch_config
from md_export.diagnose.estimate.devices import Constants, Device, Fit, Knowledge, Latency, fit, fit_of, knowledge
from md_export.diagnose.estimate.roofline import floor_of, seconds_of
from md_export.diagnose.inspect import count_macs
from md_export.errors import UsageError
from md_export.models.families import COMPONENTS
from recorded_operations import record

KNOWN: Final = knowledge()
UNITS: Final = tuple(dict.fromkeys(device.unit.title for device in KNOWN.devices.values()))
TARGETS_READ: Final = ("coreml", "tflite", "onnx")


def milliseconds(known: Knowledge, row: Latency, constants: Constants) -> float:
    """Operation by operation, by the function that estimates artifacts."""
    ops = [(op.cost(row.weight_bits, row.arithmetic), op.number) for op in known.peers[row.peer]]
    return 1e3 * sum(number * seconds_of(op, known.devices[row.device], constants) for op, number in ops)


def of_unit(title: str) -> dict[str, Device]:
    return {name: device for name, device in KNOWN.devices.items() if device.unit.title == title}


# Data


def test_every_number_has_a_source() -> None:
    for device in KNOWN.devices.values():
        assert device.peak_source and device.bandwidth_source and device.unit.float32_source
        assert device.bandwidth > 0 and min(device.peak.values()) > 0
    for row in KNOWN.latencies:
        assert row.source.startswith(("arXiv", "https://")), row
        assert row.device in KNOWN.devices and row.peer in KNOWN.peers and row.ms > 0


def test_table_4_is_the_papers() -> None:
    table = {row.peer: row.ms for row in KNOWN.latencies if "2311.16567, table 4" in row.source}
    assert (table["md/text_encoder"], table["md/unet"], table["md/vae_decoder"]) == (4, 142, 92)
    assert table["md/text_encoder"] + 20 * table["sd15/unet"] + table["sd15/vae_decoder"] == 7429
    assert table["md/text_encoder"] + 8 * table["snapfusion/unet"] + table["snapfusion/vae_decoder"] == 1740


def test_every_target_that_is_read_has_a_device() -> None:
    assert {target for device in KNOWN.devices.values() for target in device.unit.targets} == set(TARGETS_READ)


def test_an_unknown_device() -> None:
    with pytest.raises(UsageError, match=r"unknown device 'nokia'; known: iphone15pro,.*galaxy-s24"):
        KNOWN.device("nokia")


@pytest.mark.parametrize("component", ["text_encoder", "vae_decoder", "unet"])
def test_the_recorded_peers_are_the_counters(component: str) -> None:
    """peers.json of our own architecture, recorded again, and its multiply-adds by inspect's counter."""
    import torch

    config, entry = arch_config("md"), COMPONENTS[component]
    inputs = [
        torch.empty(spec.shape, dtype=getattr(torch, spec.dtype), device="meta") for spec in entry.input_specs(config)
    ]
    module = build_on_meta(entry, config).to("meta").eval()
    ops, peer = record(module, inputs), KNOWN.peers[f"md/{component}"]
    assert sum(op.macs for op in ops) == sum(row.macs * row.number for row in peer) == count_macs(module, *inputs)[0]
    assert sum(op.weights for op in ops) == sum(row.weights * row.number for row in peer)
    assert sum(op.activation_bytes for op in ops) == 4 * sum(row.activations * row.number for row in peer)
    assert len(ops) == sum(row.number for row in peer)


# Fit


@pytest.mark.parametrize("unit", UNITS)
def test_rows_are_no_shorter_than_physics(unit: str) -> None:
    """A published latency below the floor would show a wrong peak, a wrong peer or a wrong count."""
    for row in fit_of(unit).rows:
        latency = row.latency
        kinds = [(op.cost(latency.weight_bits, latency.arithmetic), op.number) for op in KNOWN.peers[latency.peer]]
        floor = floor_of([op for op, number in kinds for _ in range(number)], KNOWN.devices[latency.device]).ms
        assert floor <= latency.ms and floor <= row.fitted and floor <= row.without_row, latency


@pytest.mark.parametrize("unit", UNITS)
def test_a_row_is_the_sum_of_its_operations(unit: str) -> None:
    found = fit_of(unit)
    for row in found.rows:
        assert row.fitted == pytest.approx(milliseconds(KNOWN, row.latency, found.constants))


@pytest.mark.parametrize("unit", UNITS)
def test_a_row_that_was_held_out_is_not_seen(unit: str) -> None:
    """However wrong a row is, it does not change its own estimate; it changes those of others, or the fit is blind."""
    devices, place = of_unit(unit), next(i for i, row in enumerate(KNOWN.latencies) if row.device in of_unit(unit))
    wrong = [dataclasses.replace(row, ms=row.ms * 50) if i == place else row for i, row in enumerate(KNOWN.latencies)]
    before, after = fit_of(unit), fit(dataclasses.replace(KNOWN, latencies=tuple(wrong)), devices)
    assert after.rows[0].without_row == before.rows[0].without_row
    assert after.rows[0].without_device == before.rows[0].without_device
    assert after.factor(1.0) > before.factor(1.0)


@pytest.mark.parametrize("unit", UNITS)
def test_a_row_that_is_only_compared_does_not_count(unit: str) -> None:
    changed = [row if row.fit else dataclasses.replace(row, ms=row.ms * 50) for row in KNOWN.latencies]
    assert fit(dataclasses.replace(KNOWN, latencies=tuple(changed)), of_unit(unit)).constants == fit_of(unit).constants


@pytest.mark.parametrize("unit", UNITS)
def test_the_fit_finds_the_constants_that_made_its_rows(unit: str) -> None:
    truth = fit_of(unit).constants
    made = [
        dataclasses.replace(row, ms=milliseconds(KNOWN, row, truth)) if row.device in of_unit(unit) else row
        for row in KNOWN.latencies
    ]
    found = fit(dataclasses.replace(KNOWN, latencies=tuple(made)), of_unit(unit))
    assert found.constants == truth
    assert found.factor(1.0) < 1.35, "rows held out of a consistent table are off by the grid and no more"


def test_the_errors_that_the_manual_states() -> None:
    """docs/estimate.md; a change of data or method that worsens them must be told there."""
    apple, hexagon = (fit_of(unit) for unit in UNITS)
    assert (apple.factor(0.5), apple.factor(0.8)) < (1.15, 1.76) and apple.factor(1.0) < 2.7
    assert (hexagon.factor(0.5), hexagon.factor(0.8)) < (1.21, 1.68) and hexagon.factor(1.0) < 2.1


def test_a_factor_counts_both_ways() -> None:
    row = fit_of(UNITS[0]).rows[0]
    rows = [dataclasses.replace(row, without_row=row.latency.ms * factor) for factor in (0.5, 1.0, 1.1)]
    found = Fit(fit_of(UNITS[0]).constants, tuple(rows))
    assert found.factor(1.0) == pytest.approx(2.0) and math.isclose(found.factor(0.5), 1.1)
