"""Names of components, sampling methods and phones, for tables, recipes and the command line; nothing is loaded.

A phone's chip is known by Qualcomm's own numbers ``model`` and ``htp``: ``QNN_SOC_MODEL_<part>`` of its QNN SDK
(``QnnTypes.h``) and the architecture of its Hexagon Tensor Processor, whose NPU an ONNX graph can be compiled for. The
SDK's "Supported Snapdragon devices" has both, and so has the table of ExecuTorch's Qualcomm backend, which is public:
``backends/qualcomm/serialization/qc_schema.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, get_args

ComponentName = Literal[
    "text_encoder", "text_encoder_2", "vae_encoder", "t2i_adapter", "controlnet", "unet", "transformer", "vae_decoder"
]
# In which they run, and stand in an export.
ORDER: Final[tuple[ComponentName, ...]] = get_args(ComponentName)
# Those that only some families or checkpoints have, each with the one whose scheme, tolerance and costs it shares.
OPTIONAL_NAMES: Final[Mapping[str, str]] = {
    "text_encoder_2": "text_encoder",
    "vae_encoder": "vae_decoder",
    "t2i_adapter": "unet",
    "controlnet": "unet",
    "transformer": "unet",
}
# Those that stand for the whole model in a recipe.
COMPONENT_NAMES: Final = tuple(name for name in ORDER if name not in OPTIONAL_NAMES)
# Model families, in the files of models/families; exports and golden cases name theirs.
FamilyName = Literal["md", "sd15", "sdxl", "pixart", "dit"]
# Of exports and golden cases that name none.
DEFAULT_FAMILY: Final[FamilyName] = "md"

# Sampling methods, in the files of models/sampling.
Method = Literal["ddim", "euler", "euler_ancestral", "dpmpp_2m", "lcm", "tcd", "flow_match_euler"]
METHODS: Final[tuple[Method, ...]] = get_args(Method)

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
