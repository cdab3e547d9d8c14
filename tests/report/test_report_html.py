"""The page holds what was found, nothing of it unescaped, nothing from a network, and fits a phone."""

from __future__ import annotations

import base64
import io
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from explained import insight
from md_export.diagnose.insight import Insight
from md_export.report.page import data_uri, html_page
from support import HOSTILE_PROMPT, Judged


@pytest.fixture(scope="module")
def page(judged: Judged) -> str:
    return html_page([(*judged, insight())])


def test_it_says_what_falls_short(page: str) -> None:
    assert "unet: snr 12.5 dB is below the recipe&#39;s 20 dB" in page
    assert "falls short" in page
    assert "verified" not in re.sub(r"<pre>.*?</pre>", "", page, flags=re.DOTALL)


def test_nothing_comes_from_a_network_and_prompts_are_text(page: str) -> None:
    links = re.findall(r'(?:src|href|xlink:href)="([^"]{0,12})', page)
    assert links
    assert all(link.startswith(("data:image/", "#")) for link in links)
    assert "<script" not in page
    assert HOSTILE_PROMPT not in page
    assert "&lt;script&gt;" in page


def test_pictures_are_the_golden_ones_and_the_difference_is_amplified(page: str, judged: Judged) -> None:
    golden = judged[1].golden
    assert page.count('alt="by torch"') == min(len(golden.cases), 12)
    assert data_uri(np.asarray(golden.cases[0].picture, np.float32)) in page
    assert "difference ×64" in page
    found = re.findall(r'alt="difference" src="data:image/png;base64,([^"]+)"', page)
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(found[0]))))
    assert shown.max() >= 240


def test_a_bar_that_falls_short_is_red_and_only_that(page: str) -> None:
    assert page.count("#d6554c") == 1


def test_the_same_verdict_gives_the_same_bytes(page: str, judged: Judged) -> None:
    assert html_page([(*judged, insight())]) == page


def test_modules_weights_and_lint_are_explained(page: str) -> None:
    assert "first to diverge: down_blocks.1.conv (Conv2d), 11.5 dB on its own input" in page
    assert "keep_float = [&#34;down_blocks.1.conv&#34;]" in page
    assert "<td>down_blocks.1.conv</td><td>Conv2d</td><td>11.5</td><td>9.5</td><td>12.5</td>" in page
    assert "<td>quantized</td><td>int8 weights</td><td>12.6</td><td>20</td>" in page
    assert "<td>down_blocks.1.conv.weight</td><td>int8</td><td>2,048</td><td>31.5</td>" in page
    assert "conv_out.bias is nowhere in the artifact" in page
    assert "<td>rank-5</td><td>unlikely</td><td>1</td><td>tensors of &lt;five&gt; axes</td>" in page
    assert "<td>conv</td>" not in page, "a rule that speaks for an operation is no finding"
    assert "could not be looked into: vae_decoder: it does &lt;not&gt; run" in page
    assert "--checkpoint" not in page


def test_without_a_checkpoint_it_says_what_would_explain(judged: Judged) -> None:
    page = html_page([(*judged, Insight())])
    assert "With <code>--checkpoint DIR</code>" in page
    assert "first to diverge" not in page
    assert "Lint" not in page


def test_plots_run_along_the_leaves_with_blocks_as_ticks(page: str) -> None:
    titles = ("unet: module errors", "unet: largest activations", "unet: weight errors")
    plots = [next(svg for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL) if title in svg) for title in titles]
    assert all("down_blocks.0" in svg and "down_blocks.1" in svg for svg in plots)
    errors, activations, stored = plots
    assert "against torch" in errors
    assert "on its own input" in errors
    lines = [path for path in re.findall(r'<path d="([^"]+)" clip-path', errors) if path.count("L") > 1]
    assert [path.count("L") for path in lines] == [2], "three leaves; blocks and the component itself are left out"
    assert "magnitude" in activations
    assert "int8" in stored
    assert "float32" in stored


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1200])
def test_a_browser_shows_it_without_scrolling_sideways(page: str, width: int, tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium on this machine")
    # A frame, because headless Chromium's own window is never narrower than 500 pixels.
    (tmp_path / "page.html").write_text(page.replace("</body>", _MEASURE + "</body>"))
    (tmp_path / "frame.html").write_text(
        f'<title>waiting</title><iframe src="page.html" width="{width}" height="800"></iframe>'
        "<script>addEventListener('message', event => document.title = event.data)</script>"
    )
    quiet = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run")
    options = ("--headless", "--virtual-time-budget=4000", "--dump-dom", *quiet)
    result = subprocess.run(
        [browser, *options, f"--user-data-dir={tmp_path / 'profile'}", (tmp_path / "frame.html").as_uri()],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    found = re.search(r"<title>(\d+) (\d+) (\d+)</title>", result.stdout)
    assert found, result.stdout[:300]
    content, window, broken = map(int, found.groups())
    assert content <= window
    assert 0 < window <= width
    assert broken == 0


_MEASURE = """<script>addEventListener('load', () => parent.postMessage([document.documentElement.scrollWidth,
innerWidth, [...document.images].filter(image => !image.naturalWidth).length].join(' '), '*'))</script>"""
