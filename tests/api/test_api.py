"""The public functions: real values, strings as paths, results that print, errors of one line, and nothing printed."""

from __future__ import annotations

import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, assert_type

import numpy as np
import pytest

import md_export
from artifact_edits import change, one_value
from md_export import errors
from md_export.engine.generate import pictures_of_artifacts, pictures_of_checkpoint
from md_export.models.sampling.pictures import to_bytes
from md_export.parity.metrics import snr_db
from md_export.parity.opened_export import open_export
from md_export.parity.subject import Subject
from md_export.parity.verdict import Verdict
from md_export.spec.shipped_files import builtin_recipe, builtin_recipes
from md_export.spec.tensors import Array, Arrays
from md_export.system.vendors import import_quietly
from mutations import edit_json
from support import Exported

PROMPT = "a large red circle on the left, white background"


def golden_case(out: Path) -> tuple[Arrays, Arrays]:
    """Inputs of the UNet in the first golden case, and torch's outputs."""
    opened = open_export(out)
    unet = Subject(opened, opened.manifest.entry_for("unet"), opened.golden.cases[:1])
    return unet.inputs()[0], unet.wanted()[0]


def test_export_writes_what_verify_accepts(tmp_path: Path) -> None:
    lines: list[str] = []
    made = md_export.export(
        "onnx-fp32",
        str(md_export.nano_checkpoint()),
        str(tmp_path / "out"),
        components=["text_encoder"],
        clip_skip=1,
        progress=lines.append,
    )
    assert (made.path, made.components) == (tmp_path / "out", ("text_encoder",))
    assert made.manifest.recipe.name == "onnx-fp32-skip1"
    assert any("text_encoder" in line for line in lines)
    assert md_export.verify(made).passed
    assert md_export.open_export(str(made.path)) == made
    with pytest.raises(errors.OutputError, match="exists"):
        md_export.export("onnx-fp32", md_export.nano_checkpoint(), made)


def test_a_runner_gives_what_torch_gives(exported: Exported) -> None:
    out = exported("onnx", "int8")
    inputs, wanted = golden_case(out)
    runner = md_export.open_export(str(out)).runner("unet")
    given = {name: array.astype("float64").tolist() for name, array in inputs.items()}
    outputs = runner.predict(given)
    assert {name: value.dtype for name, value in outputs.items()} == {"out_sample": np.dtype("float32")}
    made = outputs["out_sample"]
    assert 20 < snr_db(made, wanted["out_sample"]) < 60, "as exact as int8 is"
    other = runner.predict({**given, "sample": np.zeros_like(inputs["sample"])})
    assert snr_db(other["out_sample"], wanted["out_sample"]) < 20
    assert str(runner).split()[:1] == ["unet.onnx"]
    assert "sample" in str(runner) and "1×8×8×8" in str(runner)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"sample": "a cat"}, "input sample: an array of dtype <U5; give numbers"),
        ({"sample": [[1.0], [1.0, 2.0]]}, "input sample: not an array of numbers"),
        (
            {"sample": np.zeros((1, 4, 2, 2))},
            "unet.onnx: input sample must be float32[1, 8, 8, 8], not float32[1, 4, 2, 2]",
        ),
        ({"other": 1.0}, "unet.onnx has the inputs "),
        ({"sample": np.full((1, 8, 8, 8), 1e300)}, "input sample: 1e+300 is not a value of float32"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(exported: Exported, changes: dict[str, object], complaint: str) -> None:
    out = exported("onnx", "int8")
    inputs, _ = golden_case(out)
    with pytest.raises(errors.RuntimeFault) as caught:
        md_export.open_export(out).runner("unet").predict({**inputs, **changes})  # type: ignore[dict-item]
    assert str(caught.value).startswith(complaint)


def test_results_print_as_tables_and_show_as_html(copy_of: Exported) -> None:
    out = copy_of("onnx", "int8")
    sound = md_export.verify(str(out))
    assert sound.passed and sound.failures == ()
    assert [item.component for item in sound.details.components] == ["text_encoder", "unet", "vae_decoder"]
    text, page = str(sound), sound._repr_html_()
    assert "golden cases" in text.splitlines()[0]
    assert [line for line in text.splitlines() if "unet" in line and " ok " in line]
    assert "\x1b" not in text and not text.endswith("\n")
    assert page.startswith("<table><caption>onnx-int8: parity") and page.count("<tr>") == 5
    assert '<td style="text-align:left">ok</td>' in page
    assert "unet.onnx" in str(md_export.open_export(out))

    def demand(manifest: dict[str, dict[str, dict[str, dict[str, float]]]]) -> None:
        manifest["recipe"]["tolerances"]["unet"]["snr_db"] = 90.0

    edit_json(out / "manifest.json", demand)
    short = md_export.verify(out)
    assert not short.passed
    assert short.failures[0].startswith("unet: ")
    assert "FAIL" in str(short) and "FAIL" in short._repr_html_()


def test_html_shows_markup_as_text() -> None:
    from md_export.report.tables import drawn, tables_as_html

    page = tables_as_html([drawn("<b>", ("name", "n"), [("[red]<script>", "1\n2")])])
    assert "<script>" not in page and "[red]&lt;script&gt;" in page
    assert "<caption>&lt;b&gt;</caption>" in page
    assert '<td style="text-align:right">1<br>2</td>' in page


def test_audit_names_the_weight(exported: Exported, other_checkpoint: Path, tmp_path: Path) -> None:
    result = md_export.audit(str(exported("onnx", "int8")), str(md_export.nano_checkpoint()))
    assert result.passed
    assert result.details.components[1].proven_share > 0.9
    assert "stored weights against the checkpoint" in str(result)
    with pytest.raises(errors.ArtifactError, match="made from the checkpoint"):
        md_export.audit(exported("onnx", "int8"), other_checkpoint)
    shutil.copytree(exported("onnx", "int8"), tmp_path / "out")
    change(tmp_path / "out", "unet", one_value)
    damaged = md_export.audit(tmp_path / "out", md_export.nano_checkpoint())
    assert not damaged.passed
    assert any(line.startswith("unet: ") and "weight" in line for line in damaged.failures), damaged.failures
    assert pickle.loads(pickle.dumps(damaged)) == damaged  # noqa: S301 (made here)


@pytest.mark.parametrize(
    ("option", "complaint"),
    [
        ({"size": "large"}, "size"),
        ({"size": (64, 64, 64)}, "size"),
        ({"timestep": 1.5}, "timestep: Input should be a valid integer"),
        ({"sampler": "foo", "steps": 2}, "sampler: Input should be 'ddim'"),
        ({"chunks": "many"}, "chunks"),
        ({"loras": "crayon.safetensors"}, "loras: Input should be a valid tuple"),
        ({"golden": "a\0b"}, "is not a path: it contains a null character"),
    ],
)
def test_a_wrong_option_is_named_in_a_line(tmp_path: Path, option: dict[str, Any], complaint: str) -> None:
    with pytest.raises(errors.UsageError) as caught:
        md_export.export("onnx-fp16", md_export.nano_checkpoint(), tmp_path / "out", **option)
    assert complaint in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_loras_of_no_checkpoint_are_refused(tmp_path: Path) -> None:
    with pytest.raises(errors.UsageError, match="add checkpoint="):
        md_export.verify(tmp_path, loras=["crayon.safetensors"])


def test_generate_gives_the_picture_of_the_command(exported: Exported, nano: Path) -> None:
    out = exported("onnx", "int8")
    made = md_export.generate(PROMPT, artifacts=str(out), seed=3)
    assert (made.mode, made.size) == ("RGB", (64, 64))
    assert np.array_equal(np.asarray(made), to_bytes(pictures_of_artifacts(out, [(PROMPT, 3)])[0]))
    torch = md_export.generate(PROMPT, checkpoint=str(nano), seed=3)
    assert np.array_equal(np.asarray(torch), to_bytes(pictures_of_checkpoint(nano, [(PROMPT, 3)])[0]))
    assert not np.array_equal(np.asarray(torch), np.asarray(md_export.generate(PROMPT, checkpoint=nano, seed=4)))


def test_recipes_by_name_and_by_path(tmp_path: Path) -> None:
    shipped = md_export.load_recipe("coreml-fp16")
    assert (shipped.name, shipped.target) == ("coreml-fp16", "coreml")
    assert md_export.load_recipe(str(builtin_recipe("coreml", "fp16"))) == shipped
    own = tmp_path / "own.toml"
    own.write_text('extends = "coreml-fp16"\nname = "mine"\n')
    assert md_export.load_recipe(str(own)).name == "mine"
    with pytest.raises(errors.RecipeError) as caught:
        md_export.load_recipe("coreml-fp17")
    assert "\n" not in str(caught.value)
    assert all(name in str(caught.value) for name in ("coreml-fp17", *builtin_recipes()))


@pytest.mark.parametrize(
    ("call", "kind", "said"),
    [
        (lambda: md_export.open_export("nowhere"), errors.ArtifactError, "nowhere holds no manifest.json"),
        (lambda: md_export.verify("nowhere"), errors.ArtifactError, "nowhere holds no manifest.json"),
        (lambda: md_export.audit("nowhere", "x"), errors.ArtifactError, "nowhere holds no manifest.json"),
        (lambda: md_export.open_checkpoint("nowhere"), errors.CheckpointError, "nowhere does not exist"),
        (lambda: md_export.export("onnx-fp16", "nowhere", "out"), errors.CheckpointError, "nowhere does not exist"),
        (lambda: md_export.export("onnx-fp17", "x", "out"), errors.RecipeError, "onnx-fp17"),
        (lambda: md_export.generate("a cat"), errors.UsageError, "name what makes the picture"),
        (lambda: md_export.generate("a cat", artifacts="x", checkpoint="x"), errors.UsageError, "exclude each other"),
        (lambda: md_export.generate("a cat", artifacts="x", mask="m.png"), errors.UsageError, "--init-image"),
    ],
)
def test_bad_input_is_one_clear_error(
    call: object, kind: type[Exception], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(kind) as caught:
        call()  # type: ignore[operator]
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_component_that_an_export_lacks(exported: Exported) -> None:
    with pytest.raises(errors.ArtifactError, match="the export has no 'vae_encoder', only text_encoder, unet"):
        md_export.open_export(exported("onnx", "int8")).runner("vae_encoder")


def test_a_library_that_is_missing_is_one_line() -> None:
    with pytest.raises(errors.MissingExtraError) as caught:
        import_quietly("no_such_vendor.part", "mil")
    assert str(caught.value) == "no_such_vendor is not installed: pip install 'md-export[mil]'"
    with pytest.raises(ModuleNotFoundError, match="no_such_part"):
        import_quietly("json.no_such_part", "mil")


QUIET = """
import sys, numpy, md_export
from md_export import mil
out = md_export.open_export({out!r})
runner = out.runner("unet")
runner.predict({{spec.name: spec.zeros() for spec in runner.inputs}})
md_export.generate("a cat", artifacts=out)
md_export.generate("a cat", checkpoint=md_export.nano_checkpoint())
md_export.verify(out)
print("seen", file=sys.stderr)
for file in out.path.glob("unet.mlpackage"):
    program = mil.load(str(file))
    program.predict({{item.name: numpy.zeros(item.shape) for item in program.inputs}})
"""


@pytest.mark.parametrize("target", ["coreml", "tflite", "onnx"])
def test_nothing_is_printed(exported: Exported, target: str) -> None:
    """No log lines of vendors, in a script without a ``__main__`` guard."""
    code = QUIET.format(out=str(exported(target, "int8")))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "seen\n")


if TYPE_CHECKING:
    # make lint runs mypy on this: it must see types behind the lazy names, and errors where there are some.
    assert_type(md_export.verify("out"), md_export.CheckResult[Verdict])
    assert_type(md_export.open_export("out").runner("unet").predict({"x": [1.0]}), dict[str, Array])
    md_export.verfy("out")  # type: ignore[attr-defined]
    md_export.export("onnx-fp16", 3, "out")  # type: ignore[arg-type]
