"""describe PACKAGE: print its user-defined metadata. predict PACKAGE FUNCTION FOLDER: run it on FOLDER/<input>.in.

``predict`` writes FOLDER/<output>.out and prints the shapes. ``-`` as FUNCTION: the default one.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from md_export import mil
from md_export.targets.coreml.package import read_spec


def describe(package: str) -> dict[str, str]:
    """Return the metadata that Core ML gives under ``creatorDefinedKey``."""
    return dict(read_spec(Path(package)).description.metadata.userDefined)


def predict(package: str, function: str, folder: str) -> dict[str, dict[str, object]]:
    """Write all outputs as float32 and return their shapes. Names and shapes that the package lacks raise."""
    given = json.loads((Path(folder) / "inputs.json").read_text())
    inputs = {
        name: np.fromfile(Path(folder) / f"{name}.in", about["dtype"]).reshape(about["shape"])
        for name, about in given.items()
    }
    program = mil.load(package, function=None if function == "-" else function)
    made = {name: np.asarray(value, np.float32) for name, value in program.predict(inputs).items()}
    for name, value in made.items():
        value.tofile(Path(folder) / f"{name}.out")
    return {name: {"shape": list(value.shape), "dtype": "float32"} for name, value in made.items()}


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["describe", package]:
            print(json.dumps(describe(package)))
        case ["predict", package, function, folder]:
            print(json.dumps(predict(package, function, folder)))
        case other:
            raise SystemExit(f"{other}: give describe PACKAGE, or predict PACKAGE FUNCTION FOLDER")
