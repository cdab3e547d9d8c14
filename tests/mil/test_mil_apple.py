"""Our runtime of Core ML packages beside Apple's own, on a Mac: the nano packages, on their golden inputs."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from md_export.errors import RuntimeFault
from md_export.parity.metrics import snr_db
from md_export.parity.opened_export import open_export
from md_export.parity.subject import Subject
from md_export.spec.tensors import Arrays
from md_export.targets import TARGETS
from support import Exported

COMPONENTS = ("text_encoder", "unet", "vae_decoder")
# Apple adds products in other orders, and in float16 on the Neural Engine: two roundings of one value.
LEAST_DB = {"fp32": 60.0, "fp16": 40.0, "int8": 40.0}


def golden(out: Path, component: str) -> tuple[Path, Arrays]:
    """A package, and its inputs in the first golden case."""
    export = open_export(out)
    subject = Subject(export, export.manifest.entry_for(component), export.golden.cases[:1])
    return subject.path, subject.inputs()[0]


@pytest.mark.skipif(sys.platform != "darwin", reason="MLModel.predict runs only on a Mac")
@pytest.mark.parametrize("component", COMPONENTS)
@pytest.mark.parametrize("precision", LEAST_DB)
def test_apple_computes_what_our_runtime_computes(exported: Exported, precision: str, component: str) -> None:
    package, inputs = golden(exported("coreml", precision), component)
    target = TARGETS["coreml"].open()
    ours, apple = (target.load(package, runtime).run(inputs) for runtime in ("mil", "coreml"))
    assert list(ours) == list(apple)
    for name, value in apple.items():
        assert (value.shape, value.dtype) == (ours[name].shape, ours[name].dtype)
        assert snr_db(ours[name], value) >= LEAST_DB[precision]
        assert snr_db(np.multiply(ours[name], np.float32(1.02)), value) < LEAST_DB[precision], "2 % more"


@pytest.mark.skipif(sys.platform == "darwin", reason="a Mac has it")
def test_apples_runtime_is_refused_elsewhere(conv_package: Path) -> None:
    with pytest.raises(RuntimeFault, match="runs only on a Mac"):
        TARGETS["coreml"].open().load(conv_package, "coreml")
