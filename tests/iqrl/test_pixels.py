"""Tasks observed as images: names, pictures against dm_control's, stacks, pools, and what is said without OpenGL."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from iqrl.agent import Agent, Progress, Slices
from iqrl.agents import agent_class
from iqrl.config import resolve
from iqrl.environments import tasks
from iqrl.environments.environment import Environment, task_spec
from iqrl.environments.environment_pool import EnvironmentPool
from iqrl.environments.pixels import Pixels
from iqrl.errors import InputError
from iqrl.training.engine import Engine
from iqrl.training.replay import Replay

KEY = (3, 0, 5)
FAST = "cartpole-balance@pixels+render=fast"


@pytest.fixture(scope="module")
def egl():
    try:
        Environment(FAST)
    except InputError as error:
        assert "libegl1" in str(error)
        pytest.skip("no renderer on this machine")


def played(environment: Environment, decisions: int, seed: int = 11, key: tuple[int, ...] = KEY) -> np.ndarray:
    """Observations of an episode's start and of uniform actions, (decisions + 1, ...)."""
    generator = np.random.default_rng(seed)
    observations = [environment.reset(key)]
    for _ in range(decisions):
        action = generator.uniform(-1, 1, environment.spec.action_dim).astype(np.float32)
        observations.append(environment.step(action)[0])
    return np.array(observations)


# --- names


def test_names():
    assert tasks.parse("walker-walk@pixels").pixels == Pixels()
    assert tasks.parse("walker-walk").pixels is None
    ref = tasks.parse("cartpole-swingup@pixels+sticky=.250+stack=4+repeat=8+render=fast+size=64+camera=1")
    assert ref.pixels == Pixels(camera=1, render="fast", repeat=8, size=64, stack=4)
    assert ref.name == "cartpole-swingup@pixels+camera=1+render=fast+repeat=8+size=64+stack=4+sticky=0.25"
    assert tasks.parse(ref.name) == ref
    assert (ref.group, ref.action_repeat, tasks.parse("walker-walk").action_repeat) == ("easy", 8, 2)
    quadruped = tasks.parse("quadruped-run@pixels+camera=2+render=exact+repeat=2+size=84+stack=3")
    assert quadruped.name == "quadruped-run@pixels" and quadruped.pixels == Pixels(camera=2)
    assert tasks.parse("quadruped-run@pixels+camera=0").name == "quadruped-run@pixels+camera=0"
    ref = tasks.parse("gym:CarRacing-v3@pixels+stack=4")
    assert ref.name == "gym:CarRacing-v3@pixels+stack=4" and ref.action_repeat == 1


@pytest.mark.parametrize(
    "name, message",
    [
        ("walker-walk@", "@: expected @pixels"),
        ("walker-walk@pixel", "@pixel: expected @pixels"),
        ("walker-walk@pixels@pixels", "@pixels@pixels: expected @pixels"),
        ("walker-walk+sticky=0.1@pixels", "sticky=0.1@pixels: expected a number"),
        ("walker-wlak@pixels", "no such task; did you mean walker-walk?"),
        ("walker-walk+repeat=8", "repeat is of tasks seen as images; expected @pixels before it"),
        ("walker-walk@pixels+repeat=0", "repeat=0: expected a whole number from 1 to 100"),
        ("walker-walk@pixels+repeat=2.5", "repeat=2.5: expected a whole number"),
        ("walker-walk@pixels+size=8", "size=8: expected a whole number from 16 to 480"),
        ("walker-walk@pixels+stack=17", "stack=17: expected a whole number from 1 to 16"),
        ("walker-walk@pixels+camera=-1", "camera=-1: expected a whole number from 0"),
        ("walker-walk@pixels+render=quick", "render=quick: expected one of exact, fast"),
        ("walker-walk@pixels+stack=2+stack=2", "stack is given twice"),
        ("walker-walk@pixels+blur=1", "no modifier 'blur'; expected one of"),
        ("walker-walk@pixels+obs_noise=0.1", "obs_noise is in the units of states"),
        ("mw-reach@pixels", "MetaWorld's tasks are observed as states only"),
        ("gym:CarRacing-v3@pixels+size=64", "size=64: a Gymnasium task draws its own pictures"),
    ],
)
def test_bad_names(name, message):
    with pytest.raises(InputError) as caught:
        tasks.parse(name)
    assert message in str(caught.value) and str(caught.value).startswith(f"task={name}: ")
    assert "\n" not in str(caught.value)


def test_an_agent_of_states_refuses_images():
    with pytest.raises(InputError, match="task=walker-walk@pixels: agent td3 learns from states"):
        resolve([("command line", {"agent": {"name": "td3"}, "task": "walker-walk@pixels"})])


def test_action_repeat_of_images_stands_in_one_place(monkeypatch):
    monkeypatch.setattr(agent_class("td3")[0], "sees_images", True)

    def configured(task: str, **train: int):
        return resolve([("command line", {"agent": {"name": "td3"}, "task": task, "train": train})])[0][0]

    run = configured("cartpole-swingup@pixels+repeat=8")
    assert run.train.action_repeat == 8 and configured("cartpole-swingup@pixels").train.action_repeat == 2
    assert configured("cartpole-swingup@pixels+repeat=8", action_repeat=8).identity == run.identity
    with pytest.raises(InputError, match=r"in the task's name: cartpole-swingup@pixels\+repeat=4"):
        configured("cartpole-swingup@pixels", action_repeat=4)


# --- pictures


def test_pictures_are_bitwise_those_of_dm_control(tmp_path, egl):
    """Meshes, skins, terrain, several cameras and repeats; all drawn by one process, one after the other."""
    compared = {
        "walker-walk@pixels": "walker/walk/0/2",
        "cartpole-swingup@pixels+repeat=8": "cartpole/swingup/0/8",
        "cheetah-run@pixels+camera=1+repeat=4": "cheetah/run/1/4",
        "quadruped-escape@pixels": "quadruped/escape/2/2",
        "dog-run@pixels": "dog/run/0/2",
        "fish-swim@pixels+camera=3": "fish/swim/3/2",
    }
    output, decisions = tmp_path / "plain.npz", 4
    command = [sys.executable, str(Path(__file__).with_name("plain_pixels.py")), str(output)]
    command += [",".join(map(str, KEY)), "11", str(decisions), *compared.values()]
    subprocess.run(command, check=True, env=os.environ | {"MUJOCO_GL": "egl"})
    pictures = np.load(output)
    environments = {name: Environment(name) for name in compared}
    for name, environment in environments.items():
        ours = played(environment, decisions)
        assert ours.shape == (decisions + 1, 9, 84, 84) and ours.dtype == np.uint8
        expected = pictures[compared[name]].transpose(0, 3, 1, 2)
        np.testing.assert_array_equal(ours[:, -3:], expected, err_msg=name)
        assert expected.std() > 1 and (expected[0] != expected[-1]).any(), name


def test_environments_of_one_process_do_not_disturb_each_other(egl):
    names = ["quadruped-escape@pixels+render=fast", FAST, "cartpole-balance@pixels+render=fast+size=48"]
    alone = [played(Environment(name), 3, key=(1, i)) for i, name in enumerate(names * 2)]
    environments = [Environment(name) for name in names * 2]
    together = [[environment.reset((1, i))] for i, environment in enumerate(environments)]
    generators = [np.random.default_rng(11) for _ in environments]
    for _ in range(3):
        for environment, generator, observations in zip(environments, generators, together):
            action = generator.uniform(-1, 1, environment.spec.action_dim).astype(np.float32)
            observations.append(environment.step(action)[0])
    for observations, expected in zip(together, alone):
        np.testing.assert_array_equal(observations, expected)
    assert (alone[0][0] != alone[3][0]).any()  # another terrain


def test_fast_pictures_are_close_to_exact_ones(egl):
    for task, most in (("cartpole-swingup", 3.0), ("walker-walk", 10.0)):
        exact, fast = (played(Environment(f"{task}@pixels+render={how}"), 5).astype(int) for how in ("exact", "fast"))
        difference = np.abs(exact - fast).mean()
        assert 0 < difference < most, (task, difference)


def test_stacks_and_episode_starts_against_a_plain_loop(egl):
    """Each observation is the newest frames, oldest first; rewards and ends are those of the task seen by its state."""
    name = "cartpole-balance@pixels+render=fast+repeat=4+size=32+stack=4"
    environment, plain = Environment(name), Environment("cartpole-balance@pixels+render=fast+repeat=4+size=32+stack=1")
    states = Environment("cartpole-balance", action_repeat=4)
    assert environment.spec.observation_shape == (12, 32, 32) and environment.spec.observation_dim == 12 * 32 * 32
    assert environment.spec.episode_decisions == 250
    for episode in range(2):
        key, generator = (1, 0, episode), np.random.default_rng(episode)
        observation, frame = environment.reset(key), plain.reset(key)
        states.reset(key)
        frames, kept = [frame] * 4, []
        for _ in range(260):
            np.testing.assert_array_equal(observation, np.concatenate(frames[-4:]))
            kept.append((observation, observation.copy()))
            action = generator.uniform(-1, 1, 1).astype(np.float32)
            observation, reward, terminated, truncated = environment.step(action)
            frames.append(plain.step(action)[0])
            _, *expected = states.step(action)
            assert [reward, terminated, truncated] == expected
            if truncated:
                break
        assert len(kept) == 250 and truncated and not terminated
        for handed_out, copy in kept:  # nothing handed out changes later
            np.testing.assert_array_equal(handed_out, copy)


def test_a_film_shows_what_the_agent_sees(egl):
    environment = Environment("cartpole-balance@pixels+render=fast+size=48")
    newest = environment.reset(KEY)[-3:].transpose(1, 2, 0)
    film = environment.render(96, 144)
    assert film.shape == (96, 144, 3) and film.dtype == np.uint8
    np.testing.assert_array_equal(film, newest.repeat(2, 0).repeat(3, 1))


@pytest.mark.parametrize(
    "name, message",
    [
        ("cartpole-balance@pixels+camera=7", "camera=7: expected one of the 2 of this task"),
    ],
)
def test_tasks_that_cannot_be_seen(name, message, egl):
    with pytest.raises(InputError, match=message) as caught:
        Environment(name)
    assert str(caught.value).startswith(f"task={name}: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize("broken", [{"MUJOCO_EGL_DEVICE_ID": "99"}, {"PYOPENGL_PLATFORM": "glx"}])
def test_without_opengl_one_line_says_what_to_install(broken):
    """Also where MUJOCO_GL asks for EGL, which dm_control alone would load, and fail, as it is imported."""
    script = (
        "from iqrl.environments.environment import Environment\nfrom iqrl.errors import InputError\n"
        f"try: Environment({FAST!r})\nexcept InputError as error: print(error)\n"
    )
    environment = os.environ | {"MUJOCO_GL": "egl"} | broken
    run = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("\n") == 1 and run.stdout.startswith(f"task={FAST}: rendering: no working OpenGL (")
    assert "install libegl1 and libgl1-mesa-dri" in run.stdout


# --- through pools to an agent


def test_a_pool_with_workers_is_single_environments(egl):
    name = "cartpole-swingup@pixels+render=fast+sticky=0.2"
    generator = np.random.default_rng(2)
    actions = generator.uniform(-1, 1, (6, 3, 1)).astype(np.float32)
    singles = [Environment(name) for _ in range(3)]
    expected = [np.stack([e.reset((1, 0, i)) for i, e in enumerate(singles)])]
    for row in actions:
        expected.append(np.stack([e.step(action)[0] for e, action in zip(singles, row)]))
    for workers in (0, 2):
        with EnvironmentPool(name, 3, workers=workers) as pool:
            observations = [pool.reset([(1, 0, i) for i in range(3)])]
            for t, row in enumerate(actions):
                if t == 4 and workers:  # another takes its place, and draws the same
                    pool._crew[0]._process.kill()
                observations.append(pool.step(row)[0])
        assert observations[0].dtype == np.uint8 and observations[0].shape == (3, 9, 84, 84)
        np.testing.assert_array_equal(observations, expected)


def test_an_environment_that_fails_is_black_and_rewarded_nan(egl):
    with EnvironmentPool(FAST, 2, workers=0) as pool:
        before = pool.reset([(1,), (2,)])
        after, rewards, _, _ = pool.step(np.array([[np.nan], [0.0]], np.float32))
    assert list(pool.errors) == [0] and np.isnan(rewards[0]) and rewards[1] > 0
    assert before[0].any() and not after[0].any() and after[1].any()


class _Looks(Agent):
    """Acts by what it sees: the red of the newest frame."""

    slices = Slices(horizon=1, batch_size=1)

    def initialise(self, generator):
        return {"nothing": torch.zeros(1)}

    def act(self, state, carry, observation, noise, clock):
        assert observation.dtype == torch.uint8
        return observation[:, -3].float().mean((1, 2))[:, None] / 255 + state["nothing"], carry


@pytest.mark.parametrize("packed", [False, True])
def test_agents_are_given_bytes(packed, egl):
    spec = task_spec("cartpole-balance@pixels+render=fast+size=16")
    engine = Engine(_Looks(None, spec), [0, 1], Replay(spec, 2, _Looks.slices, 10), packed=packed)
    observation = np.random.default_rng(0).integers(0, 256, (2, 3, *spec.observation_shape), np.uint8)
    action, _ = engine.act([0, 1], observation, {}, [{}, {}], [Progress(), Progress()])
    np.testing.assert_allclose(action[..., 0], observation[:, :, -3].mean((2, 3)) / 255, rtol=1e-6)


# --- Gymnasium


def _gymnasium_task(space, draw):
    gymnasium = pytest.importorskip("gymnasium")

    class Task(gymnasium.Env):
        observation_space, action_space = space, gymnasium.spaces.Box(-1, 1, (1,), np.float32)

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.start, self.steps = int(self.np_random.integers(100)), 0
            return draw(self.start), {}

        def step(self, action):
            self.steps += 1
            return draw(self.start + self.steps), 1.0, self.steps == 8, False, {}

    return Task


@pytest.mark.parametrize("shape", [(6, 5, 3), (6, 5)])
def test_gymnasium_images_go_channels_first(shape):
    gymnasium = pytest.importorskip("gymnasium")

    def draw(t):
        return (np.arange(np.prod(shape)).reshape(shape) + t).astype(np.uint8)

    space = gymnasium.spaces.Box(0, 255, shape, np.uint8)
    name = f"draws-{len(shape)}-v0"
    gymnasium.register(name, _gymnasium_task(space, draw), max_episode_steps=20)
    environment = Environment(f"gym:{name}@pixels+stack=2+repeat=2")
    channels = shape[2] if len(shape) == 3 else 1
    assert environment.spec.frame_shape == (channels, 6, 5) and environment.spec.action_repeat == 2
    observations = played(environment, 4)
    assert observations.dtype == np.uint8 and observations.shape == (5, 2 * channels, 6, 5)
    frames = observations.reshape(5, 2, channels, 6, 5).transpose(0, 1, 3, 4, 2)  # channels last, as drawn
    start = int(frames[0, 0].flat[0])
    for t in range(5):
        for place, seen in enumerate((max(0, t - 1), t)):
            np.testing.assert_array_equal(frames[t, place].reshape(shape), draw(start + 2 * seen))
    assert environment.render(12, 10).shape == (12, 10, 3)
    with pytest.raises(InputError, match=f"expected a vector; as images it is gym:{name}@pixels"):
        Environment(f"gym:{name}")


def test_gymnasium_tasks_without_images():
    gymnasium = pytest.importorskip("gymnasium")
    with pytest.raises(InputError, match=r"task=gym:CartPole-v1@pixels: observes Box.*; expected uint8 \(height"):
        Environment("gym:CartPole-v1@pixels")
    space = gymnasium.spaces.Box(0, 255, (3, 6, 5), np.uint8)  # channels first: not to be read as 5 channels
    gymnasium.register("first-v0", _gymnasium_task(space, lambda t: np.zeros((3, 6, 5), np.uint8)), max_episode_steps=9)
    with pytest.raises(InputError, match=r"expected uint8 \(height, width, channels\)"):
        Environment("gym:first-v0@pixels")
