"""Contents of a saved asset: operations, stored bytes by type, and the weights that stayed float."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from md_export.errors import ArtifactError, RuntimeFault, UsageError, raised_as
from md_export.spec.tensors import Arrays
from md_export.targets.contract import Description
from md_export.targets.coreai.bindings import VENDOR_ERRORS, ir, kind_of, module_of, operations, read_program
from md_export.targets.coreai.constants import ELEMENTS, element_of, is_constant, stored_bytes, values_of
from md_export.targets.coreai.quantize import takes_int8
from md_export.targets.coreai.run import OUTPUT, names_of
from md_export.targets.coreai.save import read_notes
from md_export.targets.coreai.weights import DECODERS, Reader, path_of, readers_of, weights_of
from md_export.targets.lint.judge import judge
from md_export.targets.lint.report import LintReport
from md_export.targets.lint.rules import faults_of, rules_of
from md_export.targets.operations import Facts, Op, Value

# Operands that rules refer to, by MIL's names.
_OPERANDS: Final[Mapping[str, Mapping[int, str]]] = {
    "conv2d": {2: "strides", 3: "dilations"},
    "softmax": {1: "axis"},
    "transpose": {1: "perm"},
    "blockwise_shift_scale": {1: "scale"},
}


def describe(path: Path) -> Description:
    """Read a saved asset without running it.

    Raises:
        RuntimeFault: it is not a Core AI asset, or has contents that our exports do not have.
    """
    program = read_program(path)
    with raised_as(RuntimeFault, f"{path.name} cannot be read", VENDOR_ERRORS):
        return _description(operations(program), read_notes(path))


def _description(found: list[Any], notes: dict[str, str]) -> Description:
    constants = [op for op in found if is_constant(op)]
    weights = weights_of(found)
    stored: Counter[str] = Counter()
    for op in constants:
        stored[element_of(op).name] += stored_bytes(op)
    return Description(
        stored=dict(sorted(stored.items())),
        ops=dict(sorted(Counter(kind_of(op) for op in found if not is_constant(op)).items())),
        float_weights=tuple(path_of(readers) for op, readers in weights.items() if is_constant(op)),
        int8_weights=sum(_holds(op) == "int8" for op in weights),
        int8_inputs=_int8_inputs(weights),
        not_finite=tuple(_name(op, number) for number, op in enumerate(constants) if not _finite(op)),
        notes=notes,
    )


def _int8_inputs(weights: Mapping[Any, list[Reader]]) -> float:
    """Return the share of the convolutions and linears with int8 activations."""
    products = [reader for readers in weights.values() for reader in readers if reader.is_product]
    return sum(map(takes_int8, products)) / max(1, len(products))


def _holds(op: Any) -> str:
    """Return the stored dtype of a weight."""
    return element_of(op if is_constant(op) else op.operands[0].owner).name


def _name(op: Any, number: int) -> str:
    return path_of(readers_of(op)) or f"constant_{number}"


def _finite(op: Any) -> bool:
    return not element_of(op).name.startswith("float") or bool(np.isfinite(values_of(op)).all())


def read_facts(path: Path) -> Facts:
    """Read the facts of a saved asset from any tool.

    Raises:
        ArtifactError: the path is not a readable ``.aimodel``.
    """
    try:
        program = read_program(path)
        found = operations(program)
        ops = tuple(_ops(found, names_of(program)))
        return Facts(ops, sum(stored_bytes(op) for op in found if is_constant(op)), opened=program)
    except RuntimeFault as error:
        raise ArtifactError(str(error)) from error
    except VENDOR_ERRORS as error:
        raise ArtifactError(f"{path.name} cannot be read: {error}; export it again") from error


def _ops(found: list[Any], names: Mapping[Any, str]) -> Iterator[Op]:
    """Yield the operations that depend on an input, and those that decode a weight."""
    known: set[Any] = set()
    for op in found:
        if op.name == OUTPUT:
            continue
        # Operations on constants, such as the transposition of a weight, are evaluated when the program is compiled.
        is_known = all(value in known for value in op.operands)
        known |= set(op.results) if is_known else set()
        if not is_known or kind_of(op) in DECODERS:
            yield _op(op, names, known)


def _op(op: Any, names: Mapping[Any, str], known: set[Any]) -> Op:
    kind, operands = kind_of(op), list(op.operands)
    reads = tuple(_value(value, names) for value in operands if value not in known)
    writes = tuple(_value(value, names) for value in op.results)
    return Op(
        kind=kind + _mode(op),
        module=module_of(op) or "",
        reads=reads,
        writes=writes,
        stored=_stored(operands[1], names) if len(operands) > 1 and operands[1] in known else "",
        decodes=kind in DECODERS,
        bytes=0 if kind in DECODERS else sum(value.padded_bytes for value in (*reads, *writes)),
        constants={
            _OPERANDS.get(kind, {}).get(place, str(place)): partial(values_of, value.owner)
            for place, value in enumerate(operands)
            if not isinstance(value.owner, ir.Block) and is_constant(value.owner)
        },
    )


def _mode(op: Any) -> str:
    """Return how a resize interpolates, as ``.nearest_neighbor``; "" for other operations."""
    texts = [str(item.attr) for item in op.attributes if item.name == "interpolation_mode"]
    return f".{texts[0].partition('<')[2].rstrip('>')}" if texts else ""


def _stored(weight: Any, names: Mapping[Any, str]) -> str:
    """Return the kind of operation that decodes a weight, also through a transposition; without one, its dtype."""
    source = weight.owner
    if not isinstance(source, ir.Block) and kind_of(source) == "transpose":
        return _stored(source.operands[0], names)
    is_decoded = not isinstance(source, ir.Block) and kind_of(source) in DECODERS
    return kind_of(source) if is_decoded else _value(weight, names).dtype


def _value(value: Any, names: Mapping[Any, str]) -> Value:
    """Return a value's name, shape and dtype; a type without a rank has an empty shape."""
    kind = value.type
    word = str(getattr(kind, "element_type", kind))
    sizes = kind.shape if getattr(kind, "has_rank", False) else ()
    shape = tuple(None if size is None or size < 0 else int(size) for size in sizes)
    return Value(names[value], shape, ELEMENTS[word].name if word in ELEMENTS else word)


def lint(path: Path, system: str | None = None, batches: Sequence[Arrays] = ()) -> LintReport:
    """Check an asset against the rules, without running it.

    Args:
        path: the ``.aimodel``, of any tool.
        system: ``iOS27``, the first and only one that loads it, or None.
        batches: unused: Apple's runtime computes in float16, so ``verify`` measures its effects.

    Raises:
        ArtifactError: the asset cannot be read.
        UsageError: ``system`` is not ``iOS27``.
    """
    rules = rules_of("coreai")
    (known,) = rules.systems
    if system not in (None, known):
        raise UsageError(f"{path.name} is loaded by {known} and later; leave out --os")
    del batches
    return judge(path.name, read_facts(path), rules, known, faults_of("coreai"))
