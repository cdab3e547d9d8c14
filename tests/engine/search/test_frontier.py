"""The curve as data and as a picture says what was found."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from md_export.engine.search.frontier import Base, Candidate, Form, Module, curve, uniform
from md_export.engine.search.results import TRADE_OFF, Figures, TradeOff, figures_of
from md_export.report.plots import curve_plot

FORMS = {Form("float16"): 16.0, Form("int8"): 8.0, Form("int4"): 4.5}


@pytest.fixture
def found() -> TradeOff:
    modules = [
        Module(
            "unet", f"{n}", 8000, tuple(Candidate(form, int(1000 * b), 4**-b / n, 4**-b) for form, b in FORMS.items())
        )
        for n in range(1, 20)
    ]
    points = curve(modules, Base(bytes=5000))
    same = {
        form.label: figures_of(uniform(modules, form, Base(bytes=5000))) for form in FORMS if form.weights != "float16"
    }
    built = Figures(points[9].bytes, points[9].bits, points[9].picture_db - 1.5, {"unet": 20.0})
    every = tuple(figures_of(point) for point in points)
    return TradeOff("coreml", "at most 100 <kB> & more", every, same, every[9], {"chosen": built})


def test_what_is_written_is_read_again(found: TradeOff) -> None:
    written = TRADE_OFF.dump_json(found, indent=2)
    assert TRADE_OFF.validate_json(written) == found
    with pytest.raises(ValueError, match="bits"):
        TRADE_OFF.validate_json(written.replace(b'"bits"', b'"bytes_per_weight"', 1))


def test_figures_are_the_points(found: TradeOff) -> None:
    assert found.uniform["int8"].bytes == 5000 + 19 * 8000
    assert found.uniform["int8"].bits == 8.0
    assert found.curve[0] == found.uniform["int4"]
    assert found.curve[-1].bits == 16.0


def test_a_plot_shows_the_curve_and_names_the_rest(found: TradeOff) -> None:
    svg = curve_plot(found)
    texts = [item.text for item in ElementTree.fromstring(svg).iter() if item.tag.endswith("text")]  # noqa: S314
    for text in (
        "coreml: at most 100 <kB> & more",
        "kB",
        "picture PSNR, dB",
        "int8",
        "int4",
        "chosen",
        "built: chosen",
    ):
        assert text in texts
    assert svg == curve_plot(found)
    assert "currentColor" in svg


def test_an_exact_picture_has_a_place(found: TradeOff) -> None:
    exact = Figures(10**7, 32.0, 999.0, {"unet": 999.0})
    svg = curve_plot(TradeOff("onnx", "all", (*found.curve, exact), {}, exact, {}))
    texts = [item.text for item in ElementTree.fromstring(svg).iter() if item.tag.endswith("text")]  # noqa: S314
    assert "MB" in texts
    assert not any(text and text.isdigit() and int(text) > 200 for text in texts)
