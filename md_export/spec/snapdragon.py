"""Snapdragon phones whose Hexagon NPU an ONNX graph can be compiled for.

``model`` and ``htp`` are Qualcomm's own numbers: ``QNN_SOC_MODEL_<part>`` of its QNN SDK (``QnnTypes.h``) and the
architecture of its Hexagon Tensor Processor. The SDK's "Supported Snapdragon devices" has both, and so has the table of
ExecuTorch's Qualcomm backend, which is public: ``backends/qualcomm/serialization/qc_schema.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

_SDK: Final = "QNN SDK, Supported Snapdragon devices; ExecuTorch, backends/qualcomm/serialization/qc_schema.py"


@dataclass(frozen=True)
class Soc:
    """One generation of phones.

    Attributes:
        name: as recipes and ``--npu`` have it.
        title: as phones are sold with it.
        part: Qualcomm's number of the chip, which Android tells in ``ro.soc.model``.
        model, htp: the compiler's numbers for the chip and its NPU's architecture.
        source: of both.
    """

    name: str
    title: str
    part: str
    model: int
    htp: int
    source: str = _SDK


SOCS: Final[Mapping[str, Soc]] = {
    soc.name: soc
    for soc in (
        Soc("snapdragon-8-gen2", "Snapdragon 8 Gen 2", "SM8550", 43, 73),
        Soc("snapdragon-8-gen3", "Snapdragon 8 Gen 3", "SM8650", 57, 75),
        Soc("snapdragon-8-elite", "Snapdragon 8 Elite", "SM8750", 69, 79),
        Soc("snapdragon-8-elite-gen5", "Snapdragon 8 Elite Gen 5", "SM8850", 87, 81),
    )
}
