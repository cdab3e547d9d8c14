"""Changes of one parameter by a LoRA file: LoRA and LoCon, LoHa, LoKr, full differences, each also as DoRA.

Formulas: peft's ``tuners/lora/dora.py`` and ``tuners/lokr/layer.py``, LyCORIS' ``modules/{locon,loha,lokr,norms}.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from md_export.checkpoint.lora_names import Part
from md_export.errors import CheckpointError

Tensors = Mapping[Part, Tensor]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Form:
    """A parametrization of the difference of a weight.

    Attributes:
        needs: required parts: for each element, all parts of one of its alternatives.
        may: optional parts.
        delta: returns the unscaled float64 difference from float64 parts; RuntimeError if their shapes do not match.
        ranked: parts with the rank as first dimension; the first one present is used.
    """

    title: str
    needs: tuple[tuple[tuple[Part, ...], ...], ...]
    may: tuple[Part, ...]
    delta: Callable[[Tensors], Tensor]
    ranked: tuple[Part, ...] = ()

    @property
    def parts(self) -> frozenset[Part]:
        """All parts of the form, required and optional."""
        return frozenset(self.may) | {part for choices in self.needs for choice in choices for part in choice}

    def rank(self, parts: Tensors) -> int | None:
        """Return the rank, which alpha is divided by; None if the form has none."""
        return next((parts[part].shape[0] for part in self.ranked if part in parts), None)

    def faults(self, parts: Tensors) -> list[str]:
        """Return messages about required parts that are missing or present in two alternatives."""
        found = []
        for choices in self.needs:
            whole = [choice for choice in choices if all(part in parts for part in choice)]
            if not whole:
                found.append("lacks " + " or ".join(" and ".join(p for p in one if p not in parts) for one in choices))
            elif len([choice for choice in choices if any(part in parts for part in choice)]) > 1:
                found.append("has both " + " and ".join("·".join(choice) for choice in choices))
        return found


def _low_rank(parts: Tensors) -> Tensor:
    up, down = parts["up"].flatten(1), parts["down"]
    if "mid" in parts:
        return torch.einsum("oa,abhw,bi->oihw", up, parts["mid"], down.flatten(1))
    return (up @ down.flatten(1)).reshape(up.shape[0], *down.shape[1:])


def _hadamard(parts: Tensors) -> Tensor:
    return _pair(parts, "hada_w1_a", "hada_w1_b", "hada_t1") * _pair(parts, "hada_w2_a", "hada_w2_b", "hada_t2")


def _kronecker(parts: Tensors) -> Tensor:
    first = parts["lokr_w1"] if "lokr_w1" in parts else parts["lokr_w1_a"] @ parts["lokr_w1_b"]
    second = parts["lokr_w2"] if "lokr_w2" in parts else _pair(parts, "lokr_w2_a", "lokr_w2_b", "lokr_t2")
    return torch.kron(first.reshape(*first.shape, *(1 for _ in second.shape[2:])), second.contiguous())


def _pair(parts: Tensors, outer: Part, inner: Part, core: Part) -> Tensor:
    """Return a·b, or the Tucker product, in which both are transposed and the core has the kernel."""
    if core in parts:
        return torch.einsum("abhw,ao,bi->oihw", parts[core], parts[outer], parts[inner])
    return parts[outer] @ parts[inner]


LOW_RANK: Final = Form("LoRA", ((("down", "up"),),), ("mid",), _low_rank, ("down",))
HADAMARD: Final = Form(
    "LoHa",
    ((("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"),),),
    ("hada_t1", "hada_t2"),
    _hadamard,
    ("hada_w1_b",),
)
KRONECKER: Final = Form(
    "LoKr",
    ((("lokr_w1",), ("lokr_w1_a", "lokr_w1_b")), (("lokr_w2",), ("lokr_w2_a", "lokr_w2_b"))),
    ("lokr_t2",),
    _kronecker,
    ("lokr_w2_b", "lokr_w1_b"),
)
FULL: Final = Form("difference", ((("diff",),),), (), lambda parts: parts["diff"])
FULL_BIAS: Final = Form("difference", ((("diff_b",),),), (), lambda parts: parts["diff_b"])
LOW_RANK_BIAS: Final = Form("LoRA", ((("up_bias",),),), (), lambda parts: parts["up_bias"], ("down",))
OF_WEIGHT: Final = (LOW_RANK, HADAMARD, KRONECKER, FULL)
OF_BIAS: Final = (FULL_BIAS, LOW_RANK_BIAS)


@dataclass(frozen=True)
class Magnitude:
    """DoRA's magnitude of each vector of a weight: float32, broadcasts over the weight.

    Attributes:
        over: dimensions of a vector: all except the output's, or all except the input's.
    """

    values: Tensor
    over: tuple[int, ...]

    def ratio(self, weight: Tensor) -> Tensor:
        """Return the factor for each vector of ``weight`` that gives it its magnitude."""
        lengths: Tensor = torch.linalg.vector_norm(weight, dim=self.over, keepdim=True)
        return self.values / (lengths + torch.finfo(torch.float32).eps)


def magnitude_of(parts: Tensors, shape: Shape) -> Magnitude | None:
    """Return DoRA's magnitude for a weight of ``shape``, None without one; raise RuntimeError for another shape.

    peft stores one magnitude per output, ``[out]`` or ``[1, out, 1, 1]``; LyCORIS one per output, ``[out, 1, …]``, or
    one per input, ``[1, in, …]``.
    """
    ones = (1,) * (len(shape) - 2)
    for part in ("magnitude", "dora_scale"):
        values = parts.get(part)
        if values is None:
            continue
        if values.numel() == shape[0] and (part == "magnitude" or values.shape[:1] == shape[:1]):
            return Magnitude(values.float().reshape(shape[0], 1, *ones), tuple(range(1, len(shape))))
        if part == "dora_scale" and tuple(values.shape[:2]) == (1, shape[1]) and values.numel() == shape[1]:
            return Magnitude(values.float().reshape(1, shape[1], *ones), (0, *range(2, len(shape))))
        raise RuntimeError(f"{part} {list(values.shape)}")
    return None


@dataclass(frozen=True)
class WeightChange:
    """Change of one parameter by one LoRA file.

    Attributes:
        module: path of the layer in its component.
        parameter: ``weight`` or ``bias``.
        shape: shape of the parameter.
        parts: stored tensors, memory-mapped.
        scale: alpha / rank.
        factor: the user's scale; 0 leaves the parameter unchanged, 1 applies the file's full change.
    """

    module: str
    parameter: str
    form: Form
    shape: Shape
    parts: Tensors
    scale: float
    factor: float
    magnitude: Magnitude | None = None

    @property
    def name(self) -> str:
        """Path of the parameter in its component."""
        return f"{self.module}.{self.parameter}"

    def delta(self, strength: float) -> Tensor:
        """Return ``strength`` times the unscaled difference: float32, with the parameter's shape."""
        flat = self.form.delta({part: tensor.double() for part, tensor in self.parts.items()})
        return (strength * flat).float().reshape(self.shape)

    def applied(self, old: Tensor) -> Tensor:
        """Return the new float32 value; with DoRA and a factor between 0 and 1 it is interpolated, as in ComfyUI."""
        if self.magnitude is None:
            return old + self.delta(self.factor * self.scale)
        new = old + self.delta(self.scale)
        return old + self.factor * (new * self.magnitude.ratio(new) - old)


def fused(weights: dict[str, Tensor], changes: Iterable[WeightChange], what: str) -> dict[str, Tensor]:
    """Return the float32 ``weights`` of a component with the changes applied; the given tensors are not modified.

    Raises:
        CheckpointError: a new value is not finite.
    """
    made = dict(weights)
    for change in changes:
        made[change.name] = change.applied(made[change.name])
        if not bool(made[change.name].isfinite().all()):
            raise CheckpointError(f"{what}: {change.name} becomes NaN or Inf with its LoRA; give a smaller scale")
    return made
