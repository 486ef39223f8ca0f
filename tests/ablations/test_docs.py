"""docs/ablations.md: its sweep is right, and it names every sweep there is."""

import re
from pathlib import Path

import ablations
from ablations import check

DOCS = Path(__file__).parents[2] / "docs" / "ablations.md"


def test_the_example_is_a_right_sweep(tmp_path):
    (text,) = re.findall(r"```yaml\n(.*?)```", DOCS.read_text(), re.S)
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    assert check.problems(str(path)) == []
    assert len(ablations.load(str(path)).runs) == 5 * 3 * 5
    lite = ablations.load(str(path), "lite")
    assert [arm.label for arm in lite.arms][2:] == ["d = 128, H = 5", "d = 128, H = 10"]


def test_every_sweep_is_named():
    table = DOCS.read_text().split("## A sweep of your own")[0]
    assert set(re.findall(r"`(\w+)`", table)) >= set(ablations.names())
