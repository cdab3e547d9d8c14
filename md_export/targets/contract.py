"""Protocols of targets: lower a job, quantize and save it as an artifact, and run, read and edit the artifact."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final, Protocol, Self, runtime_checkable

from md_export.errors import MissingExtraError
from md_export.spec.artifact import ArtifactEntry
from md_export.spec.calibration import RangeRule
from md_export.spec.recipe import QuantScheme
from md_export.spec.scheme import WeightStorage
from md_export.spec.tensors import Array, Arrays, Runner, TensorSpec
from md_export.targets.lint.report import LintReport
from md_export.targets.operations import ExplorerGraph, OpCost
from md_export.targets.stored import Constant, StoredWeight
from md_export.targets.stored_graph import EditableGraph, StoredGraph

if TYPE_CHECKING:
    from torch import nn

# Name of the blob with all metadata as JSON, in formats with blobs; prefix of each key, in formats with pairs.
METADATA: Final = "md_export"
_PREFIX: Final = f"{METADATA}."


@dataclass(frozen=True)
class LoweringJob:
    """One component to lower.

    Attributes:
        component: name in COMPONENTS.
        module: rewritten torch module in eval mode, float32; positional inputs in the order of ``inputs``,
            a single tensor out, or a tuple in the order of ``outputs``.
        inputs: named inputs of the artifact, float32 or int32 for any scheme.
        outputs: named outputs of the artifact, float32.
        example: one golden input per name, for tracing.
        scheme: requested storage and arithmetic.
        calibration: inputs of this component under the artifact's names, each read on access.
        ranges: rule that derives ranges of activations from the calibration.
        npu: the artifact is for phones' NPUs, which need static ranges for every operation.
        workdir: scratch folder, removed afterwards.
        deployment_target: oldest system that must load a Core ML package; None for the target's default.
        notes: metadata for apps; :func:`describe` reads it back from the artifact.
    """

    component: str
    module: nn.Module
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    example: Arrays
    scheme: QuantScheme
    calibration: Sequence[Arrays]
    workdir: Path
    deployment_target: str | None = None
    notes: Mapping[str, str] = field(default_factory=dict)
    ranges: RangeRule = field(default_factory=RangeRule)
    npu: bool = False


@dataclass(frozen=True)
class Description:
    """Contents of a saved artifact, read from its bytes.

    Attributes:
        stored: bytes of stored weights by dtype (``float32``, ``float16``, ``int8``, …).
        ops: number of ops by kind.
        float_weights: weights of convolutions, linears and embeddings that are stored in float, by module path.
        int8_weights: number of those weights that are stored in int8.
        not_finite: stored weights with NaN or Inf, which integer arithmetic may hide in every output.
        int8_inputs: share of the convolutions and linears with int8 activations; None if the target cannot tell.
            notes: the job's metadata as stored in the artifact; empty without metadata.
    """

    stored: dict[str, int]
    ops: dict[str, int]
    float_weights: tuple[str, ...] = ()
    int8_weights: int = 0
    not_finite: tuple[str, ...] = ()
    int8_inputs: float | None = None
    notes: Mapping[str, str] = field(default_factory=dict)


class Lowered(Protocol):
    """A component as the vendor's model in memory or on disk, between :meth:`Target.lower` and the saved artifact."""

    def quantize(self, job: LoweringJob) -> Lowered:
        """Apply ``job.scheme``; return this model if the scheme needs no change."""
        ...

    def save(self, path: Path) -> None:
        """Write the artifact to ``path``, which must not exist; the same inputs give the same bytes."""
        ...


class Saved(Protocol):
    """A target's module of functions on saved artifacts; :class:`Target` documents each function."""

    def describe(self, path: Path) -> Description:
        """See :meth:`Target.describe`."""

    def load(self, path: Path, runtime: str | None = None) -> Runner:
        """See :meth:`Target.load`."""

    def edit(self, path: Path) -> AbstractContextManager[list[Constant]]:
        """See :meth:`Target.edit`."""

    def store_as_float(self, path: Path) -> bool:
        """See :meth:`Target.store_as_float`."""

    def graph(self, path: Path) -> StoredGraph:
        """See :meth:`Target.graph`."""

    def edit_graph(self, path: Path) -> AbstractContextManager[EditableGraph]:
        """See :meth:`Target.edit_graph`."""

    def values(self, path: Path, inputs: Arrays, names: Collection[str]) -> dict[str, Array]:
        """See :meth:`Target.values`."""

    def stored_weights(self, path: Path, scheme: QuantScheme) -> Iterator[StoredWeight]:
        """See :meth:`Target.stored_weights`."""


class Target(Protocol):
    """One artifact format. Each method imports its module and the vendor's libraries only when it is called.

    Attributes:
        name: command, folder and extra.
        suffix: suffix of an artifact's name.
        requires: importable modules of the vendor.
        preload: modules that every lowering imports; workers start with them already imported.
        distributions: packages whose versions the manifest records.
        title: format and runtime in words.
        system: machine that the vendor's libraries need; empty if they run on any.
        as_written: name of a runtime, for :meth:`load`, that executes the graph without optimizing it first; None if
            the default runtime does not optimize.
        forms: suffixes of artifacts in another form than the default, by the form's name in recipes.
    """

    name: ClassVar[str]
    suffix: ClassVar[str]
    requires: ClassVar[tuple[str, ...]]
    preload: ClassVar[tuple[str, ...]]
    distributions: ClassVar[tuple[str, ...]]
    title: ClassVar[str]
    system: ClassVar[str] = ""
    as_written: ClassVar[str | None] = None
    forms: ClassVar[Mapping[str, str]] = {}

    def require(self) -> None:
        """Raise :class:`MissingExtraError` if a library of the vendor is not installed; imports nothing."""
        for module in self.requires:
            if importlib.util.find_spec(module) is None:
                system = f" (on {self.system})" if self.system else ""
                raise MissingExtraError(
                    f"the {self.name} target needs {module}, which is not installed: "
                    f"pip install 'md-export[{self.name}]'{system}"
                )

    def open(self) -> Self:
        """Return this target after checking that its vendor's libraries are installed.

        Raises:
            MissingExtraError: a library of the vendor is not installed.
        """
        self.require()
        return self

    def saved(self) -> Saved:
        """Import the target's functions on saved artifacts, with the vendor's runtime but without its converter."""
        ...

    def lower(self, job: LoweringJob) -> Lowered:
        """Lower a torch module to the vendor's float model; raises ConversionError if the converter fails."""
        ...

    def weight_storage(self, path: str, layer: nn.Module, scheme: QuantScheme) -> WeightStorage | None:
        """Return how :meth:`Lowered.quantize` stores a layer's weight under the layer's scheme; None: in float."""
        ...

    def describe(self, path: Path) -> Description:
        """Read ops and stored types from a saved artifact."""
        return self.saved().describe(path)

    def load(self, path: Path, runtime: str | None = None) -> Runner:
        """Open a saved artifact in the target's default runtime, or in ``runtime``.

        Raises RuntimeFault if the file is not such an artifact.
        """
        return self.saved().load(path, runtime)

    def edit(self, path: Path) -> AbstractContextManager[list[Constant]]:
        """Open a saved artifact's constants in order of use, for the self-test; changes are saved at the end."""
        return self.saved().edit(path)

    def store_as_float(self, path: Path) -> bool:
        """Store a saved artifact's compressed weights as floats, for the self-test; return False if it has none."""
        return self.saved().store_as_float(path)

    def edit_graph(self, path: Path) -> AbstractContextManager[EditableGraph]:
        """Open a saved artifact's operations for the self-test to change; changes are saved at the end."""
        return self.saved().edit_graph(path)

    def graph(self, path: Path) -> StoredGraph:
        """Read all operations and constants of a saved artifact; raises RuntimeFault if it cannot be read."""
        return self.saved().graph(path)

    def values(self, path: Path, inputs: Arrays, names: Collection[str]) -> dict[str, Array]:
        """Execute a saved artifact once and return the named values, in float32 and in the artifact's layout.

        Raises RuntimeFault if the runtime refuses the artifact or its inputs.
        """
        return self.saved().values(path, inputs, names)

    def stored_weights(self, path: Path, scheme: QuantScheme) -> Iterator[StoredWeight]:
        """Yield every constant of a saved artifact, decoded; ``scheme`` determines which had to be compressed.

        Raises RuntimeFault or ArtifactError if it cannot be read.
        """
        return self.saved().stored_weights(path, scheme)

    def compile_contexts(
        self, names: Sequence[str], folder: Path, entries: tuple[ArtifactEntry, ...], progress: Callable[[str], None]
    ) -> tuple[ArtifactEntry, ...]:
        """Compile each artifact of an export in ``folder`` for each named chip, and write the contexts beside them.

        Raises ConversionError if a compiler refuses an operation, MissingExtraError if no compiler is installed.
        """
        del names, folder, progress  # most targets have no compiler for NPUs
        return entries


@runtime_checkable
class Lints(Protocol):
    """A target with lint rules for a saved artifact."""

    def lint(self, path: Path, system: str | None = None, batches: Sequence[Arrays] = ()) -> LintReport:
        """Return advice on a saved artifact for a system, with float16 hazards if inputs are given.

        Raises ArtifactError if the file is not such an artifact.
        """
        ...


@runtime_checkable
class CountsCosts(Protocol):
    """A target that can list the costs of a saved artifact's operations."""

    def costs(self, path: Path) -> tuple[OpCost, ...]:
        """Return arithmetic and memory traffic of each operation, in order of execution, without running the artifact.

        Raises RuntimeFault or ArtifactError if it cannot be read.
        """
        ...


@runtime_checkable
class WritesAdapters(Protocol):
    """A target whose runtime has a file format for the values of some inputs."""

    adapter_suffix: ClassVar[str]

    def write_adapter(self, values: Arrays, path: Path) -> None:
        """Write values of an artifact's inputs, float16 or float32, to a file that the runtime reads."""
        ...


@runtime_checkable
class ShownByExplorer(Protocol):
    """A target with artifacts that Model Explorer reads."""

    def explorer_graph(self, path: Path) -> ExplorerGraph:
        """Return the main graph of a saved artifact; raises RuntimeFault if it cannot be read."""
        ...


def labelled(notes: Mapping[str, str]) -> dict[str, str]:
    """Return our metadata with prefixed keys, for formats that mix it with other pairs, in alphabetical order."""
    return {_PREFIX + name: notes[name] for name in sorted(notes)}


def notes_among(pairs: Mapping[str, str]) -> dict[str, str]:
    """Return the metadata that :func:`labelled` wrote; empty for an artifact of another tool."""
    return {name.removeprefix(_PREFIX): value for name, value in sorted(pairs.items()) if name.startswith(_PREFIX)}
