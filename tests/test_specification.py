"""docs/spec: what the pages say of settings is so, and what the code cites is there."""

import dataclasses
import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from iqrl import plain_yaml
from iqrl.agents import AGENTS, agent_class
from iqrl.config import parse_words, resolve
from iqrl.environments import tasks

ROOT = Path(__file__).parents[1]
PAGES = {path.stem: path.read_text() for path in (ROOT / "docs" / "spec").glob("*.md")}
ROOMS = ("iqrl", "baselines", "ablations", "analysis", "slurm", "benchmarks", "tests")
SOURCES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py") if path != Path(__file__))
NOT_IN_THE_PROJECT = {"golden", "tdmpc2"}  # cited in comments, though a reader cannot follow


def tables(page: str) -> Iterator[tuple[list[str], list[list[str]]]]:
    """Header cells and rows of every table of a page."""
    for block in re.findall(r"(?:^\|.*\|\n)+", PAGES[page] + "\n", re.M):
        lines = [re.split(r"(?<!\\)\|", line)[1:-1] for line in block.splitlines()]
        header, _, *rows = [[cell.strip() for cell in line] for line in lines]
        for row in rows:
            assert len(row) == len(header), f"{page}.md: {row}"
        yield header, rows


def headings(page: str) -> list[str]:
    return re.findall(r"^#+ (.*)$", PAGES[page], re.M)


def has_section(page: str, number: str) -> bool:
    return any(h.startswith(f"{number}. ") for h in headings(page))


@pytest.mark.parametrize("agent", AGENTS)
def test_every_setting_stands_with_its_default(agent):
    stated = {}
    for header, rows in tables(agent):
        for i in (i for i, cell in enumerate(header) if cell == "setting"):
            stated |= {row[i].strip("`"): plain_yaml.parse(row[i + 1], agent) for row in rows if row[i]}
    assert stated == dataclasses.asdict(agent_class(agent)[0].Config())


NO_CHANGE = {"vq_codes=64", "vq_beta=0.25", "vq_decay=0.99"}  # defaults, beside the switch that they belong to


@pytest.mark.parametrize("agent", AGENTS)
def test_every_switch_exists_and_takes_the_value(agent):
    known = {f.name for f in dataclasses.fields(agent_class(agent)[0].Config)}
    default = settings(agent, [])
    found = 0
    for header, rows in tables(agent):
        for cell in (row[header.index("switch")] for row in rows if "switch" in header):
            for token in re.findall(r"`([^`]+)`", cell):
                words = token.split()
                assert {word.partition("=")[0] for word in words} <= known, token
                if "=" in token:
                    assert settings(agent, words) != default or token in NO_CHANGE, token
                found += 1
    assert found > 0


def settings(agent: str, words: list[str]) -> Any:
    """The agent's configuration with `key=value` words."""
    runs, _, _ = resolve([("docs", parse_words([f"agent={agent}", *(f"agent.{word}" for word in words)]))])
    return runs[0].settings


@pytest.mark.parametrize("agent", ["iqrl", "td3", "tcrl", "dcwm"])
def test_settings_of_tasks(agent):
    cls = agent_class(agent)[0]
    seen = 0
    for header, rows in tables(agent):
        if header[0] != "task":
            continue
        for name, *cells in rows:
            stated = {k.strip("`"): yaml.safe_load(v) for k, v in zip(header[1:], cells, strict=True)}
            for task in name.split(", "):
                ref = tasks.parse(task)
                actual = cls.task_defaults(ref.name, ref.group)
                default = dataclasses.asdict(cls.Config())
                assert set(actual) <= set(stated), task
                for key, value in stated.items():
                    expected = default[key] if value is None else value
                    assert actual.get(key, default[key]) == expected, (task, key)
                seen += 1
    assert seen


def test_tasks_of_the_protocol():
    """Group and, where it is cheap to know, existence of every task named in sections 5 and 6."""
    named = 0
    for header, rows in tables("protocol"):
        if header[0] == "task":
            for row in rows:
                for task in row[0].split(", "):
                    group = tasks.TASKS[task].group
                    assert "group here" not in header or group == row[header.index("group here")], task
                    named += 1
    assert named > 40
    custom = {name for name, row in tasks.TASKS.items() if row.custom}
    (section,) = re.findall(r"^## 6\..*?(?=^## 7)", PAGES["protocol"], re.M | re.S)
    assert all(name in section for name in custom)


def test_citations_resolve():
    broken, found = [], 0
    own = {module.replace(".", "/"): name for name, module in AGENTS.items()}  # a file, or a folder of them
    for path in SOURCES:
        text, name = path.read_text(), str(path.relative_to(ROOT))
        page = own.get(name.removesuffix(".py"), own.get(str(Path(name).parent)))
        cited = [(p, rest) for p, rest in re.findall(r"\b([a-z]\w*)\.md\b([^\n]{0,60})", text) if p in PAGES]
        for p in re.findall(r"(?:spec page |\(|, )([a-z]\w+)\.md\b", text):
            if p not in PAGES and p not in NOT_IN_THE_PROJECT:
                broken.append(f"{name}: {p}.md")
        for p, rest in cited:
            found += 1
            wanted = re.match(r",? (?:sections? (\d+)|\"([^\"]+)\")?(?: and (\d+))?", rest)
            for number in (wanted[1], wanted[3]) if wanted else ():
                if number and not has_section(p, number):
                    broken.append(f"{name}: {p}.md section {number}")
            if wanted and wanted[2] and not any(h == wanted[2] for h in headings(p)):
                broken.append(f"{name}: {p}.md, {wanted[2]!r}")
            for code in re.findall(r"\b[QWT]\d+\b", rest):
                if f"| {code} |" not in PAGES[p]:
                    broken.append(f"{name}: {p}.md {code}")
        if page:
            codes = set(re.findall(r"\b[QWT]\d{1,2}\b", text))
            broken += [f"{name}: {code}" for code in codes if f"| {code} |" not in PAGES[page]]
            for first, second in re.findall(r"(?<!\.md )\bsections? (\d+)(?: and (\d+))?", text):
                broken += [f"{name}: section {n}" for n in (first, second) if n and not has_section(page, n)]
            for quoted in re.findall(r"\((\"[A-Z][a-zA-Z ,]+\"(?:, \"[A-Z][a-zA-Z ,]+\")*)\)", text):
                titles = re.findall(r"\"([^\"]+)\"", quoted)
                broken += [f"{name}: {title}" for title in titles if title not in headings(page)]
    assert not broken, "\n".join(broken)
    assert found > 20


def test_pages_cite_each_other_rightly():
    for page, text in PAGES.items():
        for other, number in re.findall(r"\b([a-z]\w*)\.md section (\d+)", text):
            assert has_section(other, number), f"{page}.md: {other}.md section {number}"
        for other, codes in re.findall(r"\b([a-z]\w*)\.md ((?:[QW]\d+(?:, )?)+)", text):
            rows = [f"| {code} |" for code in re.findall(r"[QW]\d+", codes)]
            assert all(row in PAGES[other] for row in rows), f"{page}.md: {other}.md {codes}"


def test_every_agent_has_a_page():
    for agent, module in AGENTS.items():
        assert agent in PAGES and f"spec page {agent}.md" in (importlib.import_module(module).__doc__ or "")
