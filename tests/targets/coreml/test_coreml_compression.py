"""Compressed weights and int8 activations: which operations hold them, what they decode to, and what is refused."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from md_export import mil
from md_export.errors import ConversionError
from md_export.mil.graph import Ref
from md_export.parity.opened_export import stored_faults
from md_export.parity.weights.audit import ComponentAudit, Ledger
from md_export.parity.weights.reference import reference_of
from md_export.spec.artifact import ArtifactEntry, Measured
from md_export.spec.scheme import QuantScheme, largest_divisor
from md_export.targets.contract import LoweringJob
from md_export.targets.coreml.stored import edit
from md_export.targets.coreml.target import CoremlModel, CoremlTarget

coreml = CoremlTarget()

BLOCKS = QuantScheme("int4", "float16", "block", block_size=16)
GROUPS = QuantScheme("palette4", "float16", "group", group_size=8)
# Scheme → oldest system, operations that hold the weights, stored type, decibels of decoded weights, of the output.
CASES = {
    "int8": (QuantScheme("int8", "float16"), "iOS18", {"constexpr_blockwise_shift_scale"}, "int8", 40, 25),
    "int4 channel": (QuantScheme("int4", "float16"), "iOS18", {"constexpr_blockwise_shift_scale"}, "int4", 15, 3),
    "int4 block": (BLOCKS, "iOS18", {"constexpr_blockwise_shift_scale"}, "int4", 16, 4),
    "palette8": (QuantScheme("palette8", "float16", "tensor"), None, {"constexpr_lut_to_dense"}, "uint8", 40, 25),
    "palette6": (QuantScheme("palette6", "float16", "tensor"), None, {"constexpr_lut_to_dense"}, "uint6", 28, 14),
    "palette4": (QuantScheme("palette4", "float16", "tensor"), None, {"constexpr_lut_to_dense"}, "uint4", 18, 4),
    "palette4 groups": (GROUPS, "iOS18", {"constexpr_lut_to_dense"}, "uint4", 18, 4),
    "palette3": (QuantScheme("palette3", "float16", "tensor"), "iOS18", {"constexpr_lut_to_dense"}, "uint3", 13, 0),
    "palette2": (QuantScheme("palette2", "float16", "tensor"), None, {"constexpr_lut_to_dense"}, "uint2", 8, -3),
    "sparse": (QuantScheme("float16", "float16", sparsity=0.1), None, {"constexpr_sparse_to_dense"}, "float16", 25, 10),
    "sparse int8": (
        QuantScheme("int8", "float16", sparsity=0.1),
        "iOS18",
        {"constexpr_sparse_to_dense", "constexpr_sparse_blockwise_shift_scale"},
        "int8",
        25,
        10,
    ),
    "sparse palette": (
        replace(GROUPS, sparsity=0.1),
        "iOS18",
        {"constexpr_sparse_to_dense", "constexpr_lut_to_sparse"},
        "uint4",
        17,
        4,
    ),
    "W8A8": (QuantScheme("int8", "int8_static"), None, {"constexpr_affine_dequantize"}, "int8", 40, 18),
    "W4A8": (
        replace(GROUPS, activations="int8_static"),
        "iOS18",
        {"constexpr_lut_to_dense", "constexpr_blockwise_shift_scale"},
        "uint4",
        17,
        4,
    ),
}
Make = Callable[..., Path]
# Operands that hold what is left of a weight, by name's end.
MAIN = (".quantized_data", ".data", ".indices", ".nonzero_data", ".indices_nonzero_data")


@pytest.fixture(scope="module")
def make(subject: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Make:
    """``make(scheme, deployment_target)``: the decoder's package; lowered once per system."""
    root = tmp_path_factory.mktemp("compression")
    lowered: dict[str | None, CoremlModel] = {}
    made: dict[tuple[QuantScheme, str | None], Path] = {}

    def get(scheme: QuantScheme, system: str | None) -> Path:
        work = root / str(len(made))
        work.mkdir(exist_ok=True)
        base = subject("vae_decoder").job
        job = replace(base, scheme=scheme, workdir=work, deployment_target=system, calibration=(base.example,))
        if system not in lowered:
            float_work = root / f"float-{system}"
            float_work.mkdir()
            half = replace(job, scheme=QuantScheme("float16", "float16"), workdir=float_work)
            lowered[system] = coreml.lower(half)
        if (scheme, system) not in made:
            path = work / "decoder.mlpackage"
            lowered[system].quantize(job).save(path)
            made[scheme, system] = path
        return made[scheme, system]

    return get


def snr_db(wanted: Any, got: Any) -> float:
    signal, error = np.asarray(wanted, np.float64), np.asarray(got, np.float64) - np.asarray(wanted, np.float64)
    return float(10 * np.log10((signal**2).sum() / max((error**2).sum(), 1e-300)))


def decoded(path: Path, example: Any) -> dict[str, Any]:
    """Module path → weight, as our runtime decodes it where a convolution takes it."""
    program = mil.load(path)
    taken = [op.args["weight"][0] for op in program.graph.ops if op.kind == "conv"]
    names = {weight.name for weight in taken if isinstance(weight, Ref)}
    computed = {out.name for op in program.graph.ops for out in op.outputs}
    return {
        name.split("_weight")[0].removeprefix("p_").replace("_", "."): value
        for name, value in program.predict(example, keep=names & computed).items()
        if name in names
    }


@pytest.mark.parametrize("case", CASES)
def test_a_scheme_is_what_the_package_holds_and_computes(case: str, make: Make, subject: Callable[..., Any]) -> None:
    scheme, system, kinds, stored, weight_db, output_db = CASES[case]
    path, decoder = make(scheme, system), subject("vae_decoder")
    found = coreml.describe(path)
    assert {kind for kind in found.ops if kind.startswith("constexpr_")} == kinds
    assert stored in found.stored
    assert ("uint1" in found.stored) == (scheme.sparsity is not None)
    weights = {name.replace("_", "."): value for name, value in decoder.job.module.state_dict().items()}
    found_weights = decoded(path, decoder.job.example)
    assert len(found_weights) + len(found.float_weights) == found.ops["conv"]
    assert min(snr_db(weights[f"{name}.weight"], value) for name, value in found_weights.items()) >= weight_db
    (expected,) = decoder.expected.values()
    (output,) = coreml.load(path).run(decoder.job.example).values()
    assert snr_db(expected, output) >= output_db


def test_fewer_bits_are_worse(make: Make, subject: Callable[..., Any]) -> None:
    """Negative control of the figures above: a scheme that did nothing would be as good as the next one."""
    decoder = subject("vae_decoder")
    (expected,) = decoder.expected.values()
    order = ("palette8", "palette6", "palette4", "palette2")
    figures = [
        snr_db(expected, next(iter(coreml.load(make(*CASES[case][:2])).run(decoder.job.example).values())))
        for case in order
    ]
    assert figures == sorted(figures, reverse=True)
    assert figures[0] - figures[-1] > 15


def test_sparse_weights_hold_as_many_values_as_asked_for(make: Make) -> None:
    stored = coreml.describe(make(*CASES["sparse int8"][:2])).stored
    assert stored["int8"] / (8 * stored["uint1"]) == pytest.approx(0.9, abs=0.01)


def test_a_large_weight_is_sparse_too(small_job: Callable[..., LoweringJob], tmp_path: Path) -> None:
    """More elements than float16 can count, with which coremltools' own percentile is NaN."""
    job = small_job(nn.Linear(300, 300), QuantScheme("float16", "float16", sparsity=0.5), width=300, out_shape=(1, 300))
    coreml.lower(job).quantize(job).save(tmp_path / "x.mlpackage")
    (weight,) = [item for item in coreml.stored_weights(tmp_path / "x.mlpackage", job.scheme) if item.values.ndim == 2]
    assert weight.kept is not None and weight.kept.mean() == pytest.approx(0.5, abs=0.01)


def test_the_same_scheme_gives_the_same_bytes(subject: Callable[..., Any], tmp_path: Path) -> None:
    files = []
    for run in ("a", "b"):
        (tmp_path / run).mkdir()
        job = replace(subject("text_encoder").job, scheme=GROUPS, workdir=tmp_path / run, deployment_target="iOS18")
        coreml.lower(job).quantize(job).save(tmp_path / f"{run}.mlpackage")
        files.append(
            [file.read_bytes() for file in sorted((tmp_path / f"{run}.mlpackage").rglob("*.*")) if file.is_file()]
        )
    assert files[0] == files[1]


def test_int8_activations_reach_every_convolution(make: Make) -> None:
    assert coreml.describe(make(*CASES["W8A8"][:2])).int8_inputs == 1
    assert coreml.describe(make(*CASES["int8"][:2])).int8_inputs == 0


def test_tables_are_int8_where_activations_are(make: Make) -> None:
    found = coreml.describe(make(*CASES["W4A8"][:2]))
    assert found.stored["int8"] > 0
    assert "int8" not in coreml.describe(make(*CASES["palette4 groups"][:2])).stored


def audited(path: Path, scheme: QuantScheme, module: nn.Module) -> ComponentAudit:
    ledger = Ledger(reference_of("vae_decoder", module), scheme)
    for weight in coreml.stored_weights(path, scheme):
        ledger.add(weight)
    return ledger.close(entry_of(path, scheme))


@pytest.mark.parametrize("case", CASES)
def test_stored_weights_are_the_modules_within_the_schemes_rounding(
    case: str, make: Make, subject: Callable[..., Any]
) -> None:
    scheme, system = CASES[case][:2]
    found = audited(make(scheme, system), scheme, subject("vae_decoder").job.module)
    assert found.faults == ()
    assert found.as_requested == found.promised > 0
    # Each byte once; the file has headers besides, and the program small constants of its own.
    held = {dtype: size for dtype, size in coreml.describe(make(scheme, system)).stored.items() if dtype != "float16"}
    assert {dtype: found.stored[dtype] for dtype in held} == pytest.approx(held, rel=0.1)
    # The rest are sizes, axes and pads.
    assert all(constant.dtype in ("int32", "bool") or constant.bytes < 64 for constant in found.unmatched)


@pytest.mark.parametrize("case", CASES)
def test_a_damaged_weight_is_not_within_it(case: str, make: Make, subject: Callable[..., Any], tmp_path: Path) -> None:
    scheme, system = CASES[case][:2]
    path = shutil.copytree(make(scheme, system), tmp_path / "x.mlpackage")
    with edit(path) as constants:
        weight = max((item for item in constants if item.name.endswith(MAIN)), key=lambda item: item.values.nbytes)
        block = weight.values.reshape(-1).view(np.uint8)[:64]
        block[...] = np.invert(block)
    found = audited(path, scheme, subject("vae_decoder").job.module)
    assert len(found.faults) == 1
    assert re.search(r"values are off|holds NaN", found.faults[0])


@pytest.mark.parametrize(("case", "least"), [("palette6", 0.25), ("palette4 groups", 0.25), ("palette4", 0.25)])
def test_a_moved_palette_entry_is_not_the_mean(
    case: str, least: float, make: Make, subject: Callable[..., Any], tmp_path: Path
) -> None:
    """By a quarter of the distance to the next one, which every member of it follows."""
    scheme, system = CASES[case][:2]
    path = shutil.copytree(make(scheme, system), tmp_path / "x.mlpackage")
    with edit(path) as constants:
        table = max((item for item in constants if item.role == "palette"), key=lambda item: item.values.nbytes)
        entries = table.values.reshape(-1)[: 2**4 if scheme.group_size else None]
        middle = len(entries) // 2
        entries[middle] += least * (entries[middle + 1] - entries[middle])
    (fault,) = audited(path, scheme, subject("vae_decoder").job.module).faults
    assert "values are off" in fault or "1 palette entries are not the mean" in fault


def faults(path: Path, scheme: QuantScheme) -> str:
    """What ``verify`` says of a package that is listed as of this scheme."""
    return "; ".join(stored_faults(entry_of(path, scheme), scheme, coreml.describe(path)))


def entry_of(path: Path, scheme: QuantScheme) -> ArtifactEntry:
    found, done = coreml.describe(path), Measured(0, 0)
    return ArtifactEntry(
        "vae_decoder", path.name, "", 0, scheme.weights, scheme.activations, found.stored, found.ops, (), (), (), done
    )


@pytest.mark.parametrize("case", CASES)
def test_what_is_stored_is_what_was_asked_for(case: str, make: Make) -> None:
    scheme, system = CASES[case][:2]
    assert faults(make(scheme, system), scheme) == ""


@pytest.mark.parametrize(
    ("asked", "inside", "message"),
    [
        ("palette4", "sparse", "palette4 was requested, but only 0%"),
        ("palette4", "palette8", "palette4 was requested, but only 0%"),
        ("palette4 groups", "palette6", "palette4 was requested, but only 0%"),
        ("palette8", "palette4", "palette8 was requested, but only 0%"),
        ("int4 block", "int8", "int4 was requested, but only 0%"),
        ("int8", "int4 block", "int8 was requested, but only 0%"),
        ("sparse int8", "int8", "a sparsity of 0.1 was requested"),
        ("sparse", "sparse palette", "float16 was requested"),
        ("W8A8", "int8", "int8 activations were requested, but only 0%"),
    ],
)
def test_another_scheme_inside_is_a_fault(asked: str, inside: str, message: str, make: Make) -> None:
    assert message in faults(make(*CASES[inside][:2]), CASES[asked][0])


class TwoSteps(nn.Module):
    """Two linears that share an input, and one behind an activation."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.third(nn.functional.silu(self.first(x) + self.second(x)))
        return out


def two_steps(small_job: Callable[..., LoweringJob], scheme: QuantScheme, *inputs: float) -> LoweringJob:
    calibration = tuple({"x": np.full((1, 64), value, np.float32)} for value in inputs)
    return replace(small_job(TwoSteps(), scheme, width=64), calibration=calibration, deployment_target="iOS18")


@pytest.mark.parametrize("scheme", [QuantScheme("int8", "int8_static"), GROUPS, replace(BLOCKS, sparsity=0.5)])
def test_kept_modules_stay_float_in_weights_and_activations(
    scheme: QuantScheme, small_job: Callable[..., LoweringJob], tmp_path: Path
) -> None:
    job = two_steps(small_job, replace(scheme, keep_float=("third",)), -1.0, 1.0)
    coreml.lower(job).quantize(job).save(tmp_path / "x.mlpackage")
    found = coreml.describe(tmp_path / "x.mlpackage")
    assert [name.removesuffix("_to_fp16") for name in found.float_weights] == ["p_third_weight"]
    if scheme.activations == "int8_static":
        assert found.int8_inputs == pytest.approx(2 / 3)
        # One for the input that two linears share, and one behind each of them.
        assert found.ops["quantize"] == found.ops["dequantize"] == 3


@pytest.mark.parametrize("order", [(5.0, 1.0), (1.0, 5.0)])
def test_ranges_are_those_of_all_calibration_inputs(
    order: tuple[float, float], small_job: Callable[..., LoweringJob], tmp_path: Path
) -> None:
    """coremltools' own function lets the last sample alone decide."""
    job = two_steps(small_job, QuantScheme("int8", "int8_static"), *order)
    coreml.lower(job).quantize(job).save(tmp_path / "x.mlpackage")
    program = mil.load(tmp_path / "x.mlpackage")
    first = next(op for op in program.graph.ops if op.kind == "quantize")
    (kept,) = [out.name for out in first.outputs]
    reached = program.predict({"x": np.full((1, 64), 5.0, np.float32)}, keep=[kept])[kept]
    assert int(reached.max()) == 127


def test_a_weight_that_a_palette_would_enlarge_stays_float(
    small_job: Callable[..., LoweringJob], tmp_path: Path
) -> None:
    job = small_job(nn.Linear(8, 8), QuantScheme("palette8", "float16", "tensor"), width=8)
    coreml.lower(job).quantize(job).save(tmp_path / "x.mlpackage")
    assert len(coreml.describe(tmp_path / "x.mlpackage").float_weights) == 1


@pytest.mark.parametrize(
    ("scheme", "message"),
    [
        (QuantScheme("int4", "float16"), "int4 needs iOS 18"),
        (replace(BLOCKS, weights="int8"), "a scale per block needs iOS 18"),
        (QuantScheme("palette3", "float16", "tensor"), "a palette of 3 bits needs iOS 18"),
        (GROUPS, "a table per group needs iOS 18"),
        (QuantScheme("palette6", "int8_static", "tensor"), "a table of int8 needs iOS 18"),
        (QuantScheme("int8", "float16", sparsity=0.5), "sparse int8 needs iOS 18"),
    ],
)
def test_what_needs_ios18_says_how_to_get_it(
    scheme: QuantScheme, message: str, small_job: Callable[..., LoweringJob]
) -> None:
    job = small_job(nn.Linear(4, 4), scheme)
    for system in (None, "iOS17"):
        with pytest.raises(ConversionError, match=f'part: {message}; set deployment_target = "iOS18" in the recipe'):
            coreml.lower(replace(job, deployment_target=system))


@pytest.mark.parametrize(
    "scheme",
    [
        QuantScheme("float16", "int8_static"),
        QuantScheme("float32", "float16"),
        QuantScheme("palette6", "int8_dynamic", "tensor"),
        QuantScheme("palette2", "int8_static", "tensor"),
    ],
)
def test_pairs_that_core_ml_has_not_are_refused(scheme: QuantScheme, small_job: Callable[..., LoweringJob]) -> None:
    with pytest.raises(ConversionError, match=r"part: Core ML has no scheme .* choose weights/activations from"):
        coreml.lower(replace(small_job(nn.Linear(4, 4), scheme), deployment_target="iOS18"))


def test_int8_activations_need_calibration(small_job: Callable[..., LoweringJob]) -> None:
    job = small_job(nn.Linear(64, 64), QuantScheme("int8", "int8_static"), width=64)
    with pytest.raises(ConversionError, match="int8_static needs calibration inputs"):
        coreml.lower(job).quantize(job)


def test_activations_that_overflow_are_no_range(small_job: Callable[..., LoweringJob]) -> None:
    job = two_steps(small_job, QuantScheme("int8", "int8_static"), float("inf"))
    with pytest.raises(ConversionError, match="has no int8 scale"):
        coreml.lower(job).quantize(job)


@pytest.mark.parametrize(
    ("channels", "wanted", "found"), [(96, 32, 32), (80, 32, 20), (48, 32, 24), (617, 16, 617), (8, 32, 8)]
)
def test_blocks_fit_the_channels(channels: int, wanted: int, found: int) -> None:
    assert largest_divisor(channels, wanted) == found
