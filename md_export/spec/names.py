"""Names of components, sampling methods and phones, for tables, recipes and the command line; nothing is loaded.

A phone's chip is known by Qualcomm's own numbers ``model`` and ``htp``: ``QNN_SOC_MODEL_<part>`` of its QNN SDK
(``QnnTypes.h``) and the architecture of its Hexagon Tensor Processor, whose NPU an ONNX graph can be compiled for. The
SDK's "Supported Snapdragon devices" has both, and so has the table of ExecuTorch's Qualcomm backend, which is public:
``backends/qualcomm/serialization/qc_schema.py``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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
# Components that may be cut into chunks, which are called ``unet_chunk1``, ``unet_chunk2`` and so on.
CUTTABLE: Final[tuple[ComponentName, ...]] = ("unet", "transformer")
MOST_CHUNKS: Final = 16
_CHUNK: Final = "_chunk"
# Values that a chunk gives to later chunks begin so.
BORDER: Final = "border_"
# Model families, in the files of models/families; exports and golden cases name theirs, and after a colon in how many
# chunks the denoiser is: ``sd15:2``.
FamilyName = str
FAMILY_PATTERN: Final = "^(md|sd15|sdxl|pixart|dit)(:([2-9]|1[0-6]))?$"
# Of exports and golden cases that name none.
DEFAULT_FAMILY: Final[FamilyName] = "md"

# Sampling methods, in the files of models/sampling.
Method = Literal["ddim", "euler", "euler_ancestral", "dpmpp_2m", "lcm", "tcd", "flow_match_euler"]
METHODS: Final[tuple[Method, ...]] = get_args(Method)
# Share of a start picture to change, if none is given.
DEFAULT_STRENGTH: Final = 0.8

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


def chunk_names(component: str, count: int) -> tuple[str, ...]:
    """Return the names of a component's chunks: ``unet_chunk1``, ``unet_chunk2``."""
    return tuple(f"{component}{_CHUNK}{number}" for number in range(1, count + 1))


def part_names(components: Iterable[str], count: int) -> tuple[str, ...]:
    """Return components with chunks in place of those that are cut into ``count``; 0: nothing is."""
    names = (chunk_names(name, count) if count and name in CUTTABLE else (name,) for name in components)
    return tuple(part for of in names for part in of)


def whole_of(name: str) -> str:
    """Return the component that a chunk is of; any other component itself."""
    return name.partition(_CHUNK)[0]


def chunk_number(name: str) -> int:
    """Return a chunk's number, counted from 1; 0 for a whole component."""
    return int(name.partition(_CHUNK)[2] or 0)
