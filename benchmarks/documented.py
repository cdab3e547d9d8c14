"""Run the tutorials whole, the parts included that take minutes: ``python benchmarks/documented.py [PAGE...]``.

The commands run on a small Stable Diffusion with random weights; ``docs/tutorial.ipynb`` runs in a kernel of Jupyter.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / "tests")]

from fenced import PAGES, ROOT, run_page, shell_blocks  # noqa: E402
from fine_tunes import write_fine_tune  # noqa: E402

NOTEBOOK = ROOT / "docs" / "tutorial.ipynb"
MARKS = ("run", "bench")


def call(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    argv = [str(Path(sys.executable).with_name("md-export")), *words[1:]]
    return subprocess.run(argv, cwd=folder, capture_output=True, text=True, check=False)


def run_notebook(folder: Path) -> None:
    """Raises nbclient's CellExecutionError, with the traceback of the cell."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=1800, resources={"metadata": {"path": str(folder)}}).execute()


def main(pages: list[Path]) -> int:
    wrong = 0
    with tempfile.TemporaryDirectory() as scratch:
        for page in pages:
            folder = Path(scratch) / page.stem
            folder.mkdir()
            if page == NOTEBOOK:
                run_notebook(folder)
            else:
                write_fine_tune(folder)
                for line in run_page(page, folder, call, MARKS):
                    print(f"{page.name}: {line}")
                    wrong += 1
            print(f"{page.name}: run")
    return min(wrong, 1)


if __name__ == "__main__":
    marked = [page for page in PAGES if any(block.mark.split(",")[0] in MARKS for block in shell_blocks(page))]
    raise SystemExit(main([Path(name).resolve() for name in sys.argv[1:]] or [*marked, NOTEBOOK]))
