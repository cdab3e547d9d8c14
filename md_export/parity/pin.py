"""Pins: records of an export, by which a lowered threshold or an edited file is noticed in a later one.

A promise has the recipe with its thresholds, and prompt and seed of each golden case: the parts that every rebuild on
any machine keeps. A seal has the whole manifest without measured seconds and memory: one export, byte by byte. Both
store the values themselves, not only a hash, so that an error can name each difference.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic_core import from_json

from md_export.errors import ArtifactError, RecipeError
from md_export.parity.golden.folder import read_index
from md_export.parity.metrics import Check, Finding
from md_export.spec.artifact import GOLDEN_FOLDER, ArtifactEntry, Measured
from md_export.spec.manifest import Manifest, check_export, first_finding, read_manifest, unlisted_files
from md_export.spec.recipe import Recipe
from md_export.system.files import read_limited, sha256_of_text
from md_export.system.signature import signature_path, signer_of

_SCHEMA: Final = 1
_LARGEST: Final = 32 << 20
_AGAIN: Final = "make it again with: md-export manifest seal"
_Path = tuple[str, ...]


@dataclass(frozen=True)
class Pin:
    """Content of a pin file.

    Attributes:
        sha256: of the other fields as JSON with sorted keys and without spaces.
        cases: prompt and seed of each golden case, in order.
        recipe: the recipe, if the pin is a promise.
        manifest: the manifest with its recipe, if the pin is a seal; seconds and memory peaks are 0.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    schema: int
    sha256: str
    cases: tuple[tuple[str, int], ...]
    recipe: Recipe | None = None
    manifest: Manifest | None = None

    def __str__(self) -> str:
        """Describe in words what the pin covers."""
        what = f"recipe, thresholds and {len(self.cases)} golden cases"
        return f"{what}, figures and all files" if self.manifest else what


_PIN: Final = TypeAdapter(Pin)


def seal(out: Path, promise: bool = False) -> Pin:
    """Return the pin of the export in ``out``: its seal, or only its ``promise``.

    Raises:
        ArtifactError: the manifest cannot be read, or a file differs from it.
    """
    checked = check_export(out)
    more = () if promise else (f"{name} is not in the manifest" for name in checked.unlisted)
    if wrong := [*checked.differences, *more]:
        raise ArtifactError(f"{out} cannot be sealed: {'; '.join(wrong)}; export again")
    return _pin_of(out, promise)


def _pin_of(out: Path, promise: bool) -> Pin:
    manifest, index = read_manifest(out), read_index(out / GOLDEN_FOLDER)
    cases = tuple((case.prompt, case.seed) for case in index.cases)
    pin = Pin(_SCHEMA, "", cases, *((manifest.recipe,) if promise else (None, _timeless(manifest))))
    return dataclasses.replace(pin, sha256=_digest(_plain(pin)))


def _timeless(manifest: Manifest) -> Manifest:
    """Return the manifest without the figures that differ between runs on one machine."""

    def entry(one: ArtifactEntry) -> ArtifactEntry:
        contexts = tuple(dataclasses.replace(context, seconds=0.0, peak_bytes=0) for context in one.contexts)
        return dataclasses.replace(one, measured=Measured(0.0, 0), contexts=contexts)

    return dataclasses.replace(manifest, artifacts=tuple(map(entry, manifest.artifacts)))


def _plain(pin: Pin) -> dict[str, object]:
    plain: dict[str, object] = from_json(_PIN.dump_json(pin, exclude={"recipe" if pin.manifest else "manifest"}))
    return plain


def _digest(plain: dict[str, object]) -> str:
    covered = {name: value for name, value in plain.items() if name != "sha256"}
    return sha256_of_text(json.dumps(covered, sort_keys=True, separators=(",", ":"), allow_nan=False))


def pin_bytes(pin: Pin) -> bytes:
    """Return the content of a pin file."""
    return (json.dumps(_plain(pin), indent=1, ensure_ascii=False) + "\n").encode()


def read_pin(path: Path, allowed_signers: Path | None = None) -> tuple[Pin, str | None]:
    """Return a pin and its signer; without ``allowed_signers``, no signature is read and the signer is None.

    Raises:
        ArtifactError: the pin or its signature cannot be read, or the pin was edited.
        MachineError, PinError: as :func:`md_export.system.signature.signer_of`.
    """
    content = read_limited(path, _LARGEST, ArtifactError, _AGAIN)
    signer = signer_of(content, signature_path(path), allowed_signers) if allowed_signers else None
    try:
        pin = _PIN.validate_json(content, strict=True)
    except (ValidationError, RecursionError) as error:
        raise ArtifactError(f"{path} is not a pin: {first_finding(error)}; {_AGAIN}") from error
    except RecipeError as error:
        raise ArtifactError(f"{path} is not a pin: {error}; {_AGAIN}") from error
    if pin.schema != _SCHEMA or (pin.recipe is None) == (pin.manifest is None):
        raise ArtifactError(f"{path} is a pin of schema {pin.schema}, this version reads {_SCHEMA}; {_AGAIN}")
    if pin.sha256 != _digest(from_json(content)):
        raise ArtifactError(f"{path} was edited: its content does not have its SHA-256; {_AGAIN}")
    return pin, signer


def pin_findings(out: Path, pin: Pin) -> list[Finding]:
    """Return a finding for each threshold, recipe field, figure, file and golden case that differs from the pin.

    Raises:
        ArtifactError, GoldenError: the manifest or the index of golden cases in ``out`` cannot be read.
    """
    manifest = read_manifest(out)
    held = _pin_of(out, promise=pin.manifest is None)
    components = [entry.component for entry in manifest.artifacts]
    found = [_finding(path, text, components) for path, text in _differences((), _covered(pin), _covered(held))]
    more = unlisted_files(out, manifest) if pin.manifest else ()
    return [*found, *(Finding("", Check.PIN, f"file {name} is not in the pin") for name in more)]


def _covered(pin: Pin) -> dict[str, object]:
    """Return the values that a pin covers: the recipe first, artifacts by component."""
    if pin.manifest is None:
        return {"recipe": _fields(pin.recipe), "cases": pin.cases}
    artifacts = {entry.component: _fields(entry) for entry in pin.manifest.artifacts}
    return {"recipe": None, "cases": pin.cases, **_fields(pin.manifest), "artifacts": artifacts}


def _fields(item: Recipe | Manifest | ArtifactEntry | None) -> dict[str, object]:
    return {} if item is None else dataclasses.asdict(item)


def _differences(path: _Path, pinned: object, held: object) -> Iterator[tuple[_Path, str]]:
    """Yield the path and a description of each difference of ``held`` from ``pinned``."""
    if isinstance(pinned, Mapping) and isinstance(held, Mapping):
        for name in dict.fromkeys((*pinned, *held)):
            yield from _differences((*path, name), pinned.get(name), held.get(name))
    elif isinstance(pinned, Sequence) and isinstance(held, Sequence) and not isinstance(pinned, str):
        if pinned != held:
            yield path, _in_lists(pinned, held)
    elif held is None and pinned is not None:
        yield path, "is missing" if isinstance(pinned, Mapping) else f"is missing, the pin says {_shown(pinned)}"
    elif pinned != held:
        said = "has none" if pinned is None else f"says {_shown(pinned)}"
        yield path, f"is {_shown(held)}, the pin {said}"


def _in_lists(pinned: Sequence[object], held: Sequence[object]) -> str:
    lost, added = [one for one in pinned if one not in held], [one for one in held if one not in pinned]
    lines = [
        f"{verb} {_shown(items[0])}" + (f" and {len(items) - 1} more" if items[1:] else "")
        for verb, items in (("lost", lost), ("gained", added))
        if items
    ]
    return ", ".join(lines) or "changed in order or number"


def _shown(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text[:12] if re.fullmatch("[0-9a-f]{64}", text) else f"{text:.80}"


# Start of a path, its description, and whether a component's name follows.
_KINDS: Final[tuple[tuple[_Path, str, bool], ...]] = (
    (("recipe", "tolerances"), "threshold", True),
    (("recipe", "picture_psnr_db"), "threshold picture_psnr_db", False),
    (("recipe", "schemes"), "scheme", True),
    (("recipe",), "recipe", False),
    (("cases",), "golden cases", False),
    (("artifacts",), "artifact", True),
    (("files",), "file", False),
    ((), "manifest", False),
)


def _finding(path: _Path, text: str, components: Sequence[str]) -> Finding:
    start, kind, of_component = next(row for row in _KINDS if path[: len(row[0])] == row[0])
    rest, component = path[len(start) :], ""
    if of_component and rest[0] in components:
        component, rest = rest[0], rest[1:]
    return Finding(component, Check.PIN, " ".join(filter(None, (kind, ".".join(rest), text))))
