"""What a user meets: one clear line for each mistake, the right exit code, nothing half-written."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import commands
from mutations import flip_block, weight_file
from support import Exported


def md_export(
    *arguments: object, cwd: Path | None = None, env: dict[str, str] | None = None, fresh: bool = False
) -> subprocess.CompletedProcess[str]:
    """In a fork; in a new process where ``fresh`` or with an environment of its own. One of each command is fresh."""
    command = [sys.executable, "-c", "from md_export.cli import main; main()", *map(str, arguments)]
    run = subprocess.run if fresh or env else commands.run
    return run(command, capture_output=True, text=True, cwd=cwd, env={**os.environ, **(env or {})}, check=False)


def fails(result: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    """The last line explains, there is no traceback, and the exit code is the table's."""
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
    line = result.stderr.strip().splitlines()[-1]
    for word in words:
        assert word in line


def test_wrong_path(tmp_path: Path) -> None:
    fails(md_export("onnx", tmp_path / "none", "-o", tmp_path / "out"), 1, "error:", "none")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["onnx"],
        ["onnx", "--fp99", "-o", "x"],
        ["onnx", "--component", "vae", "-o", "x"],
        ["inspect", "--arch", "sd3"],
        ["frobnicate"],
    ],
)
def test_usage_errors_exit_2(arguments: list[str]) -> None:
    result = md_export(*arguments)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr


def test_contradicting_flags(tmp_path: Path, nano: Path) -> None:
    fails(md_export("inspect", nano, "--arch", "md"), 2, "exclude each other")
    fails(md_export("onnx", "--int8", "--recipe", tmp_path / "r.toml", "-o", tmp_path / "out"), 2, "give one of them")
    fails(md_export("golden", nano, "-o", tmp_path / "g"), 2, "--prompt")


def test_unknown_recipe_key(tmp_path: Path, nano: Path) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text('name="x"\ntarget="onnx"\nweight="int8"\n')
    result = md_export("onnx", nano, "--recipe", recipe, "-o", tmp_path / "out")
    fails(result, 1, "r.toml", "'weight'")
    assert not (tmp_path / "out").exists()


def test_recipe_of_another_target(tmp_path: Path) -> None:
    from md_export.spec.shipped_files import builtin_recipe

    result = md_export("onnx", "--recipe", builtin_recipe("coreml", "fp16"), "-o", tmp_path / "out")
    fails(result, 2, "md-export coreml --recipe")


def test_a_recipe_that_ships_goes_by_its_name(tmp_path: Path) -> None:
    out = tmp_path / "out"
    fails(md_export("onnx", "--recipe", "coreml-palette6", "-o", out), 2, "md-export coreml --recipe coreml-palette6")
    fails(md_export("coreml", "--recipe", "coreml-palette7", "-o", out), 2, "no recipe coreml-palette7", "coreml-int4")


def test_output_that_exists(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    fails(md_export("onnx", "-o", tmp_path), 1, "exists", "-o")
    assert (tmp_path / "mine").read_text() == "precious"


def damaged(nano: Path, tmp_path: Path) -> Path:
    import shutil

    return Path(shutil.copytree(nano, tmp_path / "checkpoint", ignore=shutil.ignore_patterns("golden", "training")))


UNET = "unet/diffusion_pytorch_model.safetensors"


def test_truncated_weights(nano: Path, tmp_path: Path) -> None:
    checkpoint = damaged(nano, tmp_path)
    weights = checkpoint / UNET
    weights.write_bytes(weights.read_bytes()[:5000])
    fails(md_export("onnx", checkpoint, "-o", tmp_path / "out"), 1, "diffusion_pytorch_model.safetensors")
    assert not (tmp_path / "out").exists()


def test_nan_weights(nano: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    checkpoint = damaged(nano, tmp_path)
    tensors = load_file(checkpoint / UNET)
    tensors["conv_in.weight"][0, 0, 0, 0] = float("nan")
    save_file(tensors, checkpoint / UNET)
    fails(md_export("onnx", checkpoint, "-o", tmp_path / "out"), 1, "conv_in.weight")
    assert sorted(item.name for item in tmp_path.iterdir()) == ["checkpoint"]


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.path}",)


def test_a_pickle_that_wants_to_run_code(nano: Path, tmp_path: Path) -> None:
    checkpoint = damaged(nano, tmp_path)
    (checkpoint / UNET).unlink()
    (checkpoint / "unet" / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps(Evil(tmp_path / "owned")))
    fails(md_export("onnx", checkpoint, "-o", tmp_path / "out"), 1, "diffusion_pytorch_model.bin")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("target", ["coreml", "tflite", "onnx"])
def test_missing_extra(tmp_path: Path, target: str) -> None:
    """Vendor modules are hidden by a finder that claims that they do not exist."""
    hide = tmp_path / "sitecustomize.py"
    hide.write_text(
        "import importlib.util as u\nfind = u.find_spec\n"
        "hidden = ('coremltools', 'litert_torch', 'onnx')\n"
        "u.find_spec = lambda name, *a: None if name in hidden else find(name, *a)\n"
    )
    result = md_export(target, "-o", tmp_path / "out", env={"PYTHONPATH": str(tmp_path)})
    fails(result, 1, f"pip install 'md-export[{target}]'")


def test_full_disk(tmp_path: Path) -> None:
    """Every write beyond 64 kB fails, as it does on a full disk or over quota."""
    code = (
        "import resource, signal\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))\n"
        "from md_export.cli import main\nmain()"
    )
    command = [sys.executable, "-c", code, "golden", "--prompt", "a", "-o", str(tmp_path / "out")]
    from md_export.spec.shipped_files import nano_checkpoint

    result = subprocess.run([*command, str(nano_checkpoint())], capture_output=True, text=True, check=False)
    fails(result, 1, "error:", "nothing was kept")
    assert list(tmp_path.iterdir()) == []


def test_inspect_md_meets_the_paper() -> None:
    result = md_export("inspect", "--arch", "md", fresh=True)
    assert result.returncode == 0
    assert "386" in result.stdout
    assert "padding" in result.stdout.lower()


def test_json_on_standard_output_is_alone_there() -> None:
    result = md_export("inspect", "--arch", "nano", "--json", "-")
    assert result.returncode == 0
    assert {item["name"] for item in json.loads(result.stdout)["components"]} >= {"unet"}
    assert "GMAC" in result.stderr


def test_report_writes_every_form_and_exits_as_verify(copy_of: Exported, tmp_path: Path) -> None:
    out, page = copy_of("onnx", "int8"), tmp_path / "report.html"
    options = ("--junit", tmp_path / "j.xml", "--markdown", tmp_path / "m.md", "--json", tmp_path / "r.json")
    result = md_export("report", out, "-o", page, *options, fresh=True)
    assert result.returncode == 0, result.stderr
    assert page.read_text().count('alt="by the artifacts"') == 12
    assert 'failures="0"' in (tmp_path / "j.xml").read_text()
    assert "verified" in (tmp_path / "m.md").read_text()
    flip_block(weight_file(out, "unet"))
    fails(md_export("report", out, "-o", page), 3, "unet")
    assert "falls short" in page.read_text()
    fails(md_export("report", out), 2, "--junit")


def test_run_executes_an_artifact(exported: Exported, tmp_path: Path) -> None:
    out = exported("coreml", "fp16")
    np.savez(tmp_path / "x.npz", input_ids=np.zeros((1, 77), np.int32))
    files = ("--inputs", tmp_path / "x.npz", "-o", tmp_path / "y.npz")
    result = md_export("run", out / "text_encoder.mlpackage", *files, fresh=True)
    assert result.returncode == 0, result.stderr
    with np.load(tmp_path / "y.npz") as made:
        assert made["last_hidden_state"].dtype == np.float32
        assert np.isfinite(made["last_hidden_state"]).all()


def test_run_says_what_is_wrong_with_inputs(exported: Exported, tmp_path: Path) -> None:
    artifact = exported("onnx", "int8") / "text_encoder.onnx"
    np.savez(tmp_path / "x.npz", ids=np.zeros((1, 77), np.int32))
    (tmp_path / "bad.npz").write_bytes(b"no zip")
    np.savez(tmp_path / "objects.npz", input_ids=np.asarray([{}], dtype=object))
    output = tmp_path / "y.npz"
    fails(md_export("run", artifact, "--inputs", tmp_path / "x.npz", "-o", output), 1, "input_ids")
    fails(md_export("run", artifact, "--inputs", tmp_path / "bad.npz", "-o", output), 2, "bad.npz")
    fails(md_export("run", artifact, "--inputs", tmp_path / "objects.npz", "-o", output), 2, "objects.npz")
    fails(md_export("run", artifact, "--inputs", tmp_path / "none.npz", "-o", output), 2, "none.npz")
    fails(md_export("run", tmp_path / "none.onnx", "--inputs", tmp_path / "x.npz", "-o", output), 1, "none.onnx")
    assert not output.exists()


def test_verify_exits_3_and_names_the_component(copy_of: Exported, tmp_path: Path) -> None:
    from mutations import flip_block, weight_file

    out = copy_of("onnx", "int8")
    flip_block(weight_file(out, "unet"))
    result = md_export("verify", out, "--json", tmp_path / "verdict.json", fresh=True)
    fails(result, 3, "unet:", "altered")
    verdict = json.loads((tmp_path / "verdict.json").read_text())
    assert verdict["components"][1]["faults"]


def test_verify_of_no_export(tmp_path: Path) -> None:
    fails(md_export("verify", tmp_path), 1, "manifest.json")


def test_generate_writes_a_picture(tmp_path: Path) -> None:
    prompt = "a large red circle on the left, white background"
    result = md_export("generate", prompt, "-o", tmp_path / "a.png", fresh=True)
    assert result.returncode == 0, result.stderr
    assert "nano checkpoint" in result.stderr
    picture = np.asarray(Image.open(tmp_path / "a.png").convert("RGB")).astype(int)
    height, width, _ = picture.shape
    left, right = picture[height // 2, width // 4], picture[height // 2, -width // 8]
    assert left[0] > left[2] + 60, "red on the left"
    assert right.min() > 180, "white on the right"


def test_generate_refuses_a_folder_that_is_not_there(tmp_path: Path) -> None:
    fails(md_export("generate", "a", "-o", tmp_path / "no" / "a.png"), 1, "does not exist")
