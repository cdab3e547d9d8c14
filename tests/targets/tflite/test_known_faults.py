"""Each known fault of LiteRT names the graph that was planted for it, not its neighbour; what lint and export say."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from md_export.cli import cli
from md_export.engine.artifact import refuse_known_faults
from md_export.errors import ArtifactError, ConversionError, UsageError
from md_export.report.lint import fault_page, known_fault_lines
from md_export.rewrites import REWRITES
from md_export.spec.recipe_file import load_recipe
from md_export.spec.shipped_files import builtin_recipe, builtin_recipes
from md_export.spec.tensors import Array
from md_export.targets.lint.faults import FaultReport, FaultyOp, FoundFault, KnownFaults
from md_export.targets.lint.judge import known_faults
from md_export.targets.lint.rules import FAULT_TARGETS, fault_path, faults_of, load_faults
from md_export.targets.tflite.describe import graph_ops
from md_export.targets.tflite.lint import lint
from planted import COMPONENT
from small_graphs import Node, Shape, write_graph

FILE = faults_of("tflite")
DOCS = Path(__file__).parents[3] / "docs" / "android-faults.md"
EYE = np.eye(4, dtype=np.float32)


@dataclass(frozen=True)
class Graph:
    """What :func:`write_graph` writes."""

    given: Mapping[str, Shape | Array]
    nodes: Sequence[Node]
    outputs: Sequence[str] = field(default=())

    def found(self, folder: Path) -> KnownFaults:
        return known_faults(graph_ops(write_graph(folder / "x.tflite", self.given, self.nodes, self.outputs)), FILE)


def attention(*batch: int) -> Graph:
    """Two products with a softmax and a mask in between; ``batch``: axes before tokens."""
    scores, values = (*batch, 6, 6), (*batch, 6, 4)
    return Graph(
        {"q": values, "k": (*batch, 4, 6), "v": values, "mask": np.ones(scores, np.float32)},
        [
            Node("BATCH_MATMUL", ["q", "k"], "scores", scores),
            Node("ADD", ["scores", "mask"], "masked", scores),
            Node("SOFTMAX", ["masked"], "weights", scores),
            Node("BATCH_MATMUL", ["weights", "v"], "out", values),
        ],
    )


def masked(mask: Shape, source: str = "BATCH_MATMUL") -> Graph:
    scores = (1, 3, 6, 6)
    return Graph(
        {"q": (1, 3, 6, 4), "k": (1, 3, 4, 6), "mask": np.ones(mask, np.float32)},
        [Node(source, ["q", "k"], "scores", scores), Node("ADD", ["scores", "mask"], "out", scores)],
    )


def one(kind: str, out: Shape, *reads: Shape | Array, options: Mapping[str, object] | None = None) -> Graph:
    given = {f"x{place}": value for place, value in enumerate(reads)}
    return Graph(given, [Node(kind, list(given), "out", out, options or {})])


def product(rows: int, columns: int, x: bool = False, y: bool = False) -> Graph:
    left, right = ((1, 2, 4, rows) if x else (1, 2, rows, 4)), ((1, 2, columns, 4) if y else (1, 2, 4, columns))
    return one("BATCH_MATMUL", (1, 2, rows, columns), left, right, options={"adjX": x, "adjY": y})


def linear(dtype: str, rank: int = 3, after: str = "ADD") -> Graph:
    shape = (1, 6, 4)[3 - rank :]
    return Graph(
        {"x": shape, "weight": EYE.astype(dtype), "y": shape},
        [Node("FULLY_CONNECTED", ["x", "weight"], "made", shape), Node(after, ["made", "y"], "out", shape)],
    )


def state(kind: str, second: Shape | Array, *outputs: str) -> Graph:
    return Graph(
        {"x": (1, 4), "state": second},
        [Node(kind, ["x", "state"], "sum", (1, 4)), Node("LOGISTIC", ["sum"], "out", (1, 4))],
        outputs,
    )


def padded(rank: int, *out: int) -> Graph:
    return one("PAD", out, (1, 6, 6, 4)[4 - rank :], np.zeros((rank, 2), np.int32))


SMALL, LARGE = np.float32(1e-5), np.float32(1.0)
# By fault: graphs that it names, and neighbours that no fault names.
PLANTED: Mapping[str, tuple[Sequence[Graph], Sequence[Graph]]] = {
    "attention-rank-3": (
        [attention(3)],
        [attention(1, 3), one("BATCH_MATMUL", (3, 6, 6), (3, 6, 4), (3, 4, 6))],
    ),
    "mask-for-all-heads": (
        [masked((1, 1, 6, 6))],
        [masked((1, 3, 6, 6)), masked((1, 3, 1, 6)), masked((1, 1, 6, 6), "MUL")],
    ),
    "mixed-ranks": (
        [one("ADD", (1, 3, 6, 6), (3, 6, 6), (1, 1, 6, 6)), one("MUL", (2, 6, 4), (2, 6, 4), (6, 4))],
        [
            one("ADD", (1, 3, 6, 6), (1, 3, 6, 6), (1, 6, 6)),
            one("ADD", (2, 6, 4), (2, 6, 4), np.ones((4,), np.float32)),
            one("ADD", (2, 6, 4), (2, 6, 4), ()),
        ],
    ),
    "transposing-flag": ([product(8, 4, x=True), product(8, 4, y=True)], [product(8, 4)]),
    "transposing-flag-77": ([product(1, 77, y=True)], []),
    "fused-attention": (
        [one("STABLEHLO_COMPOSITE", (1, 6, 4), (1, 6, 4), options={"name": "odml.scaled_dot_product_attention"})],
        [
            one("STABLEHLO_COMPOSITE", (1, 6, 4), (1, 6, 4), options=options)
            for options in ({"name": "odml.rms_norm"}, {})
        ],
    ),
    "output-read-again": (
        [state("ADD", (1, 4), "out", "sum")],
        [
            state("ADD", (1, 4), "out"),
            one("ADD", (1, 4), (1, 4), (1, 4)),
            state("MUL", (1, 4), "out", "sum"),
            state("ADD", np.ones((1, 4), np.float32), "out", "sum"),
        ],
    ),
    "int8-linear-add": (
        [linear("int8")],
        [linear("float32"), linear("int8", rank=2), linear("int8", after="MUL")],
    ),
    "pad-rank-3": ([padded(3, 6, 8, 4), padded(3, 8, 6, 4)], [padded(3, 6, 6, 8), padded(4, 1, 8, 6, 4)]),
    "batched-depth-to-space": (
        [one("DEPTH_TO_SPACE", (2, 8, 8, 1), (2, 4, 4, 4))],
        [one("DEPTH_TO_SPACE", (1, 8, 8, 1), (1, 4, 4, 4))],
    ),
    "small-number": (
        [one("ADD", (1, 4), (1, 4), np.full(shape, SMALL)) for shape in ((), (1,), (1, 1), (1, 1, 1, 1))],
        [one("ADD", (1, 4), (1, 4), np.array(LARGE)), one("MUL", (1, 4), (1, 4), np.array(SMALL))],
    ),
    "float16-sum": (
        [one("SUM", (1,), (1, 4), np.array([1], np.int32))],
        [one("MEAN", (1,), (1, 4), np.array([1], np.int32))],
    ),
    "broadcast-to": ([one("BROADCAST_TO", (3, 4), (1, 4), np.array([3, 4], np.int32))], [one("TILE", (3, 4), (1, 4))]),
    "relu-0-to-1": ([one("RELU_0_TO_1", (1, 4), (1, 4))], [one("RELU", (1, 4), (1, 4))]),
    "division-by-itself": (
        [Graph({"x": (1, 4)}, [Node("DIV", ["x", "x"], "out", (1, 4))])],
        [one("DIV", (1, 4), (1, 4), (1, 4))],
    ),
}
# Forms that two reports concern.
ALSO = {"transposing-flag-77": {"transposing-flag"}}


@pytest.mark.parametrize("name", [fault.id for fault in FILE.fault if fault.when.given()])
def test_a_fault_names_its_form_and_no_neighbour(name: str, tmp_path: Path) -> None:
    planted, neighbours = PLANTED[name]
    for graph in planted:
        found = graph.found(tmp_path)
        assert {item.fault.id for item in found.found} == {name} | ALSO.get(name, set())
    for graph in neighbours:
        assert graph.found(tmp_path).found == ()


def test_a_product_with_many_rows_or_whole_fours_is_one_fault_less(tmp_path: Path) -> None:
    for rows, columns in ((77, 77), (1, 76)):
        found = product(rows, columns, y=True).found(tmp_path)
        assert [item.fault.id for item in found.found] == ["transposing-flag"]


def test_a_float16_constant_is_a_constant(tmp_path: Path) -> None:
    """LiteRT decodes it once: as an operand of lower rank, and as a small number."""
    half = Graph(
        {"x": (2, 6, 4), "half": np.full((4,), 1e-5, np.float16), "number": np.array(1e-5, np.float16)},
        [
            Node("DEQUANTIZE", ["half"], "bias", (4,)),
            Node("DEQUANTIZE", ["number"], "eps", ()),
            Node("ADD", ["x", "bias"], "sum", (2, 6, 4)),
            Node("ADD", ["sum", "eps"], "out", (2, 6, 4)),
        ],
    )
    (found,) = half.found(tmp_path).found
    assert found.fault.id == "small-number"
    assert [op.name for op in found.ops] == ["out;"]


OP = FaultyOp("ADD", "block.attn", "t;1", (1, 2))


def known(*spans: tuple[str | None, str | None], effect: str = "wrong") -> KnownFaults:
    faults = [
        FaultReport(f"f{place}", "it fails", effect, "reported", "https://x", "do so", ("OpenCL",), ("Mali",), *span)  # type: ignore[arg-type]
        for place, span in enumerate(spans)
    ]
    return KnownFaults("LiteRT", FILE.safe_from(faults), tuple(FoundFault(fault, (OP, OP)) for fault in faults), ())


def test_the_answer_is_a_version_where_all_faults_end() -> None:
    first, second = known(("2.1.3", "2.1.5")).lines()
    assert first == "safe on LiteRT ≥ 2.1.6"
    assert second == (
        "on LiteRT 2.1.3–2.1.5 (OpenCL, Mali) wrong here: ADD 1×2 of block.attn (t;1) and 1 more: "
        "it fails; do so; https://x"
    )
    assert next(known(("2.1.3", "2.1.5"), (None, "1.4.5")).lines()) == "safe on LiteRT ≥ 2.1.6"
    assert next(known(("2.1.3", "2.1.5"), ("2.1.1", None)).lines()) == "no version of LiteRT is known to be safe"
    assert list(known().lines()) == ["no known fault of LiteRT concerns it"]


def test_a_slow_fault_leaves_an_artifact_safe() -> None:
    slow = known((None, None), effect="slow").found
    assert next(KnownFaults("LiteRT", None, slow, ()).lines()) == "known faults of LiteRT only make it slow"
    both = (*slow, *known(("2.1.3", "2.1.5")).found)
    assert FILE.safe_from([item.fault for item in both]) == "2.1.6"


@pytest.mark.parametrize(
    ("span", "least", "refused"),
    [
        (("2.1.3", "2.1.5"), "2.1.6", False),
        (("2.1.3", "2.1.5"), "2.1.5", True),
        (("2.1.3", "2.1.5"), "2.1.10", False),
        (("2.1.6", None), "3", True),
        ((None, "1.4.5"), "2.0.2", False),
    ],
)
def test_a_least_version_meets_the_faults_that_are_not_over(
    span: tuple[str | None, str | None], least: str, refused: bool
) -> None:
    assert (known(span).blocking(least) is not None) is refused
    assert known(span, effect="slow").blocking(least) is None


def test_the_attention_that_mali_gets_wrong_is_refused(planted: Callable[[str], Path]) -> None:
    """The converter makes a product of rank 3 of attention at rank 4; the file says so."""
    report = lint(planted("masked") / f"{COMPONENT}.tflite")
    with pytest.raises(ConversionError) as caught:
        refuse_known_faults("tflite vae_decoder", report, "2.1.6")
    text = str(caught.value)
    assert text.startswith("tflite vae_decoder: a known fault concerns LiteRT 2.1.6 (min_litert) or a later one: on ")
    for part in ("1.4.5 and later", "wrong here: BATCH_MATMUL", "of middle", "rewrite rank_4_attention", "issues/8619"):
        assert part in text
    refuse_known_faults("tflite vae_decoder", lint(planted("resident") / f"{COMPONENT}.tflite"), "1.0.1")


def test_lint_says_on_which_versions_a_file_is_safe(planted: Callable[[str], Path]) -> None:
    report = lint(planted("masked") / f"{COMPONENT}.tflite")
    text = "\n".join(known_fault_lines([report, report]))
    assert text.count("vae_decoder.tflite: no version of LiteRT is known to be safe\n") == 2
    assert text.count("LiteRT 2.0.3 and later, any graph: a second model on the GPU ends the process") == 1
    assert report.known is not None
    found = {item.fault.id: item.ops for item in report.known.found}
    assert set(found) >= {"attention-rank-3", "mixed-ranks"}
    assert {op.module.split(".")[0] for op in found["attention-rank-3"]} == {"middle"}


@pytest.mark.parametrize("name", [name for name in builtin_recipes() if name.startswith("tflite-")])
def test_shipped_recipes_name_the_least_version_that_their_forms_are_right_on(name: str) -> None:
    """One fault is left of what they export, the older delegate's; see the tests of the rewrites and of lint."""
    (left,) = (fault for fault in FILE.fault if fault.id == "small-number")
    recipe = load_recipe(builtin_recipe(*name.split("-", 1)))
    assert "rank_4_attention" in recipe.rewrites
    assert recipe.min_litert == FILE.safe_from([left])


@pytest.mark.parametrize("target", FAULT_TARGETS)
def test_faults_are_reports_with_an_address_and_rewrites_that_exist(target: str) -> None:
    for fault in faults_of(target).fault:
        assert fault.source.startswith("https://"), fault.id
        assert fault.advice, fault.id
        assert set(fault.helps) <= set(REWRITES), fault.id


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('until = "2.1.5"', 'until = "2.1.99"', "mask-for-all-heads: 2.1.99 is not a version or backend"),
        ('backends = ["OpenCL", "older delegate"]', 'backends = ["CUDA"]', "attention-rank-3: CUDA is not a version"),
        ('until = "2.1.5"', 'until = "2.1.1"', "mask-for-all-heads: it ends before it begins"),
        ('effect = "wrong"', 'effect = "odd"', "effect"),
        ("output_rank = 3", "rank = 3", "rank"),
        ('id = "mixed-ranks"', 'id = "float16-sum"', "two rules are called float16-sum"),
        ("https://github.com/google-ai-edge/LiteRT/issues/8619", "8619", "attention-rank-3: source is not an https"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    text = fault_path("tflite").read_text(encoding="utf-8")
    assert old in text
    (tmp_path / "known_faults.toml").write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(ArtifactError, match=message):
        load_faults(tmp_path / "known_faults.toml")


def test_the_manual_has_the_table_that_lint_prints(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["lint", "--faults"], standalone_mode=False)
    assert capsys.readouterr().out.strip() == fault_page(map(faults_of, FAULT_TARGETS))
    assert fault_page([FILE]) in DOCS.read_text(encoding="utf-8")
    with pytest.raises(UsageError, match="exactly one of PATH"):
        cli.main(["lint", "--faults", "--rules"], standalone_mode=False)
