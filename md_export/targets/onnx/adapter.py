"""Files of onnxruntime's own format for LoRAs, ``.onnx_adapter``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort

from md_export.spec.tensors import Arrays

_VERSION = 1


def write_adapter(values: Arrays, path: Path) -> None:
    """Write values of a graph's inputs, as float32, for ``OrtLoraAdapter`` and ``RunOptions.add_active_adapter``."""
    found = ort.AdapterFormat()
    found.set_adapter_version(_VERSION)
    found.set_model_version(_VERSION)
    whole = {name: np.ascontiguousarray(value, np.float32) for name, value in values.items()}
    found.set_parameters({name: ort.OrtValue.ortvalue_from_numpy(value) for name, value in whole.items()})
    found.export_adapter(str(path))
