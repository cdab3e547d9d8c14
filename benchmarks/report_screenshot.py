"""The page of ``md-export report`` as a picture: ``python benchmarks/report_screenshot.py PAGE.html docs/report.png``.

As Chromium shows it: from the top on a desk in light colours, and its plots of modules on a phone in dark ones.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

DESK, PHONE, HEIGHT = 1040, 390, 1760
_QUIET = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run")
_DARK = "--blink-settings=preferredColorScheme=0"


def shoot(address: str, width: int, dark: bool) -> Image.Image:
    """``HEIGHT`` pixels of the page at ``address``, from its fragment on, in a window of ``width`` pixels."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        raise SystemExit("no chromium on this machine")
    with tempfile.TemporaryDirectory() as scratch:
        # A frame, because headless Chromium's own window is never narrower than 500 pixels.
        frame, picture = Path(scratch) / "frame.html", Path(scratch) / "shot.png"
        frame.write_text(
            f'<meta name="color-scheme" content="{"dark" if dark else "light"}"><body style="margin:0">'
            f'<iframe src="{address}" style="border:0" width="{width}" height="{HEIGHT}"></iframe>'
        )
        window = f"--window-size={max(width, 500)},{HEIGHT}"
        options = (*_QUIET, window, f"--screenshot={picture}", f"--user-data-dir={scratch}/profile")
        command = [browser, *options, *([_DARK] if dark else []), frame.as_uri()]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        return Image.open(picture).convert("RGB").crop((0, 0, width, HEIGHT))


def main(report: Path, picture: Path) -> None:
    address = report.resolve().as_uri()
    sheet = Image.new("RGB", (DESK + PHONE, HEIGHT))
    sheet.paste(shoot(address, DESK, dark=False), (0, 0))
    sheet.paste(shoot(f"{address}#modules-1", PHONE, dark=True), (DESK, 0))
    sheet.quantize(256, dither=Image.Dither.NONE).save(picture, optimize=True)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
