"""The curves by their numbers; their drawing only for what a page relies on."""

from __future__ import annotations

import itertools
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from barlowtwins.reports.charts import MOST_POINTS, Chart, Series, charts, spectrum_chart, thinned
from barlowtwins.reports.figures import correlation_pixels, draw, tick

RECORDS = [
    {"step": 0, "epoch": 0, "effective_rank": 9.0, "rank_limit": 32, "feature_deviation": 0.3},
    {"step": 5, "epoch": 0.5, "loss": 40.0, "on_diagonal": 30.0, "off_diagonal": 2000.0, "floor": 1000.0, "lr": 0.1}
    | {"lr_bias": 0.01, "images_per_second": 80.0, "unreadable": 0},
    {"step": 10, "epoch": 1.0, "loss": 30.0, "on_diagonal": 25.0, "off_diagonal": 1800.0, "floor": 1000.0, "lr": 0.2}
    | {"lr_bias": 0.02, "images_per_second": 90.0, "unreadable": 0},
    {"step": 10, "epoch": 1, "effective_rank": 12.0, "rank_limit": 32, "feature_deviation": 0.6},
    {"step": 10, "epoch": 1, "knn": 71.5},
]


def test_charts_hold_the_numbers_of_the_log() -> None:
    made = {chart.title: {curve.name: (curve.x, curve.y) for curve in chart.series} for chart in charts(RECORDS, 0.005)}

    assert made["Loss"] == {"loss": ((0.5, 1.0), (40.0, 30.0)), "lower bound": ((0.5, 1.0), (5.0, 5.0))}  # 0.005 * 1000
    assert made["On and off the diagonal"]["off: sum of C_ij²"] == ((0.5, 1.0), (2000.0, 1800.0))
    assert made["Online kNN, held-out images"] == {"top-1, %": ((1.0,), (71.5,))}
    assert made["Effective rank of the features"]["effective rank"] == ((0.0, 1.0), (9.0, 12.0))
    assert made["Feature deviation"]["deviation"] == ((0.0, 1.0), (0.3, 0.6))
    assert made["Learning rates"]["biases, batch norm"] == ((0.5, 1.0), (0.01, 0.02))
    assert made["Throughput, average so far"]["images per second"] == ((0.5, 1.0), (80.0, 90.0))


def test_a_log_without_something_has_no_chart_of_it() -> None:
    titles = [chart.title for chart in charts([RECORDS[1], {"step": 6, "epoch": 0.6, "loss": float("nan")}], 0.005)]

    assert "Loss" in titles
    assert "Online kNN, held-out images" not in titles
    assert charts([], 0.005) == []


def test_knn_stands_between_chance_and_all() -> None:
    record = {"step": 20, "epoch": 2, "knn": 75.0, "probe": 80.0}
    chart = next(chart for chart in charts([*RECORDS, record], 0.005, classes=8) if "kNN" in chart.title)

    assert chart.zero
    assert [(curve.name, curve.x, curve.y, curve.bound) for curve in chart.series] == [
        ("top-1, %", (1.0, 2.0), (71.5, 75.0), False),
        ("linear probe, %", (2.0,), (80.0,), False),
        ("chance", (1.0, 2.0), (12.5, 12.5), True),
    ]


def test_equal_learning_rates_are_one_curve() -> None:
    same = [record | {"lr_bias": record["lr"]} for record in RECORDS if "lr" in record]

    chart = next(chart for chart in charts(same, 0.005) if chart.title == "Learning rates")
    assert [curve.name for curve in chart.series] == ["all parameters"]


def test_a_spectrum_is_relative_to_its_greatest_value_and_leaves_rounding_out() -> None:
    chart = spectrum_chart([4.0, 2.0], [10.0, 5.0, 1e-7])

    assert {curve.name: curve.y for curve in chart.series} == {"now": (1.0, 0.5), "at the start": (1.0, 0.5)}


def test_long_curves_are_thinned_and_keep_their_ends() -> None:
    curve = Series("loss", tuple(map(float, range(9999))), tuple(map(float, range(9999))))

    few = thinned(curve)
    assert (len(few.x), few.x[0], few.x[-1]) == (MOST_POINTS, 0, 9998)
    assert few.x == few.y


def test_a_drawing_is_well_formed_takes_the_colours_of_its_page_and_has_all_points() -> None:
    pytest.importorskip("matplotlib")
    x = tuple(map(float, range(20)))
    zigzag = Series("a", x, tuple(float(i % 2 * 5 + 1) for i in range(20)))
    svg = draw(Chart("A < B & C", "epoch", (zigzag, Series("bound", (0, 19), (7, 7), bound=True))))

    root = ET.fromstring(svg)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "viewBox" in root.attrib
    assert not {"width", "height"} & set(root.attrib)
    assert {"var(--s0)", "var(--s2)", "currentColor", "var(--line)"} <= set(
        re.findall(r"var\(--\w+\)|currentColor", svg)
    )
    assert not re.search(r"#01020\d", svg)
    line = next(
        path.attrib["d"] for path in root.iter("{http://www.w3.org/2000/svg}path") if "--s0" in str(path.attrib)
    )
    assert len(re.findall(r"[ML]", line)) == 20
    heights = [float(y) for _, y in re.findall(r"[ML] (\S+) (\S+)", line)]
    assert all((a - b) * (-1) ** i > 0 for i, (a, b) in enumerate(itertools.pairwise(heights)))


def _lines(svg: str, colour: str) -> list[list[tuple[float, float]]]:
    """The corners of each line of a colour."""
    root = ET.fromstring(svg)
    drawn = [path.attrib for path in root.iter("{http://www.w3.org/2000/svg}path") if colour in str(path.attrib)]
    return [[(float(x), float(y)) for x, y in re.findall(r"[ML] (\S+) (\S+)", path["d"])] for path in drawn]


def test_a_bound_that_never_changes_is_a_line_over_the_whole_width_also_where_there_is_one_point() -> None:
    pytest.importorskip("matplotlib")
    svg = draw(Chart("Loss", "epoch", (Series("loss", (1,), (40,)), Series("floor", (1,), (5,), bound=True)), log=True))

    ((left, height), (right, other)) = _lines(svg, "--s2")[0]
    _, _, width, _ = map(float, re.findall(r'viewBox="(.*?)"', svg)[0].split())
    assert height == other
    assert right - left > 0.75 * width


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0, "0"),
        (0.25, "0.25"),
        (60, "60"),
        (1000, "1,000"),
        (250_000, "250,000"),
        (2_500_000, "2.5 M"),
        (-0.8, "\u22120.8"),
        (0.0005, "0.0005"),
        (2e-5, "2e-5"),
        (0.1 + 0.2, "0.3"),
    ],
)
def test_a_tick_is_whole_by_itself(value: float, words: str) -> None:
    assert tick(value) == words


@pytest.mark.parametrize("most", [2.5e-5, 3e3, 4.2e6])
def test_an_axis_has_no_factor_of_its_own(most: float) -> None:
    pytest.importorskip("matplotlib")
    svg = draw(Chart("x", "step", (Series("a", (0, 4e6), (most / 9, most)),)))
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", svg)

    assert "4 M" in texts
    assert all(re.fullmatch(r"step|[\d,.]+( M)?|[\d.]+e-\d", text) for text in texts), texts


def test_colours_of_a_matrix_tell_sign_and_size() -> None:
    shades = correlation_pixels([[-1.0, -0.05, 0.0, 0.05, 1.0, np.nan]])[0].astype(int)  # (6, 3)
    brightness = shades.sum(1)

    assert brightness[2] == brightness[5] < min(brightness[1], brightness[3]) < min(brightness[0], brightness[4])
    assert shades[1, 2] > shades[1, 0]  # below 0: blue
    assert shades[3, 0] > shades[3, 2]  # above: red
