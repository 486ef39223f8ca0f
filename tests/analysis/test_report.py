"""The report in a real browser: wide and narrow, no console message, no overlap; tables sort, curves tell."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from browser import CHROMIUM, DRIVER, Browser
from synthetic_runs import write_run, write_study

from analysis.__main__ import main

needs_browser = pytest.mark.skipif(
    not (CHROMIUM and DRIVER),
    reason="no chromium and chromedriver on this machine (Debian: chromium chromium-driver)",
)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    runs = folder / "runs"
    made = write_study(
        runs,
        agents=("iqrl", "td3", "tcrl"),
        seeds=3,
        question="Does it <learn>?",
        note="narrow networks (preset=small)",
    )
    shutil.rmtree(made[-1])
    write_run(runs, "iqrl", "walker-walk", seed=7, end="failed", stop_at=40_000)
    assert main(["report", f"runs={runs}", f"out={folder}", "replicates=50"]) == 0
    return folder / "report.html"


def test_is_one_file_that_loads_nothing(report: Path) -> None:
    text = report.read_text()
    assert not re.search(r'(?:src|href)="(?!#|data:)', text)
    assert "url(http" not in text and "@import" not in text
    identifiers = re.findall(r'\bid="([^"]+)"', text)
    assert len(identifiers) == len(set(identifiers))
    for target in re.findall(r'xlink:href="#([^"]+)"', text) + re.findall(r"url\(#([^)]+)\)", text):
        assert target in identifiers


def test_says_what_is_missing_and_escapes_what_users_wrote(report: Path) -> None:
    text = report.read_text()
    assert "Does it &lt;learn&gt;?" in text
    assert "narrow networks (preset=small)" in text
    assert "critic loss is NaN at update 1234" in text
    assert "is in the sweep and has no run directory" in text


OVERLAPS = """
const kinds = 'h1, h2, h3, p, dl, figcaption, .plot, .scroll, nav, summary';
const boxes = [...document.querySelectorAll(kinds)]
  .filter((e) => e.getClientRects().length && e.id !== 'values')
  .map((e) => ({ e, name: e.tagName + e.textContent.trim().slice(0, 30), r: e.getBoundingClientRect() }));
const found = [];
for (let i = 0; i < boxes.length; i++) for (let j = i + 1; j < boxes.length; j++) {
  const [a, b] = [boxes[i], boxes[j]];
  if (a.e.contains(b.e) || b.e.contains(a.e)) continue;
  const x = Math.min(a.r.right, b.r.right) - Math.max(a.r.left, b.r.left);
  const y = Math.min(a.r.bottom, b.r.bottom) - Math.max(a.r.top, b.r.top);
  if (x > 1 && y > 1) found.push(a.name + ' | ' + b.name);
}
return found;
"""
HINTS = """
return [...document.querySelectorAll('.plot, .scroll')].filter((e) => e.getClientRects().length)
  .map((e) => [!e.previousElementSibling.hidden, e.scrollWidth > e.clientWidth + 1]);
"""
TOO_WIDE = """
return [...document.querySelectorAll('body *')]
  .filter((e) => !e.closest('.plot, .scroll') && e.id !== 'values')
  .filter((e) => e.getBoundingClientRect().right > innerWidth + 1).map((e) => e.tagName + ' ' + e.className);
"""


@needs_browser
@pytest.mark.parametrize("width", [1280, 400])
def test_in_a_real_browser(report: Path, tmp_path: Path, width: int) -> None:
    with Browser(tmp_path / "profile", width, 900) as browser:
        browser.open(report)
        assert browser.script("return innerWidth") == width
        browser.script("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
        assert browser.script("return document.documentElement.scrollWidth") <= width
        assert browser.script(TOO_WIDE) == []
        assert browser.script(OVERLAPS) == []
        assert browser.script("return document.querySelectorAll('.plot svg').length") >= 10
        hints = browser.script(HINTS)
        assert hints and all(shown == scrolls for shown, scrolls in hints)
        assert any(shown for shown, _ in hints) or width > 400
        _values_follow_the_pointer(browser)
        _tables_sort(browser)
        assert [entry for entry in browser.log() if entry["level"] in ("SEVERE", "WARNING")] == []


def _values_follow_the_pointer(browser: Browser) -> None:
    x, y = browser.script(
        "const svg = document.querySelector('.plot svg'); svg.scrollIntoView({block: 'center'});"
        "const r = svg.getBoundingClientRect(); return [r.left + 0.5 * r.width, r.top + 0.4 * r.height];"
    )
    browser.point_at(x, y)
    shown = browser.script("const v = document.getElementById('values'); return v.hidden ? '' : v.innerText;")
    assert re.search(r"iQRL at \d+k: 0\.\d+ \[", shown) and "TD3 at" in shown
    inside = browser.script(
        "const r = document.getElementById('values').getBoundingClientRect();"
        "return r.left >= 0 && r.top >= 0 && r.right <= innerWidth && r.bottom <= innerHeight;"
    )
    assert inside


def _tables_sort(browser: Browser) -> None:
    script = """
    const tables = [...document.querySelectorAll('table.sortable')];
    const table = tables.find((t) => t.tHead.innerText.includes('iQRL'));
    const column = [...table.tHead.rows[0].cells].findIndex((c) => c.innerText.trim() === 'iQRL');
    table.tHead.rows[0].cells[column].querySelector('button').click();
    return [...table.tBodies[0].rows].map((r) => parseFloat(r.cells[column].innerText));
    """
    rising = browser.script(script)
    falling = browser.script(script)
    assert rising == sorted(rising) and falling == rising[::-1] and len(rising) > 2
