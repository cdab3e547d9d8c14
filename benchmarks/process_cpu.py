"""CPU seconds of each process of a command: the command itself, the server that imports libraries, and its forks.

    python benchmarks/process_cpu.py [--checkout DIR] [ARGUMENT]...

Runs ``md-export ARGUMENT...`` (default: ``onnx --fp16 -o A``, the nano checkpoint) in a new folder with an empty cache,
by the code of a checkout (default: this one), with its modules compiled as those of an installation are.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

import click

from export_cpu import COMMANDS, HERE

# Python imports this module when it starts; a fork ends with os._exit in its function or the server's.
_NOTING: Final = """
import atexit, json, os, resource, sys

def note():
    frame, label = sys._getframe(), " ".join(sys.argv[:2])
    while frame:
        call = frame.f_locals.get("call")
        if frame.f_code.co_name == "_run_fork" and call:
            asked = json.load(open(frame.f_locals["folder"] / "request.json"))
            asked = asked.get("request", asked)
            words = asked.get("kind"), asked.get("component"), os.path.basename(asked.get("path", ""))
            label = " ".join(filter(None, (call.name, *words)))
        elif frame.f_code.co_name == "_leave":
            label = "server"
        frame = frame.f_back
    used = resource.getrusage(resource.RUSAGE_SELF)
    with open(os.environ["PROCESS_CPU"], "a") as log:
        log.write(f"| {label} | {used.ru_utime + used.ru_stime:.2f} |\\n")

exit_at_once = os._exit
os._exit = lambda status: (note(), exit_at_once(status))
atexit.register(lambda: None if sys._getframe().f_back else note())
"""


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.option("--checkout", type=click.Path(path_type=Path, exists=True), default=HERE, help="Code to measure.")
def main(arguments: tuple[str, ...], checkout: Path) -> None:
    """Print a row for each process, in the order in which they ended, and the sum."""
    with tempfile.TemporaryDirectory() as name:
        folder, log = Path(name), Path(name) / "log"
        (folder / "sitecustomize.py").write_text(_NOTING, encoding="utf-8")
        path = os.pathsep.join([name, str(checkout.resolve())])
        settings = {"PYTHONPATH": path, "MD_EXPORT_CACHE": str(folder / "cache"), "PROCESS_CPU": str(log)}
        environment = {**os.environ, **settings}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        argv = [sys.executable, "-c", "from md_export.cli import main; main()", *(arguments or COMMANDS["export"][0])]
        subprocess.run(argv, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
        rows = log.read_text(encoding="utf-8")
    total = sum(float(row.split("|")[2]) for row in rows.splitlines())
    print(f"| process | CPU s |\n| --- | ---: |\n{rows}| sum | {total:.2f} |")


if __name__ == "__main__":
    main()
