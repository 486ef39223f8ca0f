"""From sweeps to packs, profiles, and submission scripts, without any Slurm."""

import dataclasses
import json
import os
import pickle
import re
import subprocess
import sys

import pytest
import yaml
from sweep_files import BROKEN_AGENT, ROOT, TINY, fake_command, slurm

import ablations
from ablations import __main__ as sweeps_command_line
from iqrl import config
from iqrl.errors import InputError
from slurm import __main__ as command_line
from slurm import job, local, packs, profile, remaining, submit
from slurm.submissions import Submission


@pytest.fixture
def sweep(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(
        TINY.replace("seeds: 0..1", "seeds: 0..6").replace("[cartpole-swingup]", "[cartpole-swingup, walker-run]")
    )
    return ablations.load(str(file))


def test_packs_hold_runs_that_differ_in_their_seed_only(sweep, tmp_path):
    made = remaining.make_packs(sweep.unique_runs(), 3, {"train.threads": "1"}, tmp_path)
    assert [p.seeds for p in made] == [(0, 1, 2), (3, 4, 5), (6,)] * 2
    assert sorted(name for p in made for name in p.runs) == sorted(run.name for run in sweep.unique_runs())
    assert len({p.name for p in made}) == len(made)
    assert set(made[0].words) == {"train.threads=1", "train.compile=off", "train.pack=3"}
    assert [p.seeds for p in remaining.make_packs(sweep.unique_runs(), 16, {}, tmp_path, slots=4)] == [
        (0, 1, 2, 3), (4, 5, 6),
    ] * 2  # fmt: skip


@pytest.mark.parametrize("name", ["transfer", "multitask_transfer"])
def test_packs_of_runs_that_differ_in_what_they_start_from_have_names_of_their_own(name, tmp_path):
    """Each name is that of a configuration file: two of one name, and one arm would be trained as the other."""
    made = remaining.make_packs(ablations.load(name, scale="lite").unique_runs(), 16, {}, tmp_path)
    assert len({p.name for p in made}) == len(made)
    for pack in made:
        layer = config.load_file(pack.write(tmp_path))
        runs, *_ = config.resolve([("file", {**layer, "seeds": list(pack.seeds)})])
        assert tuple(run.directory_name for run in runs) == pack.runs


@pytest.mark.parametrize(
    ("groups", "slots", "size"),
    [([2, 2], 2, 2), ([2], 2, 1), ([5], 2, 3), ([4] * 3, 2, 2), ([3, 3, 3], 2, 1), ([10] * 28, 4, 10), ([5, 5], 1, 5)],
)
def test_packs_on_cpus_keep_every_process_busy_to_the_end(groups, slots, size):
    assert packs.even_size(groups, slots) == size


def test_the_users_words_win_over_the_files_and_those_over_the_profiles(sweep, tmp_path):
    profiles = {"train.threads": "1", "train.workers": "0", "train.compile": "auto"}
    own = remaining.make_packs(sweep.unique_runs(), 3, profiles, tmp_path)[0]  # the file has train.compile: "off"
    asked = remaining.make_packs(
        sweep.unique_runs(), 3, profiles, tmp_path, {"train.compile": "on", "train.threads": "2"}
    )[0]
    rest = {"train.workers=0", "train.pack=3"}
    assert set(own.words) == {"train.compile=off", "train.threads=1"} | rest
    assert set(asked.words) == {"train.compile=on", "train.threads=2"} | rest


def test_a_pack_file_and_its_words_are_the_same_runs(sweep, tmp_path):
    (pack,) = [p for p in remaining.make_packs(sweep.unique_runs(), 16, {}, tmp_path) if "walker" in p.name]
    layer = config.load_file(pack.write(tmp_path))
    runs, execution, _ = config.resolve(
        [("file", layer), ("words", config.parse_words([f"seeds={','.join(map(str, pack.seeds))}", *pack.words]))]
    )
    assert tuple(run.directory_name for run in runs) == pack.runs
    assert (execution.compile, execution.pack) == ("off", "16")
    command = packs.train_command("python", pack, tmp_path, tmp_path / "runs", pack.seeds)
    assert command[:5] == ["python", "-u", "-m", "iqrl", "train"] and "seeds=0,1,2,3,4,5,6" in command


def test_runs_are_packed_with_those_that_can_go_on_from_the_same_point(sweep, tmp_path):
    runs = [run for run in sweep.unique_runs() if run.config.task == "walker-run"]
    saved = {0: ["20", "30"], 1: ["30", "40"], 2: ["20"], 3: ["50"]}
    for run in runs:
        folder = tmp_path / run.name / "checkpoint"
        folder.mkdir(parents=True)
        for decisions in saved.get(run.config.seed, []):
            (folder / f"{decisions:>010}-{0:010d}-0123abcd.pt").touch()
    made = remaining.make_packs(runs, 16, {}, tmp_path)
    assert sorted(p.seeds for p in made) == [(0, 1), (2,), (3,), (4, 5, 6)]


@pytest.mark.parametrize(
    "word",
    ["agent.horizon=3", "train.env_steps=10", "seeds=3", "task=walker-run", "train.threads=-1", "train.device=cuda:1"],
)
def test_words_that_would_change_runs_are_refused(word):
    with pytest.raises(InputError, match=word.split("=")[0]):
        remaining.execution_words([word])


def test_jobs_that_wait_for_other_runs_come_last(sweep, tmp_path):
    made = remaining.make_packs(sweep.unique_runs(), 3, {}, tmp_path)
    made[0] = dataclasses.replace(made[0], after=(made[-1].runs[0],))
    jobs = submit._jobs(made, 2)
    assert [len(packs) for packs in jobs] == [2, 2, 1, 1] and jobs[-1][0] is made[0]


# --- profiles


def write(tmp_path, **values):
    file = tmp_path / "p.yaml"
    file.write_text(yaml.safe_dump(values))
    return str(file)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 5400), ("24:00:00", 86400), ("10:30", 630), ("2-0", 172800), ("1-12:30", 131400), ("1-01:02:03", 90123)],
)
def test_time_limits_are_read_as_slurm_reads_them(text, seconds):
    assert profile.parse_time(text) == seconds


def test_a_time_limit_is_whole_minutes(tmp_path):
    """submitit and sbatch take no fractions."""
    assert profile.load(write(tmp_path, time="00:01:30", grace_seconds=30)).minutes == 2
    assert profile.load("gpu").minutes == 1440  # and not YAML's number to the base of 60


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"gpu": 1}, "profile.gpu=1"),
        ({"gpus": "two"}, "profile.gpus=two"),
        ({"cpus": 0}, "profile.cpus=0"),
        ({"time": "tomorrow"}, "profile.time=tomorrow"),
        ({"time": "00:00:20"}, "at least a minute"),
        ({"time": "5:00", "grace_seconds": 300}, "profile.grace_seconds=300"),
        ({"setup": "module load cuda"}, "setup"),
        ({"options": [1]}, "options"),
        ({"memory_gb": -1}, "profile.memory_gb=-1"),
        ({"partition": ["a", "b"]}, "profile.partition="),
        ({"gpus": 0, "options": ["gres=gpu:a100:1"]}, "profile.gpus=0"),
    ],
)
def test_a_wrong_profile_is_one_line(tmp_path, values, named):
    with pytest.raises(InputError) as error:
        profile.load(write(tmp_path, **values))
    assert named in str(error.value) and "p.yaml" in str(error.value) and "\n" not in str(error.value)


def test_a_profiles_text_is_as_it_was_written(tmp_path):
    file = tmp_path / "p.yaml"
    file.write_text(
        "{account: 0042, partition: yes, qos: 1_000, constraint: 010, time: 24:00:00, cpus: 8, memory_gb: 64.,\n"
        "setup: ['cd ${HOME}', 'module load ${#x}'], options: ['comment=${A:+:$A}']}"
    )
    made = profile.load(str(file))
    assert (made.account, made.partition, made.qos, made.constraint) == ("0042", "yes", "1_000", "010")
    assert (made.minutes, made.cpus, made.memory_gb) == (1440, 8, 64.0)
    assert (made.setup, made.options) == (["cd ${HOME}", "module load ${#x}"], ["comment=${A:+:$A}"])


@pytest.mark.parametrize("limit", ["infinite", "UNLIMITED", "n/a"])
def test_a_partition_without_a_limit_gives_a_day(tmp_path, limit):
    file = tmp_path / "first.yaml"
    file.write_text(profile.describe(f"main*|up|{limit}|8|16000|(null)|3\n"))
    assert profile.load(str(file)).minutes == 1440


def test_a_first_profile_from_what_sinfo_says(tmp_path):
    text = profile.describe("cpu*|up|2-00:00:00|64|256000|(null)|10\ngpu|up|12:00:00|96|1000000|gpu:h100:8|4\n")
    file = tmp_path / "first.yaml"
    file.write_text(text)
    made = profile.load(str(file))
    assert (made.partition, made.gpus, made.cpus, made.memory_gb, made.minutes) == ("gpu", 1, 12, 109.5, 720)
    file.write_text(profile.describe("main*|up|infinite|8|16000|(null)|3\n"))
    made = profile.load(str(file))
    assert (made.partition, made.gpus, made.cpus, made.minutes) == ("main", 0, 1, 1440)


@pytest.fixture
def srun(tmp_path, monkeypatch):
    """A stand-in for the command, without which submitit makes no job script."""
    fake_command(tmp_path / "bin", "srun", "true")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")


def test_the_submission_script(tmp_path, srun):
    """It keeps srun (without it there is no USR2), asks for requeueing, and stands in the snapshot of the code."""
    file = write(tmp_path, partition="p", gpus=2, cpus=8, packs_per_job=2, time="5:00", grace_seconds=90,
                 options=["reservation=r", "exclusive"], setup=["module load x"])  # fmt: skip
    executor = submit._executor(profile.load(file), "name", tmp_path / "f", tmp_path / "code")
    text = executor._make_submission_file_text("COMMAND", "id")
    for line in ("--partition=p", "--time=5", "--signal=USR2@90", "--requeue", "--reservation=r", "--exclusive",
                 "--gpus-per-node=2", "--cpus-per-task=8", "--mem=65536MB", "--open-mode=append"):  # fmt: skip
        assert f"#SBATCH {line}\n" in text, line
    assert "\nsrun " in text and text.index("module load x") < text.index(f"cd {tmp_path / 'code'}") < text.index(
        "srun"
    )
    assert "OMP_NUM_THREADS=4" in text


@pytest.mark.parametrize(("option", "flags"), [("mem-bind=local", 2), ("mem-per-cpu=2G", 1), ("mem=0", 1)])
def test_an_option_that_says_how_much_memory_comes_instead_of_the_profiles(tmp_path, srun, option, flags):
    executor = submit._executor(profile.load(write(tmp_path, options=[option])), "n", tmp_path / "f", tmp_path / "code")
    text = executor._make_submission_file_text("true", "id")
    assert f"--{option}" in text and len([line for line in text.splitlines() if "--mem" in line]) == flags


@pytest.mark.parametrize(
    ("option", "flags"),
    [
        ("gpus-per-node=a100:1", ["--gpus-per-node=a100:1"]),
        ("gres=gpu:a100:1", ["--gres=gpu:a100:1"]),
        ("gpus=a100:2", ["--gpus=a100:2"]),
        ("gres=nvme:1", ["--gpus-per-node=1", "--gres=nvme:1"]),
    ],
)
def test_an_option_that_names_gpus_comes_instead_of_their_number(tmp_path, srun, option, flags):
    executor = submit._executor(profile.load(write(tmp_path, options=[option])), "n", tmp_path / "f", tmp_path / "code")
    text = executor._make_submission_file_text("true", "id")
    assert [line.split()[1] for line in text.splitlines() if "--gpus" in line or "--gres" in line] == flags


def test_what_a_job_is_handed(tmp_path, monkeypatch):
    """srun gets the job's CPUs; what a set-up line puts on PYTHONPATH stays there, after the snapshot."""
    fake_command(tmp_path / "bin", "srun", "echo $PYTHONPATH $SRUN_CPUS_PER_TASK")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    monkeypatch.setenv("PYTHONPATH", "/login")
    (tmp_path / "my code").mkdir()
    made = profile.load(write(tmp_path, setup=["export PYTHONPATH=/module:$PYTHONPATH"]))
    executor = submit._executor(made, "name", tmp_path / "f", tmp_path / "my code")
    script = tmp_path / "job.sh"
    script.write_text(executor._make_submission_file_text("true", "id"))
    for cpus, said in (({"SLURM_CPUS_PER_TASK": "8"}, " 8"), ({}, "")):
        environment = {"PATH": os.environ["PATH"], **cpus}
        result = subprocess.run(["bash", str(script)], env=environment, capture_output=True, text=True)
        assert (result.stdout, result.stderr) == (f"{tmp_path}/my code:/module:/login{said}\n", "")


# --- submitting, with stand-ins for Slurm's commands


@pytest.fixture
def submitting(tmp_path):
    """`submit WORDS` into tmp_path/r; the job scripts are kept in tmp_path/scripts, and the queue is tmp_path/queue."""
    (tmp_path / "scripts").mkdir()
    (tmp_path / "queue").touch()
    script = f"""case "$1" in --test-only) exit 0;; esac
n=$(ls {tmp_path}/scripts | wc -l); n=$((n + 101)); cp "$1" {tmp_path}/scripts/$n; echo "Submitted batch job $n" """
    for name, text in (("sbatch", script), ("srun", "true"), ("squeue", f"cat {tmp_path}/queue"), ("sacct", "exit 1"),
                       ("scontrol", "exit 1")):  # fmt: skip
        fake_command(tmp_path / "bin", name, text)
    (tmp_path / "p.yaml").write_text("{gpus: 0, cpus: 1, memory_gb: 1, time: '10:00', grace_seconds: 60}")

    def start(command, *words):
        where = ["--profile", "p.yaml", "--yes", "runs=r"]
        result = slurm(command, *words, *where, cwd=tmp_path, path=f"{tmp_path / 'bin'}:/usr/bin:/bin")
        assert result.returncode == 0, result.stderr
        return result.stdout

    return start


TRANSFER = """
title: T
question: Q?
finding: F.
base: {preset: tiny}
arms: {scratch: {}, tuned: {start_from: {arm: scratch, task: walker-walk}, tasks: [walker-run]}}
tasks: [walker-walk, walker-run]
seeds: "0"
env_steps: 2000
"""


def test_a_retried_second_stage_waits_for_a_first_that_is_queued(submitting, tmp_path):
    (tmp_path / "t.yaml").write_text(TRANSFER)
    said = submitting("submit", "t.yaml")
    assert "submitted 3 jobs: 101, 102\n" in said and f"status t --watch runs={tmp_path}/r\n" in said
    (submission,) = (tmp_path / "r" / "sweeps" / "t").iterdir()
    jobs = [(job["id"], name) for job in json.loads((submission / "submission.json").read_text())["jobs"]
            for pack in job["packs"] for name in pack["runs"]]  # fmt: skip
    first = next(id for id, name in jobs if "walker-walk" in name)
    assert jobs[-1][0] == "102" and f"--dependency=afterany:{first}\n" in (tmp_path / "scripts" / "102").read_text()
    (tmp_path / "queue").write_text("".join(f"{id}|PENDING\n" for id, _ in jobs[:-1]))  # the second stage is gone
    assert "submitted 1 jobs: 103\n" in submitting("retry", "t")
    assert f"--dependency=afterany:{first}\n" in (tmp_path / "scripts" / "103").read_text()


def test_a_sweep_whose_runs_are_all_another_ones_is_known(submitting, tmp_path):
    (tmp_path / "one.yaml").write_text(TINY)
    (tmp_path / "other.yaml").write_text(TINY.replace("Tiny", "Other"))
    submitting("submit", "one.yaml")
    (tmp_path / "queue").write_text("101_0|PENDING\n101_1|PENDING\n")
    manifest = tmp_path / "r" / "sweeps" / "other.json"
    assert "nothing to submit" in submitting("submit", "other.yaml", "--dry-run") and not manifest.exists()
    assert "nothing to submit" in submitting("submit", "other.yaml") and manifest.exists()


def test_runs_are_retried_as_whoever_held_them_last_had_them(submitting, tmp_path):
    """Not as another sweep that lists them, too, whose file may be gone: `a` comes before `b` by name."""
    (tmp_path / "b.yaml").write_text(TINY)
    submitting("submit", "b.yaml")
    (tmp_path / "queue").write_text("101_0|PENDING\n101_1|PENDING\n")
    (tmp_path / "a.yaml").write_text(TINY.replace("Tiny", "A"))
    assert "nothing to submit" in submitting("submit", "a.yaml")
    (tmp_path / "a.yaml").unlink()
    (tmp_path / "queue").write_text("")  # Slurm has lost them
    said = submitting("retry")
    assert "b: 2 runs" in said and "submitted 2 jobs: 102" in said


def test_what_has_changed_before_the_answer_is_not_submitted(submitting, tmp_path, monkeypatch, capsys):
    """Somebody else has submitted the same meanwhile; or the agent's file was edited."""
    (tmp_path / "tiny.yaml").write_text(TINY)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.chdir(tmp_path)

    def meanwhile(question, yes):
        submitting("submit", "tiny.yaml")
        (tmp_path / "queue").write_text("101_0|PENDING\n101_1|PENDING\n")
        return True

    monkeypatch.setattr(submit, "agreed", meanwhile)
    assert command_line.main(["submit", "tiny.yaml", "--profile", "p.yaml", "runs=r"]) == 2
    assert "what it lacks has changed meanwhile" in capsys.readouterr().err
    assert len(list((tmp_path / "scripts").iterdir())) == 1
    (tmp_path / "mine.py").write_text(BROKEN_AGENT)
    (tmp_path / "own.yaml").write_text(
        TINY.replace("agent: td3", f"agent: {tmp_path / 'mine.py'}").replace("Tiny", "Own")
    )
    monkeypatch.setattr(submit, "agreed", lambda *_: (tmp_path / "mine.py").write_text(BROKEN_AGENT + "#") > 0)
    assert command_line.main(["submit", "own.yaml", "--profile", "p.yaml", "runs=r"]) == 2
    assert "meanwhile" in capsys.readouterr().err
    assert len(list((tmp_path / "scripts").iterdir())) == 1


def test_a_sweep_is_submitted_in_parts(submitting, tmp_path):
    """Where a cluster bounds how many jobs a user may have in its queue."""
    (tmp_path / "tiny.yaml").write_text(TINY.replace("0..1", "0..4"))
    (tmp_path / "p.yaml").write_text("{gpus: 0, cpus: 1, memory_gb: 1, time: '10:00', grace_seconds: 60, most: 2}")
    assert "the first 2 jobs now" in (said := submitting("submit", "tiny.yaml")) and "submitted 2 jobs: 101" in said
    (tmp_path / "queue").write_text("101_0|RUNNING|None\n101_1|PENDING|Resources\n")
    assert "the first 0 jobs now" in submitting("submit", "tiny.yaml")
    (tmp_path / "queue").write_text("101_0|RUNNING|None\n")
    assert "the first 1 jobs now" in (said := submitting("submit", "tiny.yaml")) and "submitted 1 jobs: 102" in said


def test_jobs_that_cannot_be_written_down_are_taken_back(submitting, tmp_path):
    """A disk that fills between sbatch and the record: nobody could see or cancel such jobs."""
    (tmp_path / "tiny.yaml").write_text(TINY)
    fake_command(tmp_path / "bin", "scancel", f"echo $@ > {tmp_path}/cancelled")
    full = """
import errno, runpy, sys
from slurm.submissions import Submission
def save(self):
    raise OSError(errno.ENOSPC, "No space left on device", str(self.folder / "submission.json"))
Submission.save = save
sys.argv = ["slurm", "submit", "tiny.yaml", "--profile", "p.yaml", "--yes", "runs=r"]
runpy.run_module("slurm", run_name="__main__")
"""
    environment = {**os.environ, "PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", full], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 2 and result.stderr.count("\n") == 1
    assert "No space left on device; jobs 101: taken back" in result.stderr
    assert (tmp_path / "cancelled").read_text() == "101\n"


@pytest.mark.parametrize(
    ("sbatch", "said", "kept"),
    [
        ("echo 'sbatch: error: AssocMaxSubmitJobLimit' >&2; exit 1", "Slurm refuses these jobs: ", False),
        ("echo '101;here'", "perhaps 2 more that no file names (squeue --me; scancel): ", True),
    ],
)
def test_only_what_slurm_refused_is_removed(submitting, tmp_path, sbatch, said, kept):
    """Jobs that it took need their folder's code, whatever its answer looks like."""
    (tmp_path / "tiny.yaml").write_text(TINY)
    fake_command(tmp_path / "bin", "sbatch", f'case "$1" in --test-only) exit 0;; esac\n{sbatch}')
    with pytest.raises(AssertionError, match=re.escape(said)):
        submitting("submit", "tiny.yaml")
    assert [path.is_dir() for path in (tmp_path / "r" / "sweeps" / "tiny").glob("*/code")] == [True] * kept


def test_a_profile_may_have_dots_in_its_name(submitting, tmp_path, monkeypatch):
    """Only an ending of .yaml makes it a file."""
    assert profile.is_path("my.cluster.yaml") and not profile.is_path("h100.80gb")
    monkeypatch.setattr(profile, "FOLDER", tmp_path)
    (tmp_path / "h100.80gb.yaml").write_text("gpus: 0")
    assert profile.load("h100.80gb").gpus == 0


def test_a_job_is_plain_data_without_a_checkpoint_method(sweep, tmp_path):
    """What submitit pickles: nothing of it can lose a `checkpoint`, since the job requeues itself."""
    made = remaining.make_packs(sweep.unique_runs(), 3, {}, tmp_path)
    task = submit._task(made[:1], tmp_path, tmp_path, profile.load("cpu"))
    assert pickle.loads(pickle.dumps((job.work, task))) == (job.work, task)
    assert packs.Pack(content={}, **task["packs"][0]).runs == made[0].runs
    assert not hasattr(job.work, "checkpoint")


def test_a_snapshot_is_the_code_and_its_commit(tmp_path):
    submit.snapshot(tmp_path / "code")
    for file in ("iqrl/__main__.py", "baselines/td3.py", "ablations/quickstart.yaml", "slurm/job.py", "SNAPSHOT.json"):
        assert (tmp_path / "code" / file).is_file()
    assert not list((tmp_path / "code").rglob("__pycache__"))


def test_an_editors_lock_is_no_code(tmp_path, monkeypatch):
    (tmp_path / "iqrl").mkdir()
    (tmp_path / "iqrl" / "x.py").touch()
    (tmp_path / "iqrl" / ".#x.py").symlink_to("me@here.1:2")  # to nowhere
    monkeypatch.setattr(submit, "ROOT", tmp_path)
    monkeypatch.setattr(submit, "PACKAGES", ("iqrl",))
    submit.snapshot(tmp_path / "code")
    assert [path.name for path in (tmp_path / "code" / "iqrl").iterdir()] == ["x.py"]


# --- bad input


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["run", "quickstat"], "did you mean quickstart"),
        (["run", "x" * 300], "no such sweep"),
        (["run", "quickstart", "scale=huge"], "scale=huge"),
        (["run", "quickstart", "jobs=0"], "jobs=0"),
        (["run", "quickstart", "runs=/proc/x"], "runs=/proc/x: cannot be written to"),
        (["run", "quickstart", "seeds=3"], "seeds=3"),
        (["run", "quickstart", "lite"], "'lite'"),
        (["run", "quickstart", "runs=a", "runs=b"], "given twice"),
        (["status", "nothing"], "sweep=nothing"),
        (["logs", "nothing", "runs=bin"], "no such run"),
        (["cancel", "nothing", "runs=bin"], "sweep=nothing"),
        (["why"], "runs=runs: no such folder"),
        (["gc", "runs=a"], "runs=a: no such folder"),
        (["sumbit", "quickstart"], "invalid choice: 'sumbit'"),
        (["run", "quickstart", "RUNS=a", "runs=b"], "given twice"),
        (["submit", "quickstart", "--profile", "none.yaml"], "none.yaml"),
        (["submit", "quickstart", "--profile", "x" * 300], "no such cluster profile"),
        (["submit", "quickstart", "--profile", "mine"], "python -m slurm profile mine writes one"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(words, named, tmp_path):
    fake_command(tmp_path / "bin", "sbatch", "exit 1")
    result = slurm(*words, cwd=tmp_path, path=f"{tmp_path / 'bin'}:/usr/bin:/bin")
    assert result.returncode == 2
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1 and named in result.stderr
    assert [entry.name for entry in tmp_path.iterdir()] == ["bin"]


@pytest.mark.parametrize(("sweep", "source"), [("mine.yaml", "{}/mine.yaml"), ("quickstart", "quickstart")])
def test_a_submission_names_a_sweep_as_it_is_found_from_any_folder(tmp_path, monkeypatch, sweep, source):
    """`retry` takes the file from the submission, wherever it is typed; a link is not followed: it names the sweep."""
    (tmp_path / "other.yaml").write_text(TINY)
    (tmp_path / "mine.yaml").symlink_to("other.yaml")
    given = {}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(local, "run", lambda *_, **words: given.update(words))
    command_line.main(["run", sweep])
    assert given["source"] == source.format(tmp_path)


def test_two_files_do_not_share_a_sweeps_name(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.yaml").write_text(TINY)
    runs = tmp_path / "runs"
    submission = Submission.create(runs, "mine", "local")
    submission.content["source"] = str(tmp_path / "a" / "mine.yaml")
    submission.save()
    refused = slurm("run", "b/mine.yaml", f"runs={runs}", "--dry-run", cwd=tmp_path)
    assert refused.returncode == 2 and refused.stderr == (
        f"error: sweep=b/mine.yaml: mine in {runs} is {tmp_path}/a/mine.yaml; "
        "expected that file, one of another name, or another runs=FOLDER\n"
    )
    for source in ("a/mine.yaml", "./a/../a/mine.yaml"):
        assert slurm("run", source, f"runs={runs}", "--dry-run", cwd=tmp_path).returncode == 0
    (tmp_path / "a" / "mine.yaml").rename(tmp_path / "old.yaml")  # gone from there: it was moved
    assert slurm("run", "b/mine.yaml", f"runs={runs}", "--dry-run", cwd=tmp_path).returncode == 0


def test_without_slurm_there_is_one_line_and_the_local_way(tmp_path):
    (tmp_path / "empty").mkdir()
    for words in (["submit", "quickstart", "--profile", "gpu"], ["profile"]):
        result = slurm(*words, cwd=tmp_path, path=str(tmp_path / "empty"))
        assert result.returncode == 2 and result.stderr.count("\n") == 1
        assert "no Slurm" in result.stderr and "make sweep" in result.stderr


def test_what_would_be_run_here_takes_the_hours_that_show_says(tmp_path, capsys, monkeypatch):
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "results.csv").write_text("agent,decisions_per_second\niqrl,50\ntd3,100\n")
    monkeypatch.chdir(tmp_path)
    sweeps_command_line.main(["show", "quickstart"])
    words = capsys.readouterr().out.splitlines()[-1].removeprefix("time").strip()
    said = slurm("run", "quickstart", "--dry-run", cwd=tmp_path).stdout
    assert words.startswith("about ") and f"time: {words}\n" in said
