"""Kits for phones: stand-ins run them on this machine by the same scripts; results are judged, damaged ones refused."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from md_export.cli import cli
from md_export.errors import MdExportError
from md_export.parity.device import kit as kit_module
from md_export.parity.golden.folder import read_golden
from md_export.report.verdicts import DEVICE_HEAD
from md_export.spec.manifest import read_manifest
from md_export.targets import TARGETS
from mutations import edit_json
from support import Exported

SCRIPTS = Path(kit_module.__file__).with_name("scripts")
STANDINS = Path(__file__).with_name("phone")
DOCS = Path(__file__).parents[2] / "docs"
CASES = 2


def invoke(*words: object) -> Result:
    return CliRunner().invoke(cli, [str(word) for word in words])


def code_of(ended: Result) -> int:
    if isinstance(ended.exception, MdExportError):
        assert "\n" not in str(ended.exception)
        return ended.exception.exit_code
    return ended.exit_code


@pytest.fixture(scope="module")
def kit_of(exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path]]:
    """A target → an export, and a kit of it."""
    kits: dict[str, tuple[Path, Path]] = {}

    def get(target: str) -> tuple[Path, Path]:
        if target not in kits:
            out, folder = exported(target, "int8"), tmp_path_factory.mktemp("kits") / target
            assert invoke("device-test", out, "-o", folder, "--cases", CASES).exit_code == 0
            kits[target] = out, folder
        return kits[target]

    return get


def started_here(kit: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(kit / "run_here.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def run_here(kit: Path) -> Path:
    done = started_here(kit)
    assert (done.returncode, done.stderr) == (0, "") or "INFO: " in done.stderr, done.stderr
    return kit / "results"


@pytest.fixture(scope="module")
def onnx(kit_of: Callable[[str], tuple[Path, Path]]) -> tuple[Path, Path]:
    """An ONNX export, and results of its kit."""
    out, kit = kit_of("onnx")
    return out, run_here(kit)


@pytest.fixture
def results(onnx: tuple[Path, Path], tmp_path: Path) -> Path:
    """A copy of results that a test may damage."""
    return Path(shutil.copytree(onnx[1], tmp_path / "results"))


def test_a_kit_lists_its_tensors(kit_of: Callable[[str], tuple[Path, Path]]) -> None:
    out, kit = kit_of("tflite")
    content = json.loads((kit / "kit.json").read_text())
    assert content["manifest_sha256"] == hashlib.sha256((out / "manifest.json").read_bytes()).hexdigest()
    assert [part["component"] for part in content["components"]] == ["text_encoder", "unet", "vae_decoder"]
    for part in content["components"]:
        assert (kit / "files" / part["file"]).read_bytes() == (out / part["file"]).read_bytes()
        assert [case["name"] for case in part["cases"]] == ["000", "001"]
        for tensor in (tensor for case in part["cases"] for tensor in (*case["inputs"], *case["outputs"])):
            value = (kit / tensor["file"]).read_bytes()
            assert len(value) == 4 * np.prod(tensor["shape"]) and tensor["dtype"] in ("float32", "int32")
            assert hashlib.sha256(value).hexdigest() == tensor["sha256"]
    unet = content["components"][1]["cases"][0]["inputs"]
    assert sorted(item["name"] for item in unet) == sorted(spec.name for spec in read_manifest(out).artifacts[1].inputs)


def test_tensors_of_a_tflite_file_are_in_its_order(kit_of: Callable[[str], tuple[Path, Path]]) -> None:
    """Both of LiteRT's tools number inputs and outputs by the graph; a signature lists them by name."""
    from ai_edge_litert.interpreter import Interpreter

    _, kit = kit_of("tflite")
    interpreter = Interpreter(model_path=str(kit / "files" / "unet.tflite"))
    named = interpreter.get_signature_runner("main").get_input_details()
    order = [detail["index"] for detail in interpreter.get_input_details()]
    unet = json.loads((kit / "kit.json").read_text())["components"][1]["cases"][0]
    listed = [tensor["name"] for tensor in unet["inputs"]]
    assert [named[name]["index"] for name in listed] == order
    assert [named[name]["index"] for name in sorted(listed)] != order


def test_results_of_the_same_runtime_have_its_figures(onnx: tuple[Path, Path], tmp_path: Path) -> None:
    out, results = onnx
    ended = invoke("device-report", out, results, "--json", tmp_path / "report.json")
    assert code_of(ended) == 0, ended.output
    found = json.loads((tmp_path / "report.json").read_text())
    assert found["device"]["runtime"].startswith("onnxruntime ") and found["verdict"]["cases"] == CASES
    extent = f"{CASES} of {len(read_golden(out / 'golden').cases)} golden cases"
    assert ended.output.count(extent) == len(("table", "last line"))
    for item, entry in zip(found["verdict"]["components"], read_manifest(out).artifacts, strict=True):
        assert entry.parity is not None
        # The worst of two cases is no worse than that of all.
        assert item["parity"]["snr_db"] > entry.parity.snr_db - 0.1 and item["faults"] == []


def swap_channels(results: Path) -> None:
    file = results / "unet" / "001" / "out_sample.bin"
    value = np.fromfile(file, "<f4").reshape(8, -1)
    value[[0, 3]] = value[[3, 0]]
    value.tofile(file)


def put_nan(results: Path) -> None:
    file = results / "vae_decoder" / "000" / "image.bin"
    value = np.fromfile(file, "<f4")
    value[7] = np.nan
    value.tofile(file)


def say_failed(results: Path) -> None:
    shutil.rmtree(results / "unet")
    (results / "unet").mkdir()
    (results / "unet" / "failed.txt").write_text("ERROR: Failed to build\n\x1b[2Jprogram executable\n")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (swap_channels, "unet in onnxruntime"),
        (put_nan, "1 NaN and 0 Inf of"),
        (say_failed, "unet in onnxruntime"),
    ],
)
def test_wrong_figures_are_judged(
    damage: Callable[[Path], None], words: str, onnx: tuple[Path, Path], results: Path
) -> None:
    damage(results)
    ended = invoke("device-report", onnx[0], results)
    assert code_of(ended) == 3 and words in str(ended.exception)


def link_file(results: Path) -> None:
    file = results / "unet" / "000" / "out_sample.bin"
    file.rename(results / "elsewhere")
    file.symlink_to(results / "elsewhere")


def link_folder(results: Path) -> None:
    (results / "unet").rename(results / "elsewhere")
    (results / "unet").symlink_to(results / "elsewhere")


def link_failure(results: Path) -> None:
    (results / "unet" / "failed.txt").symlink_to("/etc/hostname")


def put_pipe(results: Path) -> None:
    (results / "device.json").unlink()
    os.mkfifo(results / "device.json")


def edit(results: Path, **fields: object) -> None:
    edit_json(results / "device.json", lambda device: device.update(fields))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda r: (r / "unet" / "001" / "out_sample.bin").unlink(), r"out_sample\.bin is missing"),
        (lambda r: (r / "unet" / "001" / "out_sample.bin").write_bytes(b"abc"), r"has 3 bytes instead of [\d,]+;"),
        (lambda r: os.truncate(r / "unet" / "001" / "out_sample.bin", 1 << 40), r"has 1,099,511,627,776 bytes instead"),
        (lambda r: shutil.rmtree(r / "vae_decoder"), "vae_decoder is missing"),
        (lambda r: (r / "device.json").unlink(), r"device\.json is missing"),
        (lambda r: (r / "device.json").write_text("{" * 9999), "does not describe a device"),
        (lambda r: (r / "device.json").write_text("9" * 99999), "is larger than"),
        (lambda r: edit(r, manifest_sha256="0" * 64), "results of another export"),
        (lambda r: edit(r, golden_cases=0), "has 0 golden cases"),
        (lambda r: edit(r, golden_cases=9999), "has 9999 golden cases"),
        (lambda r: edit(r, device="\x1b[2J"), "control character"),
        (lambda r: edit(r, device="one\ntwo"), "does not describe a device: device"),
        (lambda r: edit(r, device="x" * 201), "does not describe a device: device"),
        (lambda r: edit(r, path="/etc/passwd"), "does not describe a device: path"),
        (link_file, "is a link or no file"),
        (link_folder, "is a link or no folder"),
        (link_failure, "is a link or no file"),
        (lambda r: (r / "unet" / "failed.txt").symlink_to("nowhere"), "is a link or no file"),
        (put_pipe, "is a link or no file"),
    ],
)
def test_bad_folders_are_refused_in_one_line(
    damage: Callable[[Path], object], words: str, onnx: tuple[Path, Path], results: Path
) -> None:
    damage(results)
    ended = invoke("device-report", onnx[0], results)
    assert code_of(ended) == 2 and re.search(words, str(ended.exception)), ended.exception


def test_results_of_another_export_are_refused(
    onnx: tuple[Path, Path], kit_of: Callable[[str], tuple[Path, Path]]
) -> None:
    ended = invoke("device-report", kit_of("tflite")[0], onnx[1])
    assert code_of(ended) == 2 and "results of another export" in str(ended.exception)


def test_a_row_for_the_docs_has_their_columns(onnx: tuple[Path, Path], results: Path) -> None:
    edit(results, device="Pixel | <b>9</b>")
    row = invoke("device-report", onnx[0], results, "--row").output.splitlines()[0]
    assert row.startswith(r"| Pixel \| &lt;b>9&lt;/b> |") and f"| {CASES} of " in row and "| ok |" in row
    swap_channels(results)
    assert "| unet FAIL: snr" in invoke("device-report", onnx[0], results, "--row").output
    lines = (DOCS / "devices.md").read_text().splitlines()
    head = lines.index(f"| {' | '.join(DEVICE_HEAD)} |")
    rows = [line for line in lines[head + 2 :] if line.startswith("|")]
    assert rows and all(len(re.findall(r"(?<!\\)\|", line)) == len(DEVICE_HEAD) + 1 for line in (*rows, row))


def test_markup_of_a_device_is_text(onnx: tuple[Path, Path], results: Path) -> None:
    edit(results, driver="OpenGL [/] [red]3")
    ended = invoke("device-report", onnx[0], results)
    assert code_of(ended) == 0 and "OpenGL [/] [red]3" in ended.output


def test_a_provider_that_onnxruntime_replaces_by_its_cpu_is_a_failure(
    onnx: tuple[Path, Path], kit_of: Callable[[str], tuple[Path, Path]], tmp_path: Path
) -> None:
    kit = Path(shutil.copytree(kit_of("onnx")[1], tmp_path / "kit", ignore=shutil.ignore_patterns("results")))
    assert "onnxruntime has no QNNExecutionProvider here" in started_here(kit, "QNNExecutionProvider").stderr
    ended = invoke("device-report", onnx[0], kit / "results")
    assert code_of(ended) == 3 and str(ended.exception).count("did not run on the device") == 3


def test_an_altered_artifact_gets_no_kit(copy_of: Exported, tmp_path: Path) -> None:
    out = copy_of("onnx", "int8")
    with (out / "unet.onnx").open("ab") as file:
        file.write(b"\0")
    ended = invoke("device-test", out, "-o", tmp_path / "kit")
    assert code_of(ended) == 1 and "was altered since the export" in str(ended.exception)
    assert not (tmp_path / "kit").exists()


def test_a_kit_of_core_ml_takes_what_the_packages_give(exported: Exported, tmp_path: Path) -> None:
    out, kit = exported("coreml", "fp16"), tmp_path / "kit"
    assert invoke("device-test", out, "-o", kit, "--cases", 1).exit_code == 0
    content = json.loads((kit / "kit.json").read_text())
    # What main.swift decodes is there. It cannot be compiled here.
    swift = (kit / "main.swift").read_text()
    for struct, value in (
        ("Kit", content),
        ("Component", content["components"][0]),
        ("Case", content["components"][0]["cases"][0]),
        ("Tensor", content["components"][0]["cases"][0]["inputs"][0]),
    ):
        body = re.search(rf"struct {struct}: Decodable {{(.*?)\n}}", swift, re.DOTALL)
        assert body and set(re.findall(r"let (\w+):", body[1])) <= set(value)
    fields = re.search(r"struct Device: Encodable {(.*?)\n}", swift, re.DOTALL)
    assert fields
    device = dict.fromkeys(re.findall(r"let (\w+)", fields[1]), "words")
    (kit / "results").mkdir()
    for part in content["components"]:
        runner = TARGETS["coreml"].open().load(kit / "files" / part["file"])
        for case in part["cases"]:
            values = {
                item["name"]: np.fromfile(kit / item["file"], item["dtype"]).reshape(item["shape"])
                for item in case["inputs"]
            }
            folder = kit / "results" / part["component"] / case["name"]
            folder.mkdir(parents=True)
            for name, value in runner.run(values).items():
                value.tofile(folder / f"{name}.bin")
    origin = {"schema": 1, "manifest_sha256": content["manifest_sha256"], "golden_cases": 1}
    (kit / "results" / "device.json").write_text(json.dumps(device | origin))
    assert code_of(invoke("device-report", out, kit / "results")) == 0


def run_android(kit: Path, folder: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run run-android.sh with an ``adb`` whose phone is a folder, and tools of LiteRT that call the stand-in."""
    for engine in ("litert-latest", "delegate-nightly"):
        tools = kit / "tools" / engine
        tools.mkdir(parents=True, exist_ok=True)
        for name in ("run_model", "benchmark_model"):
            tool = (STANDINS / f"{name}.py").read_text().replace("PYTHON", sys.executable, 1)
            (tools / name).write_text(tool)
        for name in ("libLiteRt.so", "libLiteRtClGlAccelerator.so"):
            (tools / name).touch()
    environment = {
        **os.environ,
        "PATH": f"{STANDINS}:{os.environ['PATH']}",
        "PHONE": str(folder / "phone"),
        "KIT": str(kit),
        **variables,
    }
    command = [str(kit / "run-android.sh"), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.mark.parametrize("words", [("gpu",), ("cpu", "delegate")])
def test_the_android_script_runs_all_and_its_results_pass(
    words: tuple[str, ...], kit_of: Callable[[str], tuple[Path, Path]], tmp_path: Path
) -> None:
    out, kit = kit_of("tflite")
    kit = Path(shutil.copytree(kit, tmp_path / "kit", ignore=shutil.ignore_patterns("results", "tools")))
    done = run_android(kit, tmp_path, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    ended = invoke("device-report", out, kit / "results", "--json", tmp_path / "report.json")
    assert code_of(ended) == 0, ended.exception
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["device"]["device"] == "Acme Phone 9, SM0000" and "Adreno (TM) 740" in report["device"]["driver"]
    assert report["device"]["backend"] == words[0]
    assert "Inference (avg)" in (kit / "results" / "unet" / "benchmark.txt").read_text()
    assert not (tmp_path / "phone" / "md-export-kit").exists()
    # A second run does not mix with the first.
    assert run_android(kit, tmp_path, *words).returncode == 2


def test_the_android_script_records_what_did_not_run(
    kit_of: Callable[[str], tuple[Path, Path]], tmp_path: Path
) -> None:
    out, kit = kit_of("tflite")
    kit = Path(shutil.copytree(kit, tmp_path / "kit", ignore=shutil.ignore_patterns("results", "tools")))
    done = run_android(kit, tmp_path, "gpu", FAILS="unet.tflite")
    assert done.returncode == 0 and "unet did not run" in done.stderr
    ended = invoke("device-report", out, kit / "results")
    assert code_of(ended) == 3
    assert "did not run on the device: ERROR: Failed to build program executable" in str(ended.exception)
    assert "vae_decoder" not in str(ended.exception)


def test_outputs_of_the_case_before_are_not_taken(kit_of: Callable[[str], tuple[Path, Path]], tmp_path: Path) -> None:
    out, kit = kit_of("tflite")
    kit = Path(shutil.copytree(kit, tmp_path / "kit", ignore=shutil.ignore_patterns("results", "tools")))
    done = run_android(kit, tmp_path, "cpu", "delegate", MUTE="/001/")
    assert done.returncode == 0 and "unet did not run" in done.stderr, done.stderr
    ended = invoke("device-report", out, kit / "results")
    assert code_of(ended) == 3 and str(ended.exception).count("did not run on the device") == 3


def test_the_tflite_kit_runs_on_this_machine(kit_of: Callable[[str], tuple[Path, Path]]) -> None:
    out, kit = kit_of("tflite")
    done = started_here(kit, "QNNExecutionProvider")
    assert done.returncode == 1 and "is for .onnx files" in done.stderr and not (kit / "results").exists()
    results = run_here(kit)
    assert code_of(invoke("device-report", out, results)) == 0
    swap_channels(results)
    assert code_of(invoke("device-report", out, results)) == 3


def test_the_shell_script_is_clean(tmp_path: Path) -> None:
    script, checker = SCRIPTS / "run-android.sh", Path(sys.executable).with_name("shellcheck")
    assert subprocess.run([str(checker), str(script)], capture_output=True, text=True, check=False).stdout == ""
    broken = tmp_path / "broken.sh"
    broken.write_text(script.read_text().replace('"results/$component/$name"', "results/$component/$name", 1))
    found = subprocess.run([str(checker), str(broken)], capture_output=True, text=True, check=False)
    assert "SC2086" in found.stdout


def test_each_program_is_in_the_readme_of_its_kit() -> None:
    for target, programs in kit_module.PROGRAMS.items():
        text = (SCRIPTS / f"README-{target}.md").read_text()
        assert all(name in text for name in programs if name != "android.py")
        assert "md-export device-report OUT" in text
