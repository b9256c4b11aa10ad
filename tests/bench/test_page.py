"""The report as a reader meets it: in a browser, on a wide and on a narrow screen."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import pytest

pytest.importorskip("jinja2")

from bench.environment import ROOT
from bench.flights.fly import OPTIMUM, TRAINED, UNTRAINED
from bench.report import write_report
from tests.bench.browser import CHROMIUM, ask

#: `make axe` puts it there; JFBBENCH_AXE names another copy of axe.min.js
AXE = Path(os.environ.get("JFBBENCH_AXE") or ROOT / "build/node_modules/axe-core/axe.min.js")

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")

#: elements outside pictures that are wider than their box and do not scroll in it
_TOO_WIDE = """[...document.querySelectorAll("body, body *")].filter((element) => {
  const style = getComputedStyle(element);
  return !element.closest("svg") && style.display !== "inline" && style.overflowX === "visible"
    && element.clientWidth > 0 && element.scrollWidth > element.clientWidth + 1;
}).map((element) => `${element.tagName} ${element.className} ${element.scrollWidth}`)"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of the committed smoke run."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return write_report(
            [ROOT / "reports" / "release" / "smoke"], tmp_path_factory.mktemp("smoke")
        )


def test_it_is_small_and_answers_in_four_lines(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert len(text.encode()) <= 1_500_000
    box = text.partition('<dl class="answer"')[2].partition("</dl>")[0]
    assert [part.partition(":")[0] for part in box.split("<dt>")[1:]] == [
        *("Which", "When another", "Price", "Measured on"),
    ]


def test_trajectories_have_controls_and_distances(page: Path) -> None:
    """Of single agents, of a swarm and of goods: trained, optimal and untrained."""
    section = page.read_text(encoding="utf-8").partition('<section id="trajectories">')[2]
    section = section.partition("</section>")[0]
    for words in ("thrust [N]", "steering [rad]", "consumption [money/time]", "wealth [money]"):
        assert words in section
    assert "smallest distance between two agents [m]" in section
    for name in (TRAINED, OPTIMUM, UNTRAINED):
        assert f">{name}</text>" in section


def test_points_say_what_they_are(page: Path) -> None:
    """As titles in the figures, which a browser shows on hovering."""
    text = page.read_text(encoding="utf-8")
    assert "<title>jfb, K = 500: " in text
    assert "hover:" not in text


@needs_browser
@pytest.mark.slow
@pytest.mark.parametrize("width", [1400, 420])
def test_answer_ranking_and_figure_are_seen_without_scrolling(
    width: int, page: Path, tmp_path: Path
) -> None:
    """The figure itself: on a narrow screen its caption may be below the edge."""
    bottoms = """["#answer", "#ranking", "#headline svg"].map(
        (name) => document.querySelector(name).getBoundingClientRect().bottom)"""
    assert max(ask(page, bottoms, width, 900, tmp_path)) <= 900


@needs_browser
@pytest.mark.slow
@pytest.mark.parametrize("width", [1400, 420])
def test_nothing_is_wider_than_its_box(width: int, page: Path, tmp_path: Path) -> None:
    opened = "document.querySelectorAll('details').forEach((each) => { each.open = true; }), "
    assert ask(page, opened + _TOO_WIDE, width, 900, tmp_path) == []


@needs_browser
@pytest.mark.slow
@pytest.mark.skipif(not AXE.is_file(), reason=f"no axe-core at {AXE}; `make axe` installs it")
@pytest.mark.parametrize("width", [1400, 420])
def test_it_has_no_serious_accessibility_violation(width: int, page: Path, tmp_path: Path) -> None:
    """With everything unfolded, as axe-core judges it."""
    script = f"""{AXE.read_text(encoding="utf-8")}
    document.querySelectorAll("details").forEach((each) => {{ each.open = true; }});
    axe.run(document).then((found) => [found.passes.length, found.violations.map(
      (each) => [each.impact, each.id, ...each.nodes.slice(0, 3).map((node) => node.html)])])"""
    passes, violations = ask(page, script, width, 900, tmp_path)
    assert passes > 10
    assert [each for each in violations if each[0] in ("serious", "critical")] == []


@needs_browser
@pytest.mark.slow
def test_tables_sort_by_number_and_filter_by_words(page: Path, tmp_path: Path) -> None:
    script = """(() => {
      const table = document.querySelector("#cases table");
      const headings = [...table.tHead.rows[0].cells];
      const column = headings.findIndex((each) => each.textContent.trim() === "step");
      headings[column].querySelector("button").click();
      const rows = [...table.tBodies[0].rows];
      const values = rows.map((row) => Number(row.cells[column].dataset.sort));
      const input = document.getElementById("filter");
      input.value = "bicycle unsupported";
      input.dispatchEvent(new Event("input"));
      const left = [...table.tBodies[0].rows].filter((row) => !row.hidden);
      return [values, left.map((row) => row.textContent)];
    })()"""
    values, left = ask(page, script, 1400, 900, tmp_path)
    assert len(values) > 10
    assert values == sorted(values)
    assert left
    assert all("bicycle" in row and "unsupported" in row for row in left)
