"""A judge for `md-export search --judge`: the share of held-out captions whose pictures the pixel detector finds right.

md-export search --target onnx --budget score=0.98 --judge "python benchmarks/judge.py" -o out/judged
"""

from __future__ import annotations

from pathlib import Path

import click

from md_export.engine.generate import pictures_of_artifacts
from parity import Detector, sample

CAPTIONS = 100


@click.command()
@click.argument("export", type=click.Path(path_type=Path, exists=True))
def main(export: Path) -> None:
    """Print the score of EXPORT's pictures."""
    detector = Detector(sample(CAPTIONS))
    click.echo(detector.share(pictures_of_artifacts(export, detector.requests)))


if __name__ == "__main__":
    main()
