from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from bench_dataset import Case, write_cases
from fib_tools.dataset.store import Dataset
from fib_tools.evaluate.report.report_reading import read_measurements
from fib_tools.evaluate.report.report_tables import build_report
from fib_tools.model.trace import EvaluationStatus
from fib_tools.publish.report_marks import Marks
from fib_tools.publish.report_plots import draw_bandwidth, draw_curves, draw_roofline, draw_speedups, list_points

BASE = Case(
    definition="d",
    op_type="copy",
    author="baseline",
    solution="b",
    axes={"n": 1},
    bytes=1 << 30,
    noise=0.0,
    overhead_ms=0.0,
)
ANA = replace(BASE, author="ana", solution="a", percent=100.0)


class Drawn:
    def __init__(self, root: Path, *cases: Case) -> None:
        self.reading = read_measurements(Dataset(write_cases(root, list(cases))))
        self.report = build_report(self.reading)
        self.marks = Marks(self.report.devices[0], self.report.definitions)
        self.points = list_points(enumerate(self.report.measurements), self.reading.evidence)

    def speedups(self) -> str:
        rows = {(m.author, m.solution, m.workload): (place, m) for place, m in enumerate(self.report.measurements)}
        return draw_speedups(self.report.definitions[0], rows, self.marks)


def lefts(html: str, classes: str) -> list[float]:
    return [float(place) for place in re.findall(rf'class="{classes}" style="left:([\d.]+)%', html)]


def test_a_solution_stands_right_of_the_baseline_when_it_is_faster(tmp_path: Path) -> None:
    html = Drawn(tmp_path, BASE, ANA).speedups()
    (yard,) = lefts(html, "gl yl")
    assert lefts(html, "mk cb") == [yard]
    assert lefts(html, "mk c0")[0] > yard
    assert "Speed-up over the baseline" in html


def test_the_baseline_is_drawn_where_it_is_no_tick(tmp_path: Path) -> None:
    html = Drawn(tmp_path, BASE, replace(ANA, percent=50.4), replace(ANA, solution="x", percent=0.01)).speedups()
    assert len(lefts(html, "gl yl")) == 1


def test_without_a_baseline_times_are_drawn(tmp_path: Path) -> None:
    html = Drawn(tmp_path, ANA).speedups()
    assert '<p class="cap">Time, log scale' in html
    assert lefts(html, "gl yl") == []
    assert "\u00b5s</span>" in html


def test_what_did_not_pass_is_a_cross_at_the_side(tmp_path: Path) -> None:
    failed = replace(ANA, status=EvaluationStatus.TIMEOUT)
    assert 'class="no c0"' in Drawn(tmp_path / "one", BASE, failed).speedups()
    assert "Nothing passed here" in Drawn(tmp_path / "two", failed).speedups()


def test_a_solution_of_the_same_author_has_another_shape(tmp_path: Path) -> None:
    drawn = Drawn(tmp_path, BASE, ANA, replace(ANA, solution="z"))
    shapes = {re.findall(r"#s(\d)", drawn.marks.mark("ana", name, "d"))[0] for name in ("a", "z")}
    assert shapes == {"0", "1"}


def test_points_lie_under_the_measured_roofs(tmp_path: Path) -> None:
    gemm = replace(ANA, definition="g", flops=1 << 50, percent=60.0)
    both = replace(ANA, definition="h", flops=1 << 30, percent=90.0)
    drawn = Drawn(tmp_path, ANA, gemm, both)
    bandwidth = draw_bandwidth(drawn.points, drawn.marks) or ""
    assert "measured copy 4.10 TB/s" in bandwidth
    assert bandwidth.count("data-m") == 2, "work that computing bounds is not there"
    roofline = draw_roofline(drawn.points, drawn.marks) or ""
    assert "bf16 790 TFLOP/s" in roofline
    assert roofline.count('class="roof"') == 2
    assert roofline.count("data-m") == 2, "work without arithmetic is not there"


def test_there_is_no_plot_of_nothing(tmp_path: Path) -> None:
    drawn = Drawn(tmp_path, replace(ANA, status=EvaluationStatus.TIMEOUT))
    assert draw_bandwidth(drawn.points, drawn.marks) is None
    assert draw_roofline(drawn.points, drawn.marks) is None


def test_a_curve_falls_where_a_speedup_is(tmp_path: Path) -> None:
    cases = [replace(BASE, axes={"n": size}) for size in (1, 2)]
    drawn = Drawn(tmp_path, *cases, ANA, replace(ANA, axes={"n": 2}, percent=25.0))
    (curve,) = drawn.report.devices[0].curves
    html = draw_curves([curve], drawn.marks)
    (path,) = re.findall(r'd="M([^"]+)" class="step c0"', html)
    heights = [float(point.split()[1]) for point in path.split(" L")]
    assert heights == [0.0, 0.0, 50.0, 50.0, 100.0, 100.0]
    assert "fast_1 50%" in html


def test_of_very_many_speedups_the_curve_keeps_its_course(tmp_path: Path) -> None:
    drawn = Drawn(tmp_path, BASE, ANA)
    (curve,) = drawn.report.devices[0].curves
    speedups = tuple(1 + place / 5000 for place in range(5000))
    many = curve.model_copy(update={"speedups": speedups, "workloads": 5000})
    path = re.findall(r'd="M([^"]+)" class="step', draw_curves([many], drawn.marks))[0]
    points = [tuple(map(float, part.split())) for part in path.split(" L")]
    assert len(points) <= 802
    assert (points[0][1], points[-1][1]) == (0.0, 100.0)
    assert points == sorted(points)


def test_a_mark_without_data_opens_nothing(tmp_path: Path) -> None:
    drawn = Drawn(tmp_path, BASE, ANA)
    points = list_points(((None, m) for m in drawn.report.measurements), drawn.reading.evidence)
    text = draw_bandwidth(points, drawn.marks) or ""
    assert text.count('class="mk') > 2
    assert "data-m" not in text
