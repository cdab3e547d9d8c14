"""What 4-bit weights rest on: what the audit, the GPU engine and LiteRT's own kernels make of them."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path

import pytest

from md_export.checkpoint import open_checkpoint
from md_export.parity.golden.folder import read_golden
from md_export.parity.gpu import run_on_gpu
from md_export.parity.metrics import compare
from md_export.parity.weights.audit import ComponentAudit, Ledger
from md_export.parity.weights.reference import Reference, prepare_reference
from md_export.spec.artifact import GOLDEN_FOLDER
from md_export.spec.manifest import read_manifest
from md_export.spec.recipe import QuantScheme, Recipe
from md_export.spec.recipe_file import load_recipe
from md_export.spec.shipped_files import builtin_recipe
from md_export.spec.tensors import Array
from md_export.targets import TARGETS
from md_export.targets.lint.judge import fits as fits_op
from md_export.targets.lint.rules import rules_of
from md_export.targets.lowering import quiet
from md_export.targets.operations import Op, Value
from planted import COMPONENT
from support import Exported
from tflite_models import Quantized

target = TARGETS["tflite"].open()
LIMIT_S = 120.0
Quantize = Callable[[str, Recipe], Quantized]


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return load_recipe(builtin_recipe("tflite", "int4"))


def audited(made: Path, reference: Reference, scheme: QuantScheme, out: Path) -> ComponentAudit:
    """The books of a file that is no export of its own; ``out`` lends it a manifest's entry."""
    ledger = Ledger(reference, scheme)
    for weight in target.stored_weights(made, scheme):
        ledger.add(weight)
    return ledger.close(read_manifest(out).entry_for("vae_decoder"))


@pytest.mark.slow
def test_the_audit_holds_each_module_against_its_own_rule(
    recipe: Recipe, quantized: Quantize, exported: Exported, nano: Path
) -> None:
    made, out = quantized("vae_decoder", recipe).path, exported("tflite", "fp32")
    reference, scheme = (
        prepare_reference(open_checkpoint(nano), recipe, "vae_decoder", nano / "golden"),
        recipe.schemes["vae_decoder"],
    )
    found = audited(made, reference, scheme, out)
    assert found.faults == ()
    assert found.as_requested == found.promised
    assert found.proven_share > 0.99
    faults = audited(made, reference, dataclasses.replace(scheme, rules=()), out).faults
    assert any("decoder.conv_out.weight is stored as int8, int4 was requested" in fault for fault in faults)


def on_gpu(path: Path, nano: Path) -> tuple[float, str]:
    """SNR in dB of a text encoder on the first golden case, and the note on where it ran."""
    case = read_golden(nano / GOLDEN_FOLDER).cases[0]
    made, note = run_on_gpu(path, case.inputs("text_encoder"), LIMIT_S)
    return compare(made["last_hidden_state"], case.output("text_encoder", "last_hidden_state")).snr_db, note


@pytest.mark.slow
@pytest.mark.usefixtures("gpu_driver")
def test_the_engine_takes_four_bits_and_computes_with_them(recipe: Recipe, quantized: Quantize, nano: Path) -> None:
    made = quantized("text_encoder", recipe)
    assert "int4" in target.describe(made.path).stored
    snr_db, note = on_gpu(made.path, nano)
    assert snr_db >= recipe.tolerances["text_encoder"].snr_db
    assert ", 0 on the CPU" in note


@pytest.mark.slow
@pytest.mark.usefixtures("gpu_driver")
def test_a_table_has_a_scale_for_each_row_for_the_engine_reads_zeros_else(
    recipe: Recipe, quantized: Quantize, exported: Exported, nano: Path, tmp_path: Path
) -> None:
    scheme = QuantScheme("int8", "int8_dynamic", "tensor")
    ours = dataclasses.replace(recipe, name="tensor", schemes=dict.fromkeys(recipe.schemes, scheme))
    snr_db, _ = on_gpu(quantized("text_encoder", ours).path, nano)
    assert snr_db >= 40
    table = tmp_path / "text_encoder.tflite"
    narrowed(exported("tflite", "fp32") / "text_encoder.tflite", table, "EMBEDDING_LOOKUP", "dynamic", "TENSORWISE", 8)
    assert on_gpu(table, nano)[0] < 15


def narrowed(source: Path, path: Path, operation: str, how: str, granularity: str, bits: int) -> None:
    """What the quantizer makes of one kind of operation, be it right or not."""
    from ai_edge_quantizer.qtyping import QuantGranularity, TFLOperationName
    from ai_edge_quantizer.quantizer import Quantizer

    quantizer = Quantizer(str(source))
    add = quantizer.add_dynamic_config if how == "dynamic" else quantizer.add_weight_only_config
    add(".*", TFLOperationName(operation), num_bits=bits, granularity=QuantGranularity[granularity])
    with quiet(), redirect_stderr(io.StringIO()):
        quantizer.quantize(None, serialize_to_path=str(path), enable_progress_bar=False, enable_progress_report=False)


def test_four_bits_with_float_values_are_still_wrong_on_the_cpu(planted: Callable[[str], Path], tmp_path: Path) -> None:
    """Why they are not offered: XNNPACK leaves them to LiteRT's own CONV_2D, which forgets a padding."""
    out = planted("cornered")
    (case,) = read_golden(out / GOLDEN_FOLDER).cases
    agreement = {}
    for how in ("weight_only", "dynamic"):
        path = tmp_path / f"{how}.tflite"
        narrowed(out / f"{COMPONENT}.tflite", path, "CONV_2D", how, "CHANNELWISE", 4)
        made: dict[str, Array] = {
            runtime: target.load(path, runtime).run(case.inputs(COMPONENT))["image"]
            for runtime in ("litert", "litert-reference")
        }
        agreement[how] = compare(made["litert"], made["litert-reference"]).snr_db
    assert agreement["dynamic"] >= 90
    assert agreement["weight_only"] < 60, "LiteRT is mended: offer int4 with float32 activations in tflite/storage.py"


@pytest.mark.parametrize(("dtype", "fits"), [("int4", True), ("int8", True), ("float16", False)])
def test_lint_knows_linears_that_the_engine_does_not_compile(dtype: str, fits: bool) -> None:
    op = Op("FULLY_CONNECTED", "module", (Value("a", (1, 8)), Value("b", (4, 8))), (Value("out", (1, 4)),), dtype)
    found = {rule.id for rule in rules_of("tflite").rule if fits_op(op, rule.when)}
    assert ("int8-fully-connected" in found) == fits
