"""Run Core ML's ML programs (saved ``.mlpackage``s) anywhere torch runs: protobuf in, arrays out.

    program = load("UNet.mlpackage")
    outputs = program.predict({"sample": sample, "timestep": timestep, "encoder_hidden_states": text})

Names, shapes and casts follow ``coremltools.models.MLModel.predict``.
"""

from md_export.mil.loading import load, patch_predict
from md_export.mil.program import Event, Observer, Precision, Program, State

__all__ = ["Event", "Observer", "Precision", "Program", "State", "load", "patch_predict"]
