#!PYTHON
"""As LiteRT's run_model: reads <name>.raw, logs all values to stderr (litert/tools/run_model.cc, tensor_utils.h)."""

import os
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, os.environ["KIT"])
from run_here import open_tflite  # type: ignore[import-not-found]

from md_export.targets.tflite.run import load

FLAGS = dict(word.removeprefix("--").split("=", 1) for word in sys.argv[1:])
assert set(FLAGS) - {"gpu_precision"} == {
    "graph",
    "accelerator",
    "input_dir",
    "print_tensors",
    "compare_numerical",
    "sample_size",
}


def log(text: str) -> None:
    print(f"I0000 00:00:1733000000.123456   12345 run_model.cc:340] {text}", file=sys.stderr)


def show(kind: str, number: int, value: "np.ndarray[tuple[int, ...], np.dtype[np.generic]]") -> None:
    log(f"{kind} buffer {number}:")
    log(f"  Size: {value.nbytes} bytes")
    log("  Dimensions: [")
    for size in value.shape:
        log(f"    {size}")
    log("  ]")
    most = int(FLAGS["sample_size"])
    log(f"  Beginning {min(most, value.size)} elements:")
    for place, item in enumerate(value.ravel()[:most].tolist()):
        log(f"    {place}: {item:g}")


graph = Path(FLAGS["graph"])
if graph.name == os.environ.get("FAILS"):
    print("ERROR: Failed to build program executable", file=sys.stderr)
    sys.exit(1)
specs = load(graph).inputs
inputs = {
    spec.name: np.fromfile(Path(FLAGS["input_dir"]) / f"{spec.name}.raw", spec.dtype).reshape(spec.shape)
    for spec in specs
}
for number, value in enumerate(inputs.values()):
    show("Input", number, value)
for number, value in enumerate(open_tflite(graph, "")(inputs).values()):
    show("Output", number, value)
log("Model run completed")
