"""The Core ML runtime with the extra mil alone: a float16 package is written, loaded and compared with torch."""

import importlib.util

import coremltools as ct
import numpy as np
import torch
from coremltools.converters.mil import Builder

from md_export import mil

for absent in ("transformers", "torchvision", "ai_edge_litert", "litert_torch", "onnx", "onnxruntime", "diffusers"):
    assert importlib.util.find_spec(absent) is None, absent

rng = np.random.default_rng(0)
weight = rng.standard_normal((16, 4, 3, 3)).astype(np.float32)


@Builder.program(input_specs=[Builder.TensorSpec((1, 4, 8, 8))], opset_version=ct.target.iOS17)
def program(x: object) -> object:
    """Convolve x [1, 4, 8, 8] with 16 filters."""
    return Builder.relu(x=Builder.conv(x=x, weight=weight, pad_type="same"), name="y")


ct.convert(program, minimum_deployment_target=ct.target.iOS17).save("conv.mlpackage")
x = rng.standard_normal((1, 4, 8, 8)).astype(np.float32)
made = mil.load("conv.mlpackage").predict({"x": x})["y"]
wanted = torch.relu(torch.nn.functional.conv2d(torch.from_numpy(x), torch.from_numpy(weight), padding=1)).numpy()
error = float(np.abs(made - wanted).max() / np.abs(wanted).max())
print(f"conv.mlpackage: y {list(made.shape)} {made.dtype}, largest error {error:.1e} of the largest value")
assert made.shape == (1, 16, 8, 8) and error < 2e-3
