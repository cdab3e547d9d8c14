"""The part of run-android.sh that reads kit.json and writes results; needs only Python's standard library.

python3 android.py plan                             a line for each case
python3 android.py litert COMPONENT CASE LOG        values that run_model printed → results
python3 android.py delegate COMPONENT CASE FILE     values that benchmark_model wrote → results
python3 android.py device device=… os=… …           results/device.json
python3 android.py sha256 FILE…                     first digits of the SHA-256 of all
"""

import array
import hashlib
import json
import math
import re
import sys
import time
from pathlib import Path
from typing import Any

KIT = Path(__file__).parent
RESULTS = KIT / "results"
TYPES = {"float32": ("f", float), "int32": ("i", int)}
# As run_model logs them (litert/tools/run_model.cc, tensor_utils.h): a heading, then "    17: -0.25" for each value.
HEADING = re.compile(r"\b(Input|Output) buffer (\d+):\s*$")
VALUE = re.compile(r"\s(\d+): (\S+)\s*$")


def plan(kit: Any) -> None:
    """Print per case, tab-separated: component, file, case, size of the largest output, benchmark_model's flags."""
    for part in kit["components"]:
        for case in part["cases"]:
            most = max(math.prod(tensor["shape"]) for tensor in case["outputs"])
            names = ",".join(tensor["name"] for tensor in case["inputs"])
            shapes = ":".join(",".join(map(str, tensor["shape"])) for tensor in case["inputs"])
            files = ",".join(f"{tensor['name']}:@/{tensor['name']}.raw" for tensor in case["inputs"])
            flags = f"--input_layer={names} --input_layer_shape={shapes} --input_layer_value_files={files}"
            print(part["component"], part["file"], case["name"], most, flags, sep="\t")


def outputs_of(kit: Any, component: str, name: str) -> Any:
    """Return the output tensors of a component in a case."""
    (part,) = (part for part in kit["components"] if part["component"] == component)
    (case,) = (case for case in part["cases"] if case["name"] == name)
    return case["outputs"]


def write(component: str, name: str, tensor: Any, content: bytes) -> None:
    """Write the values of an output, little-endian."""
    path = RESULTS / component / name / f"{tensor['name']}.bin"
    path.write_bytes(content)


def from_log(kit: Any, component: str, name: str, log: Path) -> None:
    """Write the values of each output as run_model printed them: six digits, which cut figures above 110 dB of SNR."""
    found: dict[int, dict[int, str]] = {}
    values: dict[int, str] = {}
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        if heading := HEADING.search(line):
            values = {}
            if heading[1] == "Output":
                found[int(heading[2])] = values
        elif value := VALUE.search(line):
            values[int(value[1])] = value[2]
    for number, tensor in enumerate(outputs_of(kit, component, name)):
        size, printed = math.prod(tensor["shape"]), found.get(number, {})
        if sorted(printed) != list(range(size)):
            sys.exit(f"run_model printed {len(printed)} of {size} values of {tensor['name']}")
        kind, number_of = TYPES[tensor["dtype"]]
        content = array.array(kind, [number_of(printed[place]) for place in range(size)])
        if sys.byteorder == "big":
            content.byteswap()
        write(component, name, tensor, content.tobytes())


def from_file(kit: Any, component: str, name: str, file: Path) -> None:
    """Split the file that benchmark_model writes: the bytes of all outputs, one after the other."""
    content = file.read_bytes()
    for tensor in outputs_of(kit, component, name):
        size = math.prod(tensor["shape"]) * 4
        write(component, name, tensor, content[:size])
        content = content[size:]
    if content:
        sys.exit(f"benchmark_model wrote {len(content)} bytes more than the outputs have")


def describe(kit: Any, words: list[str]) -> None:
    """Write device.json."""
    fields = {
        key: " ".join(value.split())[:200] or "unknown" for key, _, value in (word.partition("=") for word in words)
    }
    date = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    origin = {"schema": 1, "manifest_sha256": kit["manifest_sha256"], "golden_cases": kit["golden_cases"]}
    (RESULTS / "device.json").write_text(json.dumps({**origin, **fields, "date": date}, indent=1), encoding="utf-8")


def main(what: str, *words: str) -> None:
    """Run the command that the first argument names."""
    kit = json.loads((KIT / "kit.json").read_text(encoding="utf-8"))
    if what == "plan":
        plan(kit)
    elif what == "device":
        describe(kit, list(words))
    elif what == "sha256":
        print(hashlib.sha256(b"".join(Path(word).read_bytes() for word in words)).hexdigest()[:12])
    else:
        component, name, file = words
        (from_log if what == "litert" else from_file)(kit, component, name, Path(file))


if __name__ == "__main__":
    main(*sys.argv[1:])
