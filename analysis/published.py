"""Published learning curves, read from public repositories as they are in a checkout. Never pooled with own runs.

`load` takes a checkout, one of its files, or a tidy Parquet file, and recognises each file by its columns.
Env steps are simulator control steps (1000 an episode of DeepMind Control); every format's own convention:

    tdmpc2    results/<algorithm>/<task>.csv: step,reward,seed            step counts env steps; of MetaWorld and
                                                                          MyoSuite success in the reward's place
    MR.Q      results/dmc_results.txt: tables, a column a seed            Timestep counts decisions: doubled
    for dmc
    TCRL      results/tcrl.csv: env_step,episode_reward,env,seed,agent    env steps; points lie 1k after the
    mark
    DC-MPC    results/data/*.csv: agent,env,env_step,episode_reward,seed  env steps; there may be episode_success
    SimBa     results/*.csv: exp_name,env_name,seed,metric,env_step,value as labelled; TD7's labels run late; metrics
                                                                          avg_return and avg_success
    tidy      Parquet with algorithm, task, seed, env_step, episode_return (and variant: only '' is read), success

Success is a share of episodes, 0 to 1. Tasks that are judged by it have no row where it is not given.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.errors import InputError
from analysis.scales import published_task, quantity, scale
from analysis.statistics import is_recent

COLUMNS = ("source", "algorithm", "task", "seed", "env_step", "episode_return")
LATE = 1000  # env steps that TCRL's points lie behind the mark that they are for
REMARKS = {
    "tdmpc2": "tdmpc2 files count env steps",
    "MR.Q": "MR.Q files count decisions, doubled here but for Gymnasium",
    "TCRL": "TCRL evaluates 1k env steps after each mark",
    "DC-MPC": "DC-MPC files count env steps",
    "SimBa": "SimBa files as labelled; TD7's labels in them run late, by up to a factor of two",
    "tidy": "steps as its table gives them",
}
NAMES = {
    "dcwm": "DC-MPC", "dcmpc": "DC-MPC", "tdmpc2": "TD-MPC2", "tdmpcv2": "TD-MPC2", "tdmpc": "TD-MPC",
    "sac": "SAC", "dreamerv3": "DreamerV3", "tcrl": "TCRL", "td7": "TD7", "mrq": "MR.Q", "drq": "DR.Q", "bro": "BRO",
    "ddpg": "DDPG", "iqrl": "iQRL", "td3": "TD3", "sacsimba": "SAC-SimBa", "ddpgsimba": "DDPG-SimBa",
    "simbatdmpcv2": "TD-MPC2-SimBa",
}  # fmt: skip
SAME = {"dcmpc": "dcwm"}  # published under another name
IMPLEMENTED = ("iqrl", "td3", "td7", "tcrl", "dcwm", "mrq", "drq")
SUFFIXES = (".csv", ".txt", ".parquet")


@dataclass(frozen=True)
class Published:
    """Curves of other people's runs: a row a seed and evaluation (COLUMNS and format), and remarks on their steps."""

    frame: pd.DataFrame
    remarks: list[str]


def load(path: Path) -> Published:
    """All published curves below `path` that are from states and in a known format.

    Where several sources have the same algorithm, each is kept under "algorithm [source]".

    Raises:
        InputError: there is no such path, or nothing in it is in a known format.
    """
    if not path.exists():
        raise InputError(f"published={path}: no such file or folder")
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.suffix in SUFFIXES)
    frames = []
    for file in files:
        try:
            recognised = _read(file)
        except InputError:
            if file == path:
                raise
            continue  # a table of something else that lies in the folder
        except (ValueError, KeyError) as error:
            raise InputError(f"published={file}: cannot be read: {str(error).splitlines()[0]}") from None
        if recognised is not None and len(recognised[1]):
            frames.append(recognised[1].assign(format=recognised[0]))
    if not frames:
        known = "tdmpc2, MR.Q, TCRL, DC-MPC, SimBa or a tidy Parquet file"
        raise InputError(f"published={path}: no results in a known format; expected those of {known}")
    frame = pd.concat(frames, ignore_index=True)
    frame["algorithm"] = [_algorithm(str(name)) for name in frame["algorithm"]]
    frame = _named_by_source(frame)
    frame["task"] = frame["task"].str.replace("_", "-").str.replace("ball-in-cup", "cup", regex=False)
    frame["task"] = [published_task(task) for task in frame["task"]]
    # The score of some suites takes the return's place, in percent.
    judged = frame["task"].map(quantity) == "success_percent"
    success = frame["success"].astype(float) if "success" in frame else np.nan
    frame["episode_return"] = frame["episode_return"].where(~judged, 100.0 * success)
    frame = frame.dropna(subset=["episode_return"]).astype({"seed": int, "env_step": int, "episode_return": float})
    frame = _split_repeated_seeds(frame)
    return _remarked(frame[[*COLUMNS, "format"]])


def select(published: Published, algorithms: str | None) -> Published:
    """The algorithms named in "A,B"; all for "all"; without a choice those that this project implements.

    Raises:
        InputError: one of the names is not in the published results.
    """
    present = sorted(published.frame["algorithm"].unique())
    if algorithms == "all":
        return published
    if algorithms is None:
        chosen = [name for name in present if agent_of(name) in IMPLEMENTED] or present
    else:
        chosen = algorithms.split(",")
        for name in chosen:
            if name not in present:
                raise InputError(f"algorithms={name}: not in the published results; expected some of {present}")
    return _remarked(published.frame[published.frame["algorithm"].isin(chosen)])


def _remarked(frame: pd.DataFrame) -> Published:
    """The frame, with remarks on the formats in it."""
    return Published(frame, [REMARKS[name] for name in sorted(frame["format"].unique())])


def agent_of(algorithm: str) -> str:
    """The agent here that implements a published algorithm: "MR.Q" -> "mrq", "SAC [simba]" -> "sac"."""
    key = "".join(letter for letter in algorithm.partition(" [")[0].lower() if letter.isalnum())
    return SAME.get(key, key)


def common_scores(frame: pd.DataFrame, tasks: list[str], last: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """One algorithm's normalised scores where all its seeds on all `tasks` have a value.

    Returns:
        env steps up to `last`, or LATE behind it, and one (seeds, steps) array a task; both empty where a task is
        lacking.
    """
    frame = frame[frame["task"].isin(tasks) & (frame["env_step"] <= last + LATE)]
    table = frame.pivot_table(index=["task", "seed"], columns="env_step", values="episode_return").dropna(axis=1)
    if set(table.index.get_level_values("task")) != set(tasks):
        return np.empty(0), []
    return table.columns.to_numpy(), [_normalised(task, table.loc[task].to_numpy()) for task in tasks]


def _normalised(task: str, values: np.ndarray) -> np.ndarray:
    own = scale(task)
    return np.full_like(values, np.nan) if own is None else (values - own.low) / (own.high - own.low)


def _algorithm(name: str) -> str:
    key = re.sub(r"[^a-z0-9]", "", name.lower())
    return NAMES.get(key, name)


def _named_by_source(frame: pd.DataFrame) -> pd.DataFrame:
    sources = frame.groupby("algorithm")["source"].nunique()
    several = set(sources[sources > 1].index)
    if several:
        clash = frame["algorithm"].isin(several)
        frame.loc[clash, "algorithm"] = frame["algorithm"] + " [" + frame["source"] + "]"
    return frame


def _split_repeated_seeds(frame: pd.DataFrame) -> pd.DataFrame:
    """Two runs under one seed (the steps appear twice) become two seeds, in file order."""
    keys = ["algorithm", "task", "seed"]
    copy = frame.groupby([*keys, "env_step"]).cumcount()
    return frame.assign(seed=frame["seed"] + 1_000_000 * copy)


def _read(file: Path) -> tuple[str, pd.DataFrame] | None:
    """(format, rows) of one file, or None where it holds no learning curves that this module knows."""
    if file.suffix == ".parquet":
        return _read_tidy(file)
    if file.suffix == ".txt":
        return _read_mrq(file)
    try:
        with open(file, newline="", encoding="utf-8", errors="replace") as opened:
            header = set(next(csv.reader(opened), []))
    except OSError:
        return None
    for name, required, reader in CSV_FORMATS:
        if required <= header:
            frame = reader(file)
            for column in frame.columns.intersection(["seed", "env_step", "episode_return"]):
                pd.to_numeric(frame[column])  # raises ValueError
            return name, frame
    return None


def _read_tidy(file: Path) -> tuple[str, pd.DataFrame] | None:
    try:
        frame = pd.read_parquet(file)
    except Exception as error:
        raise InputError(f"published={file}: not a Parquet file ({str(error).splitlines()[0]})") from None
    required = {"algorithm", "task", "seed", "env_step", "episode_return"}
    if lacking := required - set(frame.columns):
        raise InputError(f"published={file}: no column {sorted(lacking)[0]!r}; expected {', '.join(sorted(required))}")
    if "variant" in frame:
        frame = frame[frame["variant"] == ""]
    if "suite" in frame:
        frame = frame[frame["suite"].isin(["dmc", "metaworld", "myosuite", "gym"])]
    source = frame["source"] if "source" in frame else file.stem
    return "tidy", frame.assign(source=source)


def _read_mrq(file: Path) -> tuple[str, pd.DataFrame] | None:
    """Blocks of `Env: Dmc-<task>` or `Env: Gym-<task>`, a header `Timestep Seed 0 ...`, and a row a time step."""
    text = file.read_text(encoding="utf-8", errors="replace")
    rows: list[tuple[str, str, str, int, int, float]] = []
    for block in re.split(r"^Env:\s*", text, flags=re.MULTILINE)[1:]:
        name, *lines = block.splitlines()
        suite, _, task = name.strip().partition("-")
        repeat = {"dmc": 2, "gym": 1}.get(suite.lower())
        if repeat is None or task.startswith("visual"):  # other suites; another input
            continue
        for line in lines:
            fields = line.split()
            if fields and fields[0].isdigit():
                step = repeat * int(fields[0])
                rows += [("mrq", "MR.Q", task, seed, step, float(value)) for seed, value in enumerate(fields[1:])]
    return ("MR.Q", pd.DataFrame(rows, columns=list(COLUMNS))) if rows else None


def _read_tdmpc2(file: Path) -> pd.DataFrame:
    frame = pd.read_csv(file)
    if "pixels" in file.parent.name:
        return frame.iloc[:0]
    return pd.DataFrame({
        "source": "tdmpc2", "algorithm": file.parent.name, "task": file.stem, "seed": frame["seed"],
        "env_step": frame["step"], "episode_return": frame.get("reward", np.nan),
        "success": frame.get("success", np.nan),
    })  # fmt: skip


def _read_tcrl(file: Path) -> pd.DataFrame:
    return _renamed(file, "tcrl", {"agent": "algorithm", "env": "task", "episode_reward": "episode_return"})


def _read_dcmpc(file: Path) -> pd.DataFrame:
    """Main results only: ablations and sensitivity files repeat arms, baselines are copies from elsewhere."""
    if {"ablations", "sensitivity", "baselines"} & set(file.parts):
        return pd.DataFrame(columns=list(COLUMNS))
    names = {"agent": "algorithm", "env": "task", "episode_reward": "episode_return", "episode_success": "success"}
    return _renamed(file, "dcmpc", names)


def _read_simba(file: Path) -> pd.DataFrame:
    frame = _renamed(file, "simba", {"exp_name": "algorithm", "env_name": "task", "value": "episode_return"})
    succeeded = frame["metric"] == "avg_success"
    frame["success"] = frame["episode_return"].where(succeeded)
    frame["episode_return"] = frame["episode_return"].mask(succeeded)
    return frame[frame["metric"].isin(["avg_return", "avg_success"])]


def _renamed(file: Path, source: str, names: dict[str, str]) -> pd.DataFrame:
    return pd.read_csv(file).rename(columns=names).assign(source=source)


CSV_FORMATS: tuple[tuple[str, set[str], Callable[[Path], pd.DataFrame]], ...] = (  # the first whose columns are there
    ("TCRL", {"env_step", "episode_reward", "env", "seed", "agent", "frame"}, _read_tcrl),
    ("DC-MPC", {"agent", "env", "env_step", "episode_reward", "seed"}, _read_dcmpc),
    ("SimBa", {"exp_name", "env_name", "seed", "metric", "env_step", "value"}, _read_simba),
    ("tdmpc2", {"step", "reward", "seed"}, _read_tdmpc2),
    ("tdmpc2", {"step", "success", "seed"}, _read_tdmpc2),
)


def at(published: pd.DataFrame, env_steps: Iterable[int]) -> pd.DataFrame:
    """Each published seed's latest value at or before each mark, if it is recent.

    An algorithm's marks count from 1k env steps later where its points lie just behind the mark (TCRL: 101k for 100k).
    """
    rows = []
    for mark in env_steps:
        early = published[published["env_step"] <= mark + LATE]
        latest = early.sort_values("env_step").groupby(["algorithm", "task", "seed"]).tail(1)
        rows.append(latest[is_recent(latest["env_step"], mark)].assign(mark=mark))
    return pd.concat(rows, ignore_index=True)
