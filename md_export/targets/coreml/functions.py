"""Several programs in one package, each a function of it, that share their weights; and one function taken out again.

Core ML loads such packages from iOS 18 on; an app names the function in ``MLModelConfiguration.functionName``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from md_export.targets.coreml.package import WEIGHTS, read_spec, read_whole_spec, take_function
from md_export.targets.coreml.save import write_package
from md_export.targets.coreml.vendor import converting, ct


def join(packages: Mapping[str, Path], path: Path, workdir: Path) -> None:
    """Write a package whose functions are the programs of ``packages``, by their names there; the first is the default.

    Equal weights are stored once. What a package says of itself stays with its function.

    Args:
        workdir: an empty folder on a disk that has room for the result.

    Raises:
        ConversionError: coremltools cannot join them.
        OutputError: ``path`` cannot be written.
    """
    made = workdir / "joined.mlpackage"
    wanted = ct.utils.MultiFunctionDescriptor()
    with converting(path.stem, "joining"):
        for name, package in packages.items():
            wanted.add_function(str(package), "main", name)
        wanted.default_function_name = next(iter(packages))
        ct.utils.save_multifunction(wanted, str(made))
    spec = read_whole_spec(made)
    for name, package in packages.items():
        told = read_spec(package).description.metadata.userDefined
        for key in sorted(told):
            spec.description.metadata.userDefined[f"{name}/{key}"] = told[key]
    write_package(spec, made / WEIGHTS, path)


def split(package: Path, function: str, path: Path) -> None:
    """Write one function as a package of its own. It has the weight file of all of them.

    Raises:
        ArtifactError: there is no such function.
        OutputError: ``path`` cannot be written.
    """
    write_package(take_function(read_whole_spec(package), function, package), package / WEIGHTS, path)
