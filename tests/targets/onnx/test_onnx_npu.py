"""Graphs compiled for Hexagon NPUs and run by Qualcomm's simulator: all there, right, and what is not is named."""

from __future__ import annotations

import dataclasses
import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner

from md_export.cli import cli
from md_export.errors import ConversionError, MissingExtraError, ParityError, RecipeError, UsageError
from md_export.parity.npu.verify import NpuDetails, verify_on_npu
from md_export.parity.verdict import Verdict
from md_export.spec.artifact import artifact_path, context_path, files_of_context
from md_export.spec.manifest import Manifest, files_beside, read_manifest, write_manifest
from md_export.spec.names import SOCS
from md_export.spec.recipe_file import load_recipe
from md_export.spec.shipped_files import builtin_recipe
from md_export.targets.contract import labelled
from md_export.targets.onnx.npu.process import NpuLimits, compile_contexts, compile_for_npu
from planted import write_export

PHONES = ("snapdragon-8-gen3", "snapdragon-8-elite")
ELITE = SOCS["snapdragon-8-elite"]
Planted = Callable[[str], Path]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def planted(tmp_path_factory: pytest.TempPathFactory, nano: Path, request: pytest.FixtureRequest) -> Planted:
    """``planted("curved")`` → an export with one decoder in float16. Do not change it."""
    request.getfixturevalue("npu_simulator")
    root = tmp_path_factory.mktemp("npu")

    def get(plant: str) -> Path:
        if not (root / plant).exists():
            write_export(plant, root / plant, nano / "tokenizer", "onnx", "fp16")
        return root / plant

    return get


@pytest.fixture(scope="session")
def compiled(planted: Planted, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export compiled for two generations. Do not change it."""
    out = tmp_path_factory.mktemp("npu") / "compiled"
    shutil.copytree(planted("resident"), out)
    manifest = read_manifest(out)
    entries = compile_contexts(PHONES, out, manifest.artifacts, lambda _: None)
    recipe = dataclasses.replace(manifest.recipe, npu=PHONES)
    _write(dataclasses.replace(manifest, artifacts=entries, recipe=recipe), out)
    return out


@pytest.fixture
def copy(compiled: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(compiled, tmp_path / "copy"))


def _write(manifest: Manifest, out: Path) -> None:
    write_manifest(dataclasses.replace(manifest, files=files_beside(out, manifest.artifacts)), out)


def _verify(out: Path, limits: NpuLimits | None = None) -> Verdict[NpuDetails]:
    (found,) = verify_on_npu(out, None, ELITE.name, None, limits or NpuLimits(300.0))
    return found.result


def _context(out: Path) -> Path:
    return context_path(out, read_manifest(out).artifacts[0], ELITE.name)


def test_two_generations_are_compiled_and_right(compiled: Path) -> None:
    contexts = read_manifest(compiled).artifacts[0].contexts
    assert [context.soc for context in contexts] == list(PHONES)
    results = [found.result for found in verify_on_npu(compiled, None, None, None, NpuLimits(300.0))]
    assert [(result.runtime, result.failures) for result in results] == [(phone, ()) for phone in PHONES]
    for result, context in zip(results, contexts, strict=True):
        (item,) = result.components
        assert item.parity is not None and 55 < item.parity.snr_db < 90  # float16, and no better
        assert (item.engine.nodes, item.engine.context_bytes) == (context.nodes, context.bytes)
        assert context.nodes >= 4 and context.bytes > 10_000 and context.peak_bytes > 50e6


def test_the_context_tells_the_numbers_of_the_chip(compiled: Path) -> None:
    for name in PHONES:
        model = onnx.load(context_path(compiled, read_manifest(compiled).artifacts[0], name))
        (told,) = [pair.value for pair in model.metadata_props if pair.key.startswith("ep_compatibility_info")]
        assert f":{SOCS[name].htp}:{SOCS[name].model}:" in told


def test_what_the_npu_refuses_is_named_with_its_module(planted: Planted) -> None:
    out = planted("curved")
    told = CliRunner().invoke(cli, ["verify", str(out), "--npu", "--soc", ELITE.name])
    assert isinstance(told.exception, ParityError) and told.exception.exit_code == 3
    assert "the NPU leaves 2 operations to the CPU: Sinh of middle" in str(told.exception)
    assert "Asinh of middle (middle/Asinh)" in str(told.exception) and "operations left to" in told.output
    with pytest.raises(ConversionError, match=r"snapdragon-8-elite: the NPU leaves 2 .*: Sinh of middle"):
        compile_contexts([ELITE.name], out, read_manifest(out).artifacts, lambda _: None)


def test_an_export_without_contexts_is_compiled_for_the_occasion(planted: Planted) -> None:
    out = planted("resident")
    before = sorted(out.rglob("*"))
    (verdict,) = _verify(out).components
    assert verdict.faults == () and verdict.engine.nodes and sorted(out.rglob("*")) == before
    with pytest.raises(UsageError, match="was compiled for no phone; name one with --soc"):
        verify_on_npu(out, None, None, None, NpuLimits(300.0))


def test_wrong_numbers_fail(copy: Path, planted: Planted) -> None:
    """A context that says that it is of this graph and holds another's weights."""
    graph, context = artifact_path(copy, read_manifest(copy).artifacts[0]), _context(copy)
    model = onnx.load(planted("resident") / graph.name)
    largest = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    largest.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(largest) * 1.1, largest.name))
    other = copy / "other.onnx"
    onnx.save(model, other)
    notes = onnx.load(context).metadata_props
    for file in files_of_context(context):
        file.unlink()
    assert compile_for_npu(other, ELITE, context, NpuLimits()).nodes
    changed = onnx.load(context)
    del changed.metadata_props[:]
    changed.metadata_props.extend(notes)
    onnx.save(changed, context)
    other.unlink()
    _write(read_manifest(copy), copy)
    (verdict,) = _verify(copy).components
    assert verdict.parity is not None and verdict.parity.snr_db < 40
    assert [fault.startswith("snr") for fault in verdict.faults] == [True]


def test_an_altered_binary_is_noticed(copy: Path) -> None:
    binary = files_of_context(_context(copy))[1]
    binary.write_bytes(binary.read_bytes() + b"\0")
    assert f"npu/{ELITE.name}/{binary.name} is not the file of the manifest" in _verify(copy).failures[0]


@pytest.mark.parametrize(
    ("notes", "words"),
    [
        ({"soc": "snapdragon-8-gen3"}, "was compiled for 'snapdragon-8-gen3', not snapdragon-8-elite"),
        ({"compiled_from": "0" * 64}, "was compiled from another vae_decoder.onnx than this export's"),
        (None, "names another binary than vae_decoder_qnn.bin"),
    ],
)
def test_another_context_is_refused(copy: Path, notes: dict[str, str] | None, words: str) -> None:
    context = _context(copy)
    model = onnx.load(context)
    for pair in model.metadata_props:
        pair.value = labelled(notes or {}).get(pair.key, pair.value)
    for item in model.graph.node[0].attribute:
        if item.name == "ep_cache_context" and notes is None:
            item.s = b"../../golden/index.json"
    onnx.save(model, context)
    _write(read_manifest(copy), copy)
    (failure,) = _verify(copy).failures
    assert words in failure


@pytest.mark.parametrize(
    ("limits", "words"),
    [(NpuLimits(0.05), "the time limit of 0.05 s"), (NpuLimits(300.0, 10_000_000), "above its limit of 0.01 GB")],
)
def test_limits_end_it(compiled: Path, limits: NpuLimits, words: str) -> None:
    failures = _verify(compiled, limits=limits).failures  # of each block, where the whole was foretold not to fit
    assert failures and all(words in failure for failure in failures)


def test_contexts_belong_to_the_recipe(copy: Path) -> None:
    manifest = read_manifest(copy)
    write_manifest(dataclasses.replace(manifest, recipe=dataclasses.replace(manifest.recipe, npu=())), copy)
    with pytest.raises(Exception, match="was not compiled for the recipe's chips"):
        read_manifest(copy)


def test_recipes_name_known_chips_of_portable_graphs() -> None:
    recipe = load_recipe(builtin_recipe("onnx", "int8"))
    for changes, words in (
        ({"npu": ("snapdragon-9",)}, "is not a known chip; use snapdragon-8-gen2"),
        ({"npu": (*PHONES, PHONES[0])}, "npu names a chip twice"),
        ({"npu": PHONES, "form": "ort"}, "the NPU's compiler cannot read form ort"),
        ({"npu": PHONES, "target": "tflite"}, "npu is for the target onnx"),
    ):
        with pytest.raises(RecipeError, match=words):
            dataclasses.replace(recipe, **changes)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--soc", ELITE.name), "--soc needs --npu"),
        (("--cases", "1"), "--cases needs --npu"),
        (("--npu", "--gpu"), "--npu already chooses a runtime; leave out --gpu"),
        (("--npu", "--self-test"), "leave out --self-test"),
    ],
)
def test_flags_that_contradict_each_other(flags: tuple[str, ...], words: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").touch()
    told = CliRunner().invoke(cli, ["verify", str(tmp_path), *flags])
    assert isinstance(told.exception, UsageError) and words in str(told.exception)


def test_a_missing_simulator_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'md-export\[qnn\]'"):
        _verify(tmp_path)
