"""A made-up look inside ``judged``: two blocks of a UNet, one of them far off, weights of two types, one lint rule."""

from __future__ import annotations

from md_export.diagnose.attribution.attribute import Attribution, ModuleError
from md_export.diagnose.insight import Insight
from md_export.engine.hops import Hop
from md_export.parity.weights.audit import AuditResult, ComponentAudit, WeightError
from md_export.targets.lint.report import LintReport, OpAdvice, Rule

BAD = ModuleError("down_blocks.1.conv", "Conv2d", 9.5, 11.5, 70000.0, alone_snr_db=12.5)
MODULES = (
    ModuleError("down_blocks.0.norm", "GroupNorm", 999.0, 999.0, 3.0),
    ModuleError("down_blocks.0.conv", "Conv2d", 41.0, 42.0, 0.0),
    ModuleError("down_blocks.0", "Block", 41.5, 999.0, 4.0),
    BAD,
    ModuleError("down_blocks.1", "Block", -999.0, 999.0, float("inf")),
    ModuleError("", "UNet", 12.5, 999.0, 2.0),
)


def attribution() -> Attribution:
    hops = (Hop("quantized", "int8 weights", 12.6, 20.0), Hop("runtime", "executed by its runtime", 12.5, 20.0))
    seen = {"leaves": 3, "matched": 3, "modules": MODULES, "first": BAD, "worst": (BAD, MODULES[1])}
    return Attribution(
        component="unet",
        target="onnx",
        file="unet.onnx",
        case="case-003",
        snr_db=12.5,
        least_snr_db=20.0,
        hops=hops,
        advice=('keep_float = ["down_blocks.1.conv"]',),
        **seen,  # type: ignore[arg-type]
    )


def weights() -> AuditResult:
    errors = (
        WeightError("down_blocks.1.conv.weight", "int8", 2048, 31.5),
        WeightError("down_blocks.0.norm.weight", "float32", 64, 999.0),
    )
    audit = ComponentAudit(
        component="unet",
        file="unet.onnx",
        requested="int8",
        as_requested=2048,
        promised=2048,
        stored={"int8": 2048, "float32": 64},
        proven=2112,
        errors=errors,
        unmatched=(),
        folded=(),
        missing=("conv_out.bias",),
        faults=("conv_out.bias is nowhere in the artifact",),
    )
    return AuditResult("onnx", "onnx-int8", (audit,))


def advice() -> LintReport:
    rule = Rule("rank-5", "tensors of <five> axes", "unlikely", "documented", "https://example.org/x", "reshape them")
    fine = Rule("conv", "convolutions", "likely", "documented", "https://example.org/y", "nothing")
    ops = (
        OpAdvice("a", "Reshape", "x", "unlikely", ("rank-5",), 10),
        OpAdvice("b", "Conv", "x", "likely", ("conv",), 10),
    )
    return LintReport("unet.onnx", "iOS17", 1, (rule, fine), ops, 0, (), ())


def insight() -> Insight:
    return Insight(True, [advice()], [attribution()], weights(), ["vae_decoder: it does <not> run"], "nano")
