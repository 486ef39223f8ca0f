"""One environment: equal to dm_control, a function of its key, and steady in memory."""

import gc
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

from iqrl.environments import control_suite, tasks
from iqrl.environments.environment import Environment
from iqrl.errors import InputError

KEY = (7, 0, 3)
# Every way of stepping: RK4 and Euler, one and many substeps, scalar and vector observations, bounds other
# than 1, models that are changed at reset.
COMPARED = [
    "walker-walk",
    "dog-run",
    "humanoid-walk",
    "humanoid-stand",
    "quadruped-run",
    "quadruped-fetch",
    "finger-turn-hard",
    "fish-swim",
    "cup-catch",
    "cartpole-swingup",
    "cartpole-balance-sparse",
    "acrobot-swingup",
    "hopper-hop",
    "hopper-stand",
    "cheetah-run",
    "reacher-hard",
    "pendulum-swingup",
    "manipulator-bring-ball",
    "stacker-stack-2",
    "swimmer-swimmer6",
    "point-mass-hard",
    "humanoid-cmu-run",
]


def play(environment: Environment, key: tuple[int, ...], decisions: int, seed: int = 11):
    """Observations, rewards and whether the last decision was truncated, under uniform actions."""
    generator = np.random.default_rng(seed)
    observations, rewards, truncated = [environment.reset(key)], [], False
    for _ in range(decisions):
        action = generator.uniform(-1, 1, environment.spec.action_dim).astype(np.float32)
        observation, reward, terminated, truncated = environment.step(action)
        assert observation.dtype == np.float32 and type(reward) is float
        observations.append(observation)
        rewards.append(reward)
        if terminated or truncated:
            break
    return np.array(observations), np.array(rewards), truncated


def plain_episodes(folder: Path, names: list[str], decisions: int):
    """The same episodes by dm_control alone, in a process without this project."""
    output = folder / "plain.npz"
    rows = [tasks.TASKS[name] for name in names]
    command = [sys.executable, str(Path(__file__).with_name("plain_dm_control.py")), str(output)]
    command += [",".join(map(str, KEY)), "11", str(decisions), *(f"{row.domain}/{row.task}" for row in rows)]
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1", "MUJOCO_GL": "disable"})
    loaded = np.load(output)
    return {
        row.name: [loaded[f"{row.domain}/{row.task}/{kind}"] for kind in ("observations", "rewards", "last")]
        for row in rows
    }


def compare_with_plain(folder: Path, names: list[str], decisions: int) -> None:
    for name, (observations, rewards, last) in plain_episodes(folder, names, decisions).items():
        ours = play(Environment(name), KEY, decisions)
        assert len(rewards) > 0
        np.testing.assert_array_equal(ours[0], observations, err_msg=name)
        np.testing.assert_array_equal(ours[1], rewards, err_msg=name)
        assert ours[2] == last, name


def test_whole_episodes_are_bitwise_those_of_dm_control(tmp_path):
    names = [
        "walker-walk",
        "dog-run",
        "humanoid-walk",
        "quadruped-run",
        "finger-spin",
        "fish-swim",
        "cup-catch",
    ]
    compare_with_plain(tmp_path, names, 500)


def test_starts_of_episodes_of_many_tasks_are_bitwise_those_of_dm_control(tmp_path):
    compare_with_plain(tmp_path, COMPARED, 60)


@pytest.mark.parametrize("sigmoid", ["gaussian", "linear", "quadratic", "long_tail"])
def test_fast_tolerance_is_bitwise_the_librarys(sigmoid):
    generator = np.random.default_rng(0)
    library = control_suite._library_tolerance
    special = [0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 1e-300]
    for i in range(20_000):
        x = special[i] if i < len(special) else np.float64(3 * generator.standard_normal())
        lower = generator.choice([-np.inf, generator.normal(), -0.5])
        upper = generator.choice([np.inf, lower + generator.exponential(), lower]) if np.isfinite(lower) else 0.3
        margin = generator.choice([0.0, 1.0, generator.exponential()])
        value = generator.choice([0.1, 0.5, generator.uniform(0.01, 0.99), 0.0])
        if sigmoid not in ("linear", "quadratic"):
            value = value or 0.1
        x = [x, np.array(x), np.array([x]), np.array([[x]]), np.array([x, 0.2])][i % 5]
        with np.errstate(all="ignore"):
            expected = library(x, (lower, upper), margin, sigmoid, value)
            got = control_suite.tolerance(x, (lower, upper), margin, sigmoid, value)
        np.testing.assert_array_equal(got, expected, err_msg=f"{x} {lower} {upper} {margin} {value}")


@pytest.mark.parametrize(
    "name",
    ["quadruped-escape", "fish-swim", "manipulator-insert-peg", "cup-spin", "point-mass-hard", "lqr-lqr-2-1"]
    + ["walker-walk+action_noise=0.3+obs_noise=0.1+sticky=0.25"],
)
def test_an_episode_depends_on_its_key_alone(name):
    long_lived = Environment(name)
    for episode in range(3):
        play(long_lived, (5, 0, episode), 30, seed=episode)
    again = play(long_lived, (5, 0, 99), 60)
    fresh = play(Environment(name), (5, 0, 99), 60)
    np.testing.assert_array_equal(again[0], fresh[0])
    np.testing.assert_array_equal(again[1], fresh[1])
    other = play(long_lived, (5, 0, 98), 60)
    assert not np.array_equal(other[0], fresh[0])


def test_an_episode_is_the_same_in_another_process():
    name = "dog-walk+action_noise=0.2+obs_noise=0.1"
    script = (
        "import hashlib, numpy as np\nfrom iqrl.environments.environment import Environment\n"
        f"environment = Environment({name!r})\n"
        "observations = [environment.reset((3, 1, 20000, 4))]\n"
        "generator = np.random.default_rng(5)\n"
        "for _ in range(40):\n"
        "    action = generator.uniform(-1, 1, 38).astype(np.float32)\n"
        "    observations.append(environment.step(action)[0])\n"
        "print(hashlib.sha256(np.array(observations).tobytes()).hexdigest())\n"
    )
    digests = {
        subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
        for _ in range(2)
    }
    assert len(digests) == 1
    environment = Environment(name)
    for episode in range(2):
        play(environment, (3, 0, episode), 10)
    observations = play(environment, (3, 1, 20000, 4), 40, seed=5)[0]
    assert digests.pop().strip() == hashlib.sha256(observations.tobytes()).hexdigest()


def test_time_limit_is_truncation_after_500_decisions():
    _, rewards, truncated = play(Environment("cartpole-swingup"), KEY, 600)
    assert len(rewards) == 500 and truncated
    environment = Environment("pendulum-swingup", action_repeat=3)
    assert environment.spec.episode_decisions == 334  # the last decision holds its action for one step only
    _, rewards, truncated = play(environment, KEY, 600)
    assert len(rewards) == 334 and truncated


@pytest.mark.parametrize("name, repeat", [("walker-walk", 2), ("cartpole-swingup", 3)])
def test_a_decision_lasts_as_the_simulations_clock_says(name, repeat):
    environment = Environment(name, repeat)
    environment.reset(KEY)
    clock = environment._task._data
    before = clock.time
    environment.step(np.zeros(environment.spec.action_dim, np.float32))
    assert environment.decision_seconds == pytest.approx(clock.time - before)


def test_reward_is_the_sum_over_repeats():
    ones = np.ones(1, np.float32)
    single, double = Environment("cartpole-balance", 1), Environment("cartpole-balance", 2)
    single.reset(KEY), double.reset(KEY)
    for _ in range(20):
        first, second = single.step(ones), single.step(ones)
        observation, reward, _, _ = double.step(ones)
        assert reward == first[1] + second[1]
        np.testing.assert_array_equal(observation, second[0])


def test_stepping_needs_a_reset():
    environment = Environment("pendulum-swingup", action_repeat=100)
    with pytest.raises(RuntimeError, match="reset"):
        environment.step(np.zeros(1, np.float32))
    play(environment, KEY, 10)
    with pytest.raises(RuntimeError, match="reset"):
        environment.step(np.zeros(1, np.float32))
    environment.reset(KEY)
    with pytest.raises(ValueError, match="shape"):
        environment.step(np.zeros(2, np.float32))


def test_diverging_physics_raises_and_the_next_episode_is_sound():
    environment = Environment("walker-walk")
    environment.reset(KEY)
    with pytest.raises(Exception, match="physics state is invalid: mjWARN_BADCTRL"):
        environment.step(np.full(6, np.nan, np.float32))
    with pytest.raises(RuntimeError):
        environment.step(np.zeros(6, np.float32))
    np.testing.assert_array_equal(play(environment, KEY, 50)[0], play(Environment("walker-walk"), KEY, 50)[0])


def test_keys_out_of_range_are_refused():
    environment = Environment("pendulum-swingup")
    for key in [(2**32, 0, 1), (-1, 0, 1)]:
        with pytest.raises(ValueError, match="episode key"):
            environment.reset(key)


def test_actions_reach_the_native_bounds():
    environment = Environment("quadruped-walk")
    environment.reset(KEY)
    simulation = environment._task
    for value, bounds in ((1.0, simulation.action_high), (-1.0, simulation.action_low)):
        environment.step(np.full(12, value, np.float32))
        np.testing.assert_allclose(simulation._control, bounds, rtol=1e-15)
    assert simulation.action_high.max() == 1.1 and simulation.action_low.min() == -1.0


@pytest.mark.parametrize("repeat", [0, -2, 1.5, 10**6])
def test_bad_action_repeat(repeat):
    with pytest.raises(InputError, match="action_repeat"):
        Environment("walker-walk", repeat)


def test_no_renderer_is_loaded():
    script = (
        "import sys\nfrom iqrl.environments.environment import Environment\n"
        "Environment('quadruped-escape').reset((0,))\n"
        "loaded = [m for m in sys.modules if m.split('.')[0] in ('OpenGL', 'glfw', 'torch')]\n"
        "assert not loaded, loaded\n"
    )
    environment = {key: value for key, value in os.environ.items() if key not in ("MUJOCO_GL", "DISPLAY")}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment)


def test_render_draws_or_says_why_not():
    environment = Environment("walker-walk")
    environment.reset(KEY)
    with pytest.raises(InputError, match="picture of 100000x64"):
        environment.render(100_000, 64)
    try:
        before = environment.render(48, 64)
    except InputError as error:
        assert "libegl1" in str(error)
        pytest.skip("no renderer on this machine")
    assert before.shape == (48, 64, 3) and before.dtype == np.uint8 and before.std() > 1
    for _ in range(20):
        environment.step(np.ones(6, np.float32))
    assert not np.array_equal(before, environment.render(48, 64))
    environment.close()


@pytest.mark.slow
def test_memory_does_not_grow_over_200_episodes():
    environment = Environment("walker-walk+obs_noise=0.1", action_repeat=20)  # 50 decisions an episode
    process = psutil.Process()
    for episode in range(20):
        play(environment, (1, 0, episode), 50)
    gc.collect()
    before = process.memory_info().rss
    for episode in range(200):
        play(environment, (1, 0, episode), 50)
    gc.collect()
    assert process.memory_info().rss - before < 4 * 2**20


def test_gymnasium_keeps_termination_and_truncation_apart():
    pytest.importorskip("gymnasium")
    environment = Environment("gym:CartPole-v1", action_repeat=1)
    spec = environment.spec
    assert (spec.observation_dim, spec.action_dim, spec.discrete, spec.episode_decisions) == (4, 2, True, 500)
    push_right = np.array([-1.0, 1.0], np.float32)
    environment.reset(KEY)
    for _ in range(500):
        observation, reward, terminated, truncated = environment.step(push_right)
        if terminated or truncated:
            break
    assert terminated and not truncated and observation.dtype == np.float32 and reward == 1.0
    pendulum = Environment("gym:Pendulum-v1", action_repeat=2)
    assert pendulum.spec.episode_decisions == 100 and not pendulum.spec.discrete
    assert pendulum.decision_seconds == pytest.approx(2 / 30) and environment.decision_seconds == pytest.approx(1 / 50)
    _, rewards, truncated = play(pendulum, KEY, 200)
    assert truncated and len(rewards) == 100


def test_gymnasium_episodes_depend_on_their_key_alone():
    pytest.importorskip("gymnasium")
    environment = Environment("gym:CartPole-v1+sticky=0.3", action_repeat=1)
    first = play(environment, (1, 2), 100)
    play(environment, (1, 3), 100)
    again = play(environment, (1, 2), 100)
    np.testing.assert_array_equal(first[0], again[0])


@pytest.mark.parametrize(
    "name, message",
    [
        ("gym:NoSuchTask-v0", "gymnasium cannot make it"),
        ("gym:CartPole+sticky=0.1", r"expected its version too: gym:CartPole-v1\+sticky=0.1"),
        ("gym:no_such_module:Maze-v0", "importing no_such_module: ModuleNotFoundError"),
        ("gym:os:Maze-v0", "gymnasium cannot make it"),
        ("gym:CartPole-v1+action_noise=0.1", "action_noise needs continuous actions"),
    ],
)
def test_gymnasium_tasks_that_cannot_be(name, message):
    pytest.importorskip("gymnasium")
    with pytest.raises(InputError, match=message) as caught:
        Environment(name)
    assert "\n" not in str(caught.value)


def test_a_gymnasium_task_whose_own_code_fails_is_one_line():
    gymnasium = pytest.importorskip("gymnasium")

    def broken(**options):
        raise ValueError("no\nasset")

    gymnasium.register("broken-v0", broken)
    with pytest.raises(InputError, match="gymnasium cannot make it: ValueError: no asset"):
        Environment("gym:broken-v0")


def test_without_gymnasium_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(InputError, match="pip install gymnasium"):
        Environment("gym:CartPole-v1")
