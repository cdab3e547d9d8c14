"""The page holds what was found, nothing of it unescaped, nothing from a network, and fits a phone."""

from __future__ import annotations

import base64
import html
import io
import re
import shutil
import subprocess
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from explained import insight
from md_export.diagnose.insight import Insight
from md_export.parity.verdict import Verification
from md_export.report.page import data_uri, html_page
from support import HOSTILE_PROMPT, Judged

TODAY = date(2026, 11, 30)


@pytest.fixture(scope="module")
def page(judged: Judged) -> str:
    return html_page([(*judged, insight())], TODAY)


def plain(page: str) -> str:
    """The page without attributes of cells."""
    return re.sub(r"<td [^>]*>", "<td>", page)


def test_it_says_what_falls_short(page: str) -> None:
    assert "unet: snr 12.5 dB is below the recipe&#39;s 20 dB" in page
    assert "falls short" in page
    assert "verified" not in re.sub(r"<pre>.*?</pre>", "", page, flags=re.DOTALL)


def test_it_opens_with_the_verdict_and_names_checkpoint_date_and_recipe(page: str, judged: Judged) -> None:
    head = page[page.index("<h1>") : page.index("<h2")]
    sentence = "my-export falls short of the recipe&#39;s thresholds. The first failure: unet: snr 12.5 dB is below the"
    assert head.startswith(f'<h1>md-export report</h1>\n<p class="bad">{sentence}')
    assert "Verified on 2026-11-30 by md-export" in head
    assert "<td>onnx-int8</td>" in plain(head)
    assert "<td>nano aaaaaaaaaaaa</td>" in plain(head)
    passed = html_page([("a", good(judged[1]), Insight())] * 2, TODAY)
    assert (
        '<p class="ok">All 2 exports are verified: each artifact computes what the checkpoint computes, on 32 golden'
        in passed
    )
    assert "; the worst picture has 36.1 dB (at least 30)." in passed


def next_box(page: str) -> str:
    """The box's text, unescaped."""
    return html.unescape(page[page.index('<div class="next">') : page.index("</div>")])


def test_the_box_says_what_to_do_next(page: str, judged: Judged) -> None:
    advice = next(line for one in insight().modules for line in one.advice)
    assert f"my-export, unet: {advice}" in next_box(page)
    alone = next_box(html_page([(*judged, Insight())], TODAY))
    assert "my-export, unet: find the module where accuracy drops: md-export attribute my-export/unet.onnx" in alone
    assert "device-test" not in alone and "seal" not in alone
    passed = next_box(html_page([("a", good(judged[1]), Insight())], TODAY))
    assert "md-export manifest seal a -o a.pin.json" in passed and "md-export device-test a -o kit" in passed
    assert "attribute" not in passed


def good(verification: Verification) -> Verification:
    """The same where nothing falls short."""
    components = tuple(replace(item, faults=()) for item in verification.result.components)
    return replace(verification, result=replace(verification.result, components=components))


def test_the_worst_pictures_come_first(judged: Judged) -> None:
    name, verification = judged
    pictures = list(verification.pictures)
    pictures[13] = np.zeros_like(pictures[13])
    verification = replace(verification, pictures=tuple(pictures))
    page = html_page([(name, verification, Insight())], TODAY)
    shown = re.findall(r"<figcaption>(case-\d+)", page)
    assert shown[0] == "case-013"
    assert len(set(shown)) == 12
    few = replace(verification, result=replace(verification.result, cases=2), pictures=tuple(pictures[:2]))
    assert "All 2 golden cases, worst first." in html_page([(name, few, Insight())], TODAY)


def test_nothing_comes_from_a_network_and_prompts_are_text(page: str) -> None:
    links = re.findall(r'(?:src|href|xlink:href)="([^"]{0,12})', page)
    assert links
    assert all(link.startswith(("data:image/", "#")) for link in links)
    assert "<script" not in page
    assert HOSTILE_PROMPT not in page
    assert "&lt;script&gt;" in page


def test_pictures_are_the_golden_ones_and_the_difference_is_amplified(page: str, judged: Judged) -> None:
    golden = judged[1].golden
    assert page.count('alt="by torch"') == 12
    assert "The worst 12 of 16 golden cases, worst first." in page
    assert data_uri(np.asarray(golden.cases[0].picture, np.float32)) in page
    assert "difference ×64" in page
    found = re.findall(r'alt="difference" src="data:image/png;base64,([^"]+)"', page)
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(found[0]))))
    assert shown.max() >= 240


def test_a_bar_that_falls_short_is_red_and_only_that(page: str) -> None:
    assert page.count("#d6554c") == 1


def test_the_same_verdict_gives_the_same_bytes(page: str, judged: Judged) -> None:
    assert html_page([(*judged, insight())], TODAY) == page


def test_modules_weights_and_lint_are_explained(page: str) -> None:
    page = plain(page)
    assert "first to diverge: down_blocks.1.conv (Conv2d), 11.5 dB on its own input" in page
    assert "keep_float = [&#34;down_blocks.1.conv&#34;]" in page
    assert "<td>down_blocks.1.conv</td><td>Conv2d</td><td>11.5</td><td>9.5</td><td>12.5</td>" in page
    assert "<td>quantized</td><td>int8 weights</td><td>12.6</td><td>20</td>" in page
    assert "<td>down_blocks.1.conv.weight</td><td>int8</td><td>2,048</td><td>31.5</td>" in page
    assert "conv_out.bias is nowhere in the artifact" in page
    assert "<td>rank-5</td><td>unlikely</td><td>1</td><td>tensors of &lt;five&gt; axes</td>" in page
    assert "<td>conv</td>" not in page, "a rule that speaks for an operation is no finding"
    assert "not examined: vae_decoder: it does &lt;not&gt; run" in page
    assert "--checkpoint" not in page


def test_without_a_checkpoint_it_says_what_would_explain(judged: Judged) -> None:
    page = html_page([(*judged, Insight())], TODAY)
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
    found = re.search(r"<title>(\d+) (\d+) (\d+) (\d+)</title>", result.stdout)
    assert found, result.stdout[:300]
    content, window, broken, cut = map(int, found.groups())
    assert content <= window
    assert cut == 0
    assert 0 < window <= width
    assert broken == 0


# With all that is folded: cells that end outside of the window, or of what they are in.
_MEASURE = """<script>addEventListener('load', () => {
document.querySelectorAll('details').forEach(one => one.open = true);
parent.postMessage([document.documentElement.scrollWidth, innerWidth,
[...document.images].filter(image => !image.naturalWidth).length,
[...document.querySelectorAll('td, pre, table')].filter(one => one.getBoundingClientRect().right > innerWidth
|| one.scrollWidth > one.clientWidth + 1).length].join(' '), '*')})</script>"""
