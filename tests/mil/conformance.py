"""Run the op tests that ship in coremltools' wheel against our runtime of ML programs.

    python tests/mil/conformance.py                     everything in scope (hours)
    python tests/mil/conformance.py --shard 3/20        every 20th test, from the 3rd on
    python tests/mil/conformance.py --each 3            three cases of every test
    python tests/mil/conformance.py iOS14/test_conv.py --sabotage
    python tests/conformance_table.py *.json        the shards' --json files as one Markdown table

coremltools compares only on a Mac: elsewhere its comparison silently returns None. Here the Mac check is answered with
yes, ``MLModel.predict`` is our runtime, and the comparison is our own, tighter one (coremltools allows 0.5 absolute in
float16). ``--sabotage`` adds one percent to every floating-point output; what is then ``compared`` (integers and zeros
do not count) and still passes proves nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import zlib
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from md_export.errors import RuntimeFault

sys.path.insert(0, str(Path(__file__).parents[1]))
from conformance_table import lines

# Loops, lists, random numbers and recurrent cells are outside the runtime's scope; test_utils tests no op.
OUT_OF_SCOPE = ("test_recurrent", "test_random", "test_control_flow", "test_utils", "test_coreml_dialect")
# Tests we cannot or do not want to pass, each by parts of its id. They run and are listed, but do not fail the suite.
KNOWN = {
    ("TestScatter::test_ios17_invalid_indices", "validate_indices=False"): (
        "wants the result of an undefined index to differ; our runtime refuses to compute it"
    ),
    ("iOS15/test_image_resizing.py::TestResample", "precision='fp32'"): (
        "counts the casts that only a float16 conversion inserts"
    ),
    ("test_image_resizing.py::TestCropResize::test_builder_to_backend_ios16", "precision='fp32'"): (
        "its expected 7.9 is written as 7.899"
    ),
    ("test_image_resizing.py::TestCropResize::test_builder_to_backend_ios17", "precision='fp32'"): (
        "its expected 7.9 is written as 7.899"
    ),
    ("iOS15/test_image_resizing.py::TestCropResize::test_builder_to_backend_smoke",): (
        "a reversed box wholly outside the image: no documentation explains the values it expects"
    ),
    ("TestSliceByIndex::test_efficient_type_inference",): "asserts that it took less than 10 ms",
    ("TestNormalizationLocalResponseNorm::test_builder_to_backend_smoke",): (
        "its expected values leave out the neighbouring channels, which the documentation sums over"
    ),
}
# What the runtime says about an op or a feature it does not have.
UNIMPLEMENTED = (
    "this runtime has no op",
    "outside this runtime's scope",
    "outside scope",
    "this runtime takes multi-arrays only",
    "not neural networks",
)
# Our tolerances, absolute ones relative to the largest expected magnitude. In float16 inputs, every intermediate and
# the output are rounded to 11 bits (4.9e-4), and a test's graph has a handful of ops. In float32 the test's own hold,
# tightened where it expects small numbers: hand-written expectations have about five digits.
FP16_OF_PEAK = 2e-3
FP16_RELATIVE = 4e-3
FP32_OF_PEAK = 1e-4


class Suite:
    """A pytest plugin that selects, compares and counts."""

    def __init__(self, shard: tuple[int, int], each: int | None, only: str, sabotage: bool) -> None:
        self.shard = shard
        self.each = each
        self.only = only
        self.sabotage = sabotage
        self.counts: dict[str, Counter[str]] = defaultdict(Counter)
        self.compared: set[str] = set()
        self.failures: list[tuple[str, str]] = []
        self.skips: Counter[str] = Counter()

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        index, of = self.shard
        chosen = []
        for item in items:
            name = _file(item.nodeid)
            if self.only not in item.nodeid:
                continue
            self.counts[name]["collected"] += 1
            if any(part in name for part in OUT_OF_SCOPE):
                self.counts[name]["scope"] += 1
            else:
                chosen.append(item)
        items[:] = (few_of_each(chosen, self.each) if self.each else chosen)[index::of]

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
        outcome = yield
        report = outcome.get_result()
        if call.when != "call" and report.outcome == "passed":
            return
        count = self.counts[_file(item.nodeid)]
        count["ran"] += 1
        if report.outcome == "failed" and call.excinfo is not None:
            self._failed(item.nodeid, count, call.excinfo.value)
        else:
            kind = "xfailed" if hasattr(report, "wasxfail") else report.outcome
            count[kind] += 1
            if kind != "passed" and call.excinfo is not None:
                self.skips[f"{kind}: {getattr(report, 'wasxfail', '') or call.excinfo.value}"] += 1
        count["compared"] += item.nodeid in self.compared

    def _failed(self, nodeid: str, count: Counter[str], error: BaseException) -> None:
        text = f"{type(error).__name__}: {error}"
        kind = "unimplemented" if any(part in text for part in UNIMPLEMENTED) else "failed"
        reason = next((why for parts, why in KNOWN.items() if all(part in nodeid for part in parts)), None)
        if reason:
            kind, text = "known", f"{reason} ({text})"
        count[kind] += 1
        self.failures.append((nodeid, f"{kind}: {' '.join(text.split())[:600]}"))

    def compare(
        self,
        mlmodel: Any,
        input_key_values: Any,
        expected_outputs: Any,
        dtype: str = "fp32",
        atol: float = 1e-4,
        rtol: float = 1e-5,
        also_compare_shapes: bool = True,
        state: Any = None,
        allow_mismatch_ratio: float = 0.0,
    ) -> Any:
        """Stands in for ``coremltools.converters.mil.testing_utils.compare_backend``."""
        from coremltools.converters.mil import testing_utils

        try:
            outputs = testing_utils.run_core_ml_predict(mlmodel, input_key_values, state)
        except RuntimeFault as error:
            # What Core ML raises; some tests expect it.
            raise RuntimeError(f"Unable to compute the prediction using ML Program: {error}") from error
        if self.sabotage:
            outputs = {k: v * v.dtype.type(1.01) if v.dtype.kind == "f" else v for k, v in outputs.items()}
        if also_compare_shapes and expected_outputs is not None:
            testing_utils.compare_shapes(mlmodel, input_key_values, expected_outputs, pred=outputs)
        for name, expected in (expected_outputs or {}).items():
            found = testing_utils._get_coreml_out_from_dict(outputs, name)
            rounded = dtype == "fp16" or _has_fp16(mlmodel)
            assert_close(found, np.asarray(expected), rounded, atol, rtol, allow_mismatch_ratio)
            if not self.sabotage or (found.dtype.kind == "f" and np.any(found)):
                self.compared.add(os.environ["PYTEST_CURRENT_TEST"].removesuffix(" (call)"))
        return outputs


def few_of_each(items: list[pytest.Item], count: int) -> list[pytest.Item]:
    """``count`` of each test's parameter sets. Evenly spaced ones would often have the last parameter in common."""
    groups: dict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        groups[item.nodeid.split("[")[0]].append(item)
    by_hash = (sorted(group, key=lambda item: zlib.crc32(item.name.encode())) for group in groups.values())
    return [item for group in by_hash for item in group[:count]]


def _file(nodeid: str) -> str:
    return "/".join(nodeid.split("::")[0].split("/")[-2:])


def _has_fp16(mlmodel: Any) -> bool:
    """Whether a program computes in float16 anywhere: tests of float16 operands call themselves fp32 too."""
    from coremltools.proto import MIL_pb2

    functions = mlmodel.get_spec().mlProgram.functions.values()
    blocks = [block for function in functions for block in function.block_specializations.values()]
    values = [item for function in functions for item in function.inputs]
    values += [out for block in blocks for op in block.operations for out in op.outputs]
    return any(value.type.tensorType.dataType == MIL_pb2.FLOAT16 for value in values)


def assert_close(found: Any, expected: Any, rounded: bool, atol: float, rtol: float, mismatch: float) -> None:
    """Every element within tolerance, NaN only where NaN is expected; the test's own share of outliers is granted."""
    finite = np.abs(expected[np.isfinite(expected)]) if expected.dtype.kind == "f" else np.abs(expected)
    peak = float(finite.max(initial=0))
    if rounded:
        atol, rtol = FP16_OF_PEAK * peak, max(rtol, FP16_RELATIVE)
    else:
        atol = min(atol, FP32_OF_PEAK * peak)
    found = found.reshape(expected.shape) if expected.shape == () else found
    wrong = ~np.isclose(found, expected, atol=atol, rtol=rtol, equal_nan=True)
    if wrong.sum() > mismatch * expected.size:
        np.testing.assert_allclose(found, expected, atol=atol, rtol=rtol)


def run(suite: Suite, files: list[str]) -> None:
    """Patch coremltools and run pytest on its op tests."""
    import coremltools
    from coremltools.converters.mil import testing_utils
    from coremltools.models import utils

    from md_export.mil import patch_predict

    # The newest system that any of the tests asks for.
    utils._macos_version = lambda: (15, 4)
    testing_utils._IS_MACOS = True
    testing_utils.compare_backend = suite.compare
    folder = Path(coremltools.__file__).parent / "converters/mil/mil/ops/tests"
    paths = [str(folder / name) for name in files] or [str(folder)]
    options = ["-q", "-p", "no:cacheprovider", "--no-header", "--tb=no", "--disable-warnings", "-c", os.devnull]
    with patch_predict():
        pytest.main([*options, *paths], [suite])


def main() -> int:
    """Exit 1 if a test fails or nothing was compared."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("files", nargs="*", help="iOS14/test_conv.py and so on; all if not given")
    parser.add_argument("--shard", default="0/1", help="index/count")
    parser.add_argument("--each", type=int, metavar="N", help="N of each test's parameter sets; all if not given")
    parser.add_argument("--only", default="", help="part of a test's id")
    parser.add_argument("--sabotage", action="store_true", help="add one percent to every floating-point output")
    parser.add_argument("--json", type=Path, help="write counts and failures there")
    parser.add_argument("--all-opsets", action="store_true", help="older ops' tests at every newer opset too")
    options = parser.parse_args()
    index, of = (int(part) for part in options.shard.split("/"))
    # coremltools' own switches: no neural networks, float32 beside float16.
    os.environ["PYMIL_TEST_TARGETS"] = "mlprogram"
    os.environ["INCLUDE_MIL_FP32_UNIT_TESTS"] = "1"
    if options.all_opsets:
        os.environ["RUN_BACKWARD_COMPATIBILITY"] = "1"
    suite = Suite((index, of), options.each, options.only, options.sabotage)
    run(suite, options.files)
    for nodeid, text in suite.failures:
        print(nodeid.split("/tests/")[-1], text, sep="\n    ")
    print("\n".join(lines(suite.counts)))
    if options.json:
        report = {"counts": suite.counts, "failures": suite.failures, "skips": suite.skips}
        options.json.write_text(json.dumps(report, indent=1))
    failed = sum(count["failed"] for count in suite.counts.values())
    return int(failed > 0 or not suite.compared)


if __name__ == "__main__":
    sys.exit(main())
