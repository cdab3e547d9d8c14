"""MODEL SIGNATURE FOLDER NAME...: run a .tflite file on FOLDER/<input>.in and write FOLDER/<NAME>.out, big-endian."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from md_export.spec.tensors import Array, TensorSpec
from md_export.targets.tflite.lower import SIGNATURE
from md_export.targets.tflite.run import load


def main(model: str, signature: str, folder: str, *names: str) -> None:
    if signature != SIGNATURE:
        raise SystemExit(f"the files have the signature {SIGNATURE}, not {signature}")
    runner = load(Path(model))
    given = {path.stem: path.read_bytes() for path in Path(folder).glob("*.in")}
    wanted = {spec.name: spec for spec in runner.inputs}
    # Raises for a name that is not the file's, or for too few or too many values.
    outputs = runner.run({name: read(wanted[name], raw) for name, raw in given.items()})
    for name in names:
        (Path(folder) / f"{name}.out").write_bytes(outputs[name].astype(">f4").tobytes())


def read(spec: TensorSpec, raw: bytes) -> Array:
    return np.frombuffer(raw, np.dtype(spec.dtype).newbyteorder(">")).astype(spec.dtype).reshape(spec.shape)


if __name__ == "__main__":
    main(*sys.argv[1:])
