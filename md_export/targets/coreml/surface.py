"""A program's inputs and outputs as tensor specs, and the check of arrays against them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from md_export.errors import ArtifactError, RuntimeFault
from md_export.spec.tensors import Arrays, TensorSpec

# ArrayFeatureType.ArrayDataType of Model.proto; a component's surface has no other.
_DTYPES: Final = {65568: "float32", 131104: "int32"}


def feature_specs(features: Iterable[Any]) -> tuple[TensorSpec, ...]:
    """``FeatureDescription`` messages → specs.

    Raises:
        ArtifactError: a feature that is no float32 or int32 array.
    """
    return tuple(_spec(feature) for feature in features)


def _spec(feature: Any) -> TensorSpec:
    array = feature.type.multiArrayType
    if array.dataType not in _DTYPES:
        raise ArtifactError(f"{feature.name} is no float32 or int32 array; export the package again")
    return TensorSpec(feature.name, tuple(int(size) for size in array.shape), _DTYPES[array.dataType])


def check(arrays: Arrays, specs: Sequence[TensorSpec], what: str) -> None:
    """Refuse missing, extra, wrongly shaped or wrongly typed arrays.

    Args:
        arrays: what was given.
        specs: what is wanted.
        what: ``input`` or ``output``, for the message.

    Raises:
        RuntimeFault: the first difference.
    """
    wanted = {spec.name: spec for spec in specs}
    if set(arrays) != set(wanted):
        raise RuntimeFault(f"{what}s are {', '.join(sorted(arrays)) or 'none'}; the model's are {', '.join(wanted)}")
    for name, spec in wanted.items():
        array = arrays[name]
        if tuple(array.shape) != spec.shape or str(array.dtype) != spec.dtype:
            raise RuntimeFault(
                f"{what} {name} is {array.dtype}{list(array.shape)}; the model's is {spec.dtype}{list(spec.shape)}"
            )
