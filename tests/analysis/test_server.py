"""The live page: the report on this machine alone, how far a sweep is, and again when there is more."""

from __future__ import annotations

import json
import shutil
import socket
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from synthetic_runs import write_run, write_study

from analysis import commands
from analysis.__main__ import main
from analysis.errors import InputError
from analysis.manifests import progress
from analysis.runs import load
from analysis.server import LivePage


def get(address: str, path: str = "", host: str | None = None) -> bytes:
    request = urllib.request.Request(address + path, headers={"Host": host} if host else {})
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=20) as response:
        return response.read()


def test_serves_the_report_and_its_state_to_this_machine_alone(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        page = LivePage(tmp_path / "report.html", taken.getsockname()[1])
        try:
            assert page.address.startswith("http://127.0.0.1:")
            assert page._server.server_address[0] == "127.0.0.1"
            assert b"No report yet" in get(page.address)
            (tmp_path / "report.html").write_text("<p>first")
            (tmp_path / "other").write_text("secret")
            page.state = {"reports": 1}
            assert get(page.address) == b"<p>first" and json.loads(get(page.address, "state")) == {"reports": 1}
            for path in ("other", "../other", "report.html"):
                with pytest.raises(urllib.error.HTTPError, match="404"):
                    get(page.address, path)
            with pytest.raises(urllib.error.HTTPError, match="403"):
                get(page.address, host="example.org")
        finally:
            page.close()
    with pytest.raises(InputError, match="port=99999: no port"):
        LivePage(tmp_path / "report.html", 99999)


def test_progress_counts_runs_and_env_steps(runs: Path) -> None:
    made = write_study(runs, agents=("iqrl",), seeds=2)
    shutil.rmtree(made[0])
    shutil.rmtree(made[1])
    write_run(runs, "iqrl", "cartpole-swingup", 1, stop_at=40_000, end="running")
    assert progress([runs], load([runs])) == [{"name": "quickstart", "done": 2, "runs": 4, "share": 0.6}]
    assert progress([runs], load([runs]), "other") == []


def test_watch_serves_while_it_waits(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """Between two looks at the runs the page is there; the last run comes, and it ends."""
    made = write_study(runs, agents=("td3",), tasks=("walker-walk",), seeds=2)
    (made[1] / "DONE").rename(made[1] / "kept")
    monkeypatch.setattr(commands, "render", lambda *_, **__: [])
    seen = []

    def look(_: float) -> None:
        address = capsys.readouterr().out.split()[0]
        seen.append((json.loads(get(address, "state")), get(address)))
        (made[1] / "kept").rename(made[1] / "DONE")

    monkeypatch.setattr(commands.time, "sleep", look)
    assert main(["watch", f"runs={runs}", f"out={tmp_path}", "replicates=10", "every=1"]) == 0
    ((state, page),) = seen
    bar = {"name": "quickstart", "done": 1, "runs": 2, "share": 1.0}
    assert state == {"reports": 1, "progress": [bar]} and b"http-equiv" not in page and b"1 unfinished" in page
