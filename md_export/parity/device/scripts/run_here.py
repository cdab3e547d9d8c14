"""Run this kit on this machine and write the folder results/: LiteRT for .tflite files, onnxruntime for .onnx files.

    python run_here.py                              CPU: XNNPACK, or onnxruntime's CPUExecutionProvider
    python run_here.py QNNExecutionProvider "Surface Laptop 7"        another provider of onnxruntime, and the device

Needs numpy, and ai-edge-litert or onnxruntime.
"""

import importlib.metadata
import json
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

KIT = Path(__file__).parent
RESULTS = KIT / "results"
Run = Callable[[dict[str, Any]], dict[str, Any]]


def open_tflite(path: Path, _: str) -> Run:
    """Return a function that runs a .tflite file in LiteRT's interpreter on XNNPACK."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path))
    interpreter.allocate_tensors()
    (signature,) = interpreter.get_signature_list()
    # A signature's runner does not keep its interpreter alive.
    return lambda inputs: dict(interpreter.get_signature_runner(signature)(**inputs))


def open_onnx(path: Path, provider: str) -> Run:
    """Return a function that runs an .onnx file in onnxruntime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # Older x86 processors overflow in products of uint8 and int8; this option selects exact kernels for them only
    # (onnxruntime_session_options_config_keys.h).
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(str(path), options, providers=[provider])
    # onnxruntime falls back to its CPU provider if another one is missing or fails.
    if provider not in session.get_providers():
        raise RuntimeError(f"onnxruntime has no {provider} here; it chose {', '.join(session.get_providers())}")
    names = [output.name for output in session.get_outputs()]
    return lambda inputs: dict(zip(names, session.run(names, inputs), strict=True))


# For each file type: the function that opens it, the library's distribution, and the default provider.
RUNTIMES: dict[str, tuple[Callable[[Path, str], Run], str, str]] = {
    "tflite": (open_tflite, "ai-edge-litert", "cpu, XNNPACK"),
    "onnx": (open_onnx, "onnxruntime", "CPUExecutionProvider"),
}


def run_component(part: Any, run: Run) -> None:
    """Run an artifact on the inputs of each case, and write its outputs."""
    for case in part["cases"]:
        inputs = {}
        for tensor in case["inputs"]:
            values = np.fromfile(KIT / tensor["file"], np.dtype(tensor["dtype"]).newbyteorder("<"))
            inputs[tensor["name"]] = values.astype(tensor["dtype"]).reshape(tensor["shape"])
        outputs = run(inputs)
        folder = RESULTS / part["component"] / case["name"]
        folder.mkdir(parents=True)
        for tensor in case["outputs"]:
            value = np.asarray(outputs[tensor["name"]])
            value.astype(value.dtype.newbyteorder("<")).tofile(folder / f"{tensor['name']}.bin")


def system() -> str:
    """Return the name and version of the operating system."""
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except OSError:
        return f"{platform.system()} {platform.release()}"


def main(provider: str = "", device: str = "") -> None:
    """Run all artifacts; if one fails to run, write the reason."""
    if RESULTS.exists():
        sys.exit(f"error: {RESULTS} exists; nothing was changed. Move it away first")
    kit = json.loads((KIT / "kit.json").read_text(encoding="utf-8"))
    opener, library, backend = RUNTIMES[kit["target"]]
    if provider and kit["target"] != "onnx":
        sys.exit(f"error: {provider} is for .onnx files; this kit runs on {backend} only")
    RESULTS.mkdir()
    for part in kit["components"]:
        print(part["component"])
        try:
            run_component(part, opener(KIT / "files" / part["file"], provider or backend))
        except Exception as error:  # noqa: BLE001 (libraries raise any class; the report has the message)
            print(f"{part['component']} did not run: {error}", file=sys.stderr)
            (RESULTS / part["component"]).mkdir(exist_ok=True)
            (RESULTS / part["component"] / "failed.txt").write_text(f"{error}\n", encoding="utf-8")
    description = {
        "schema": 1,
        "manifest_sha256": kit["manifest_sha256"],
        "golden_cases": kit["golden_cases"],
        "device": device or f"CPU of a computer, {platform.machine()}",
        "os": system(),
        "driver": "none",
        "runtime": f"{library} {importlib.metadata.version(library)}",
        "backend": provider or backend,
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    (RESULTS / "device.json").write_text(json.dumps(description, indent=1), encoding="utf-8")
    print(f"{RESULTS}: copy this folder to the computer with the export, and run: md-export device-report OUT results")


if __name__ == "__main__":
    main(*sys.argv[1:])
