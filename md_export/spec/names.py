"""Names of components, sampling methods and phone chips for tables, recipes and the command line; imports no library.

A Snapdragon chip has two of Qualcomm's numbers: ``model``, which is ``QNN_SOC_MODEL_<part>`` in the QNN SDK
(``QnnTypes.h``), and ``htp``, the architecture of its NPU, the Hexagon Tensor Processor. Both are in the SDK's table
"Supported Snapdragon devices" and, publicly, in ExecuTorch's Qualcomm backend:
``backends/qualcomm/serialization/qc_schema.py``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal, get_args

ComponentName = Literal[
    "text_encoder", "text_encoder_2", "vae_encoder", "t2i_adapter", "controlnet", "unet", "transformer", "vae_decoder"
]
# Order in which components run, and in which an export lists them.
ORDER: Final[tuple[ComponentName, ...]] = get_args(ComponentName)
# Components that only some families or checkpoints have, each with the component that gives its default scheme,
# tolerance and costs.
OPTIONAL_NAMES: Final[Mapping[str, str]] = {
    "text_encoder_2": "text_encoder",
    "vae_encoder": "vae_decoder",
    "t2i_adapter": "unet",
    "controlnet": "unet",
    "transformer": "unet",
}
# A recipe with all of these exports the whole model.
COMPONENT_NAMES: Final = tuple(name for name in ORDER if name not in OPTIONAL_NAMES)
# Components that compute the embeddings of a prompt.
TEXT_ENCODERS: Final[tuple[ComponentName, ...]] = ("text_encoder", "text_encoder_2")
# Components that may be cut into chunks, which are called ``unet_chunk1``, ``unet_chunk2`` and so on.
CUTTABLE: Final[tuple[ComponentName, ...]] = ("unet", "transformer")
MOST_CHUNKS: Final = 16
MOST_STEPS: Final = 1000
_CHUNK: Final = "_chunk"
# Prefix of the names of values that a chunk passes to later chunks.
BORDER: Final = "border_"
# Model families, in the files of models/families. Exports and golden cases store the family, with the number of chunks
# of the denoiser after a colon: ``sd15:2``.
FamilyName = str
FAMILY_PATTERN: Final = "^(md|sd15|sdxl|pixart|dit)(:([2-9]|1[0-6]))?$"
# Family of exports and golden cases that store none.
DEFAULT_FAMILY: Final[FamilyName] = "md"

# Sampling methods, in the files of models/sampling.
Method = Literal["ddim", "euler", "euler_ancestral", "dpmpp_2m", "lcm", "tcd", "flow_match_euler"]
METHODS: Final[tuple[Method, ...]] = get_args(Method)
# Share of a start picture to change, if none is given.
DEFAULT_STRENGTH: Final = 0.8

_SDK: Final = "QNN SDK, Supported Snapdragon devices; ExecuTorch, backends/qualcomm/serialization/qc_schema.py"


@dataclass(frozen=True)
class Soc:
    """A phone chip with an NPU.

    Attributes:
        name: name in recipes and for ``--npu``.
        title: Qualcomm's product name.
        part: Qualcomm's part number; Android returns it as ``ro.soc.model``.
        model, htp: the compiler's numbers of the chip and of the architecture of its NPU.
        source: source of both numbers.
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
    """Return the components, with those that can be cut replaced by ``count`` chunks; 0 leaves all whole."""
    names = (chunk_names(name, count) if count and name in CUTTABLE else (name,) for name in components)
    return tuple(part for of in names for part in of)


def whole_of(name: str) -> str:
    """Return the component that a chunk belongs to; ``name`` itself if it is no chunk."""
    return name.partition(_CHUNK)[0]


def chunk_number(name: str) -> int:
    """Return a chunk's number, counted from 1; 0 for a whole component."""
    return int(name.partition(_CHUNK)[2] or 0)
