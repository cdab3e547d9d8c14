"""The TARGETS table. A new target is a folder, one line here and one extra in pyproject.toml."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from torch import nn

from md_export.errors import ArtifactError, MissingExtraError
from md_export.spec.runner import Runner
from md_export.spec.scheme import QuantScheme
from md_export.spec.tensors import Array, Arrays
from md_export.spec.weight_storage import WeightStorage
from md_export.targets.advice import LintReport
from md_export.targets.contract import Description, LoweringJob, Step, TargetModule
from md_export.targets.costs import OpCost
from md_export.targets.editing import Constant
from md_export.targets.stored import StoredWeight


@dataclass(frozen=True)
class Target:
    """One artifact format.

    Attributes:
        name: command, folder and extra.
        suffix: ending of an artifact's name.
        requires: importable modules of the vendor.
        distributions: packages whose versions the manifest records.
        title: format and runtime in words.
        lints: whether it can advise on a saved artifact.
        as_written: name of the runtime that executes a graph as it is written, where its own optimizes it first.
        system: what its libraries need of the machine, where that is more than others do.
        forms: endings of artifacts in another form than the target's usual one, by the name that recipes give it.
    """

    name: str
    suffix: str
    requires: tuple[str, ...]
    distributions: tuple[str, ...]
    title: str
    lints: bool = False
    as_written: str | None = None
    system: str | None = None
    forms: Mapping[str, str] = field(default_factory=dict)

    def suffix_of(self, form: str | None) -> str:
        """Ending of an artifact in that form."""
        return self.suffix if form is None else self.forms[form]

    def require(self) -> None:
        """Raise :class:`MissingExtraError` where a library of the vendor is not installed. Imports nothing."""
        for module in self.requires:
            if importlib.util.find_spec(module) is None:
                system = f" (on {self.system})" if self.system else ""
                raise MissingExtraError(
                    f"the {self.name} target needs {module}, which is not installed: "
                    f"pip install 'md-export[{self.name}]'{system}"
                )

    def open(self) -> TargetModule:
        """The target's functions; each imports its file, and the vendor's libraries with it, when first called.

        Raises:
            MissingExtraError: a library of the vendor is not installed.
        """
        self.require()
        return _Functions(f"md_export.targets.{self.name}")


@dataclass(frozen=True)
class _Functions:
    """The contract's functions of one target's folder: ``lower`` in lower.py, ``load`` in run.py, and so on."""

    package: str

    def lower(self, job: LoweringJob) -> object:
        return self._file("lower").lower(job)

    def quantize(self, model: object, job: LoweringJob) -> object:
        return self._file("quantize").quantize(model, job)

    def weight_storage(self, path: str, layer: nn.Module, scheme: QuantScheme) -> WeightStorage | None:
        return cast(WeightStorage | None, self._file("storage").weight_storage(path, layer, scheme))

    def save(self, model: object, path: Path) -> None:
        self._file("save").save(model, path)

    def describe(self, path: Path) -> Description:
        return cast(Description, self._file("describe").describe(path))

    def load(self, path: Path, runtime: str | None = None) -> Runner:
        return cast(Runner, self._file("run").load(path, runtime))

    def lint(self, path: Path, system: str | None = None, batches: Sequence[Arrays] = ()) -> LintReport:
        return cast(LintReport, self._file("lint").lint(path, system, batches))

    def edit(self, path: Path) -> AbstractContextManager[list[Constant]]:
        return cast(AbstractContextManager[list[Constant]], self._file("edit").edit(path))

    def store_as_float(self, path: Path) -> bool:
        return cast(bool, self._file("edit").store_as_float(path))

    def steps(self, path: Path) -> tuple[Step, ...]:
        return cast(tuple[Step, ...], self._file("inside").steps(path))

    def values(self, path: Path, inputs: Arrays, names: Collection[str]) -> dict[str, Array]:
        return cast(dict[str, Array], self._file("inside").values(path, inputs, names))

    def costs(self, path: Path) -> tuple[OpCost, ...]:
        return cast(tuple[OpCost, ...], self._file("costs").costs(path))

    def stored_weights(self, path: Path, scheme: QuantScheme) -> Iterator[StoredWeight]:
        return cast(Iterator[StoredWeight], self._file("stored").stored_weights(path, scheme))

    def _file(self, name: str) -> Any:
        return importlib.import_module(f"{self.package}.{name}")


TARGETS: Mapping[str, Target] = {
    target.name: target
    for target in (
        Target(
            "coreml", ".mlpackage", ("coremltools",), ("coremltools",), "Core ML (iPhone Neural Engine)", lints=True
        ),
        Target(
            "tflite",
            ".tflite",
            ("litert_torch", "ai_edge_litert", "ai_edge_quantizer"),
            ("litert-torch", "ai-edge-litert", "ai-edge-quantizer", "litert-converter"),
            "TFLite/LiteRT (Android GPU)",
            lints=True,
        ),
        Target(
            "onnx",
            ".onnx",
            ("onnx", "onnxscript", "onnxruntime"),
            ("onnx", "onnxscript", "onnxruntime"),
            "ONNX (onnxruntime)",
            as_written="unoptimized",
            forms={"ort": ".ort", "cpu_fused": ".onnx"},
        ),
        Target(
            "coreai",
            ".aimodel",
            ("coreai", "coreai_torch"),
            ("coreai-core", "coreai-torch"),
            "Core AI (iOS 27, macOS 27)",
            lints=True,
            system="Linux x86-64 with glibc 2.34 or newer, or a Mac",
        ),
    )
}


def target_named(name: str) -> Target:
    """The target that a manifest names.

    Raises:
        ArtifactError: there is none of that name.
    """
    if name not in TARGETS:
        raise ArtifactError(f"the manifest is of an unknown target {name!r:.40}; known: {', '.join(TARGETS)}")
    return TARGETS[name]


def target_of(artifact: Path) -> Target:
    """The target that an artifact's name belongs to.

    Raises:
        ArtifactError: the path does not exist or has an unknown suffix.
    """
    if not artifact.exists():
        raise ArtifactError(f"{artifact} does not exist; name an artifact that md-export wrote")
    for target in TARGETS.values():
        if artifact.suffix in (target.suffix, *target.forms.values()):
            return target
    suffixes = ", ".join(target.suffix for target in TARGETS.values())
    raise ArtifactError(f"{artifact.name} is no artifact of a known target; known endings: {suffixes}")
