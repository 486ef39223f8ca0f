"""Task names, the table, modifiers and their statistics."""

import subprocess
import sys

import numpy as np
import pytest

from iqrl.environments import tasks
from iqrl.environments.environment import Environment, task_spec
from iqrl.errors import InputError

# Task: observation entries, action entries, group; measured widths of protocol.md section 5.
PROTOCOL = {
    "acrobot-swingup": (6, 1, "medium"),
    "cartpole-balance": (5, 1, "easy"),
    "cartpole-balance-sparse": (5, 1, "easy"),
    "cartpole-swingup": (5, 1, "easy"),
    "cartpole-swingup-sparse": (5, 1, "hard"),
    "cheetah-run": (17, 6, "medium"),
    "cup-catch": (8, 2, "easy"),
    "cup-spin": (8, 2, "easy"),
    "dog-run": (223, 38, "hard"),
    "dog-stand": (223, 38, "hard"),
    "dog-trot": (223, 38, "hard"),
    "dog-walk": (223, 38, "hard"),
    "finger-spin": (9, 2, "easy"),
    "finger-turn-easy": (12, 2, "medium"),
    "finger-turn-hard": (12, 2, "medium"),
    "fish-swim": (24, 5, "medium"),
    "fish-upright": (21, 5, "medium"),
    "hopper-hop": (15, 4, "medium"),
    "hopper-stand": (15, 4, "easy"),
    "humanoid-run": (67, 21, "hard"),
    "humanoid-stand": (67, 21, "hard"),
    "humanoid-walk": (67, 21, "hard"),
    "pendulum-swingup": (3, 1, "easy"),
    "pendulum-spin": (3, 1, "easy"),
    "quadruped-run": (78, 12, "medium"),
    "quadruped-walk": (78, 12, "medium"),
    "reacher-easy": (6, 2, "medium"),
    "reacher-hard": (6, 2, "medium"),
    "walker-run": (24, 6, "medium"),
    "walker-stand": (24, 6, "easy"),
    "walker-walk": (24, 6, "easy"),
}


@pytest.mark.parametrize("name", PROTOCOL)
def test_sizes_and_groups_of_the_protocol(name):
    spec = task_spec(name)
    assert (spec.observation_dim, spec.action_dim, spec.group) == PROTOCOL[name]
    assert (spec.action_repeat, spec.episode_decisions, spec.discrete) == (2, 500, False)


def test_table_is_the_whole_suite_and_the_custom_tasks():
    from dm_control import suite

    from iqrl.environments import custom_tasks

    rows = [row for row in tasks.TASKS.values() if row.domain not in ("mw", "myo")]
    assert {(row.domain, row.task) for row in rows if not row.custom} == set(suite.ALL_TASKS)
    assert {(row.domain, row.task) for row in rows if row.custom} == set(custom_tasks._BUILDERS)
    assert tasks.names() == sorted(tasks.TASKS) and len(tasks.names()) == 51 + 9 + 50 + 10


@pytest.mark.parametrize("name", [name for name in tasks.names() if not name.startswith(("mw-", "myo-"))])
def test_every_task_loads_and_steps(name):
    environment = Environment(name)
    assert environment.spec.name == name
    observation = environment.reset((1, 0, 0))
    generator = np.random.default_rng(0)
    for _ in range(10):
        action = generator.uniform(-1, 1, environment.spec.action_dim).astype(np.float32)
        observation, reward, terminated, truncated = environment.step(action)
        assert observation.shape == (environment.spec.observation_dim,) and np.isfinite(observation).all()
        assert not terminated and not truncated and np.isfinite(reward)
        if not name.startswith("lqr"):  # its reward is a negative cost
            assert 0 <= reward <= 2


def test_names_are_checked_without_a_simulator():
    script = (
        "import sys\nfrom iqrl.environments import tasks\ntasks.parse('walker-walk+sticky=0.25')\n"
        "assert not {'dm_control', 'mujoco', 'torch', 'numpy'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize(
    "name, suggestion",
    [
        ("walker-wlak", "walker-walk"),
        ("walker_walk", "walker-walk"),
        ("ball_in_cup-catch", "cup-catch"),
        ("Dog-Run", "dog-run"),
        ("cartpole", None),
        ("", None),
        ("xyzzy", None),
    ],
)
def test_unknown_names(name, suggestion):
    with pytest.raises(InputError) as caught:
        tasks.parse(name)
    message = str(caught.value)
    assert message.startswith(f"task={name}: no such task") and "\n" not in message
    assert message.endswith("(python -m iqrl tasks lists them)")
    if suggestion:
        assert f"; did you mean {suggestion}? (" in message


def test_canonical_names():
    ref = tasks.parse("walker-walk+sticky=.250+obs_noise=1e-1+action_noise=1.0")
    assert ref.name == "walker-walk+action_noise=1+obs_noise=0.1+sticky=0.25"
    assert ref.modifiers == tasks.Modifiers(action_noise=1.0, obs_noise=0.1, sticky=0.25)
    assert tasks.parse(ref.name) == ref
    assert (ref.domain, ref.task, ref.group) == ("walker", "walk", "easy")
    assert tasks.parse("walker-walk+sticky=0").name == "walker-walk"
    for name in ("gym:CartPole-v1+sticky=0.5", "gym:my.tasks:Maze-v0+sticky=0.5", "gym:arcade/Maze-v0+sticky=0.5"):
        assert tasks.parse(name).name == name
    assert task_spec("walker-walk+sticky=.1").name == "walker-walk+sticky=0.1"


@pytest.mark.parametrize(
    "words, message",
    [
        ("+", "no modifier ''"),
        ("+sticky", "sticky=: expected a number from 0 to 0.99"),
        ("+sticky=1", "sticky=1: expected a number from 0 to 0.99"),
        ("+sticky=-0.1", "sticky=-0.1: expected a number"),
        ("+sticky=nan", "sticky=nan: expected a number"),
        ("+action_noise=inf", "action_noise=inf: expected a number from 0 to 1"),
        ("+action_noise=1e999", "action_noise=1e999: expected a number"),
        ("+obs_noise=0_1", "obs_noise=0_1: expected a number from 0 to 10"),
        ("+obs_noise=١", "expected a number"),
        ("+obs_noise=0.1=2", "expected a number"),
        ("+noise=0.1", "no modifier 'noise'; expected one of action_noise, obs_noise, sticky"),
        ("+sticky=0.1+sticky=0.1", "modifier sticky is given twice"),
    ],
)
def test_bad_modifiers(words, message):
    with pytest.raises(InputError) as caught:
        tasks.parse("walker-walk" + words)
    assert message in str(caught.value) and str(caught.value).startswith(f"task=walker-walk{words}: ")


@pytest.mark.parametrize(
    "name", ["gym:", "gym:a b", "gym:../x", "gym:a/b/c", "gym:a:b:X-v0", "gym:1a:X", "gym::X-v0", "gym:a.:X", None, 3]
)
def test_names_that_are_no_names(name):
    with pytest.raises(InputError, match="task="):
        tasks.parse(name)


class _Recorder:
    """Stands in for a simulator: keeps the commands, observes zeros, never ends."""

    def __init__(self, dimensions: int):
        self.dimensions = dimensions
        self.commands: list[np.ndarray] = []

    def step(self, action, repeat):
        self.commands.append(np.array(action))
        return np.zeros(self.dimensions, np.float32), 0.0, False, False


def executed(name: str, actions: np.ndarray, key=(4, 0, 1)):
    """Commands that reach the simulator and observations that come back, (T, A) and (T, O)."""
    environment = Environment(name)
    environment.reset(key)
    recorder = environment._task = _Recorder(environment.spec.observation_dim)
    observations = [environment.step(action)[0] for action in actions]
    return np.array(recorder.commands), np.array(observations)


STEPS = 10_000
DISTINCT = np.random.default_rng(0).uniform(-1, 1, (STEPS, 6)).astype(np.float32)


def test_sticky_repeats_the_command_before_with_its_probability():
    commands, _ = executed("walker-walk+sticky=0.25", DISTINCT)
    fresh = (commands == DISTINCT).all(axis=1)
    assert fresh[0]
    repeated = (commands[1:] == commands[:-1]).all(axis=1)
    assert (fresh[1:] ^ repeated).all()  # one or the other, always
    assert abs(repeated.mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / STEPS)
    # Independent from decision to decision: two in a row as often as the product says.
    assert abs((repeated[1:] & repeated[:-1]).mean() - 0.0625) < 0.011


def test_action_noise_is_normal_and_clipped():
    commands, observations = executed("walker-walk+action_noise=0.2", np.zeros((STEPS, 6), np.float32))
    noise = commands.ravel()
    assert abs(noise.mean()) < 4 * 0.2 / np.sqrt(noise.size)
    assert abs(noise.std() / 0.2 - 1) < 4 / np.sqrt(2 * noise.size)
    assert abs((np.abs(noise) < 0.2).mean() - 0.6827) < 4 * np.sqrt(0.6827 * 0.3173 / noise.size)
    assert np.abs(np.corrcoef(commands.T) - np.eye(6)).max() < 0.05
    assert abs(np.corrcoef(noise[:-6], noise[6:])[0, 1]) < 0.02  # of one entry, from decision to decision
    assert not observations.any()
    commands, _ = executed("walker-walk+action_noise=0.2", np.ones((STEPS, 6), np.float32))
    assert commands.max() == 1.0 and abs((commands == 1.0).mean() - 0.5) < 0.01


def test_observation_noise_is_normal_and_also_in_the_first_observation():
    commands, observations = executed("walker-walk+obs_noise=0.1", DISTINCT)
    np.testing.assert_array_equal(commands, DISTINCT)
    noise = observations.ravel().astype(np.float64)
    assert observations.dtype == np.float32
    assert abs(noise.mean()) < 4 * 0.1 / np.sqrt(noise.size)
    assert abs(noise.std() / 0.1 - 1) < 4 / np.sqrt(2 * noise.size)
    noisy, plain = Environment("walker-walk+obs_noise=0.1"), Environment("walker-walk")
    firsts = [noisy.reset((1, k)) - plain.reset((1, k)) for k in range(200)]
    assert abs(np.std(firsts) / 0.1 - 1) < 0.05
    # The simulation does not see it.
    for action in DISTINCT[:20]:
        assert noisy.step(action)[1] == plain.step(action)[1]


def test_sticky_repeats_the_command_without_its_noise():
    commands, _ = executed("walker-walk+sticky=0.5+action_noise=0.05", 0.5 * DISTINCT)
    alone, _ = executed("walker-walk+sticky=0.5", 0.5 * DISTINCT)
    noise = commands - alone
    assert abs(noise.std() / 0.05 - 1) < 0.02  # not adding up over repeats


def test_one_modifier_does_not_change_the_draws_of_another():
    name = "walker-walk+obs_noise=0.1"
    _, alone = executed(name, DISTINCT[:50])
    _, together = executed(name + "+action_noise=0.1+sticky=0.1", DISTINCT[:50])
    np.testing.assert_array_equal(alone, together)
    _, other_episode = executed(name, DISTINCT[:50], key=(4, 0, 2))
    assert not np.array_equal(alone, other_episode)


def test_custom_rewards_by_hand():
    """Rewards of protocol.md section 6, computed from the physics state as it stands."""
    environment = Environment("pendulum-spin")
    environment.reset((1,))
    physics = environment._task._physics
    for speed, reward in ((9.0, 1.0), (-12.0, 1.0), (4.5, 0.5), (6.75, 0.75), (0.0, 0.0)):
        physics.data.qvel[0] = speed
        assert environment._task._task.get_reward(physics) == pytest.approx(reward)

    walker, backwards = Environment("walker-walk"), Environment("walker-walk-backwards")
    for one in (walker, backwards):
        one.reset((2,))
    simulation, mirrored = walker._task, backwards._task
    for velocity in (-3.0, -1.0, -0.75, -0.5, 0.0, 1.0):
        simulation._physics.data.sensordata[:] = -velocity
        mirrored._physics.data.sensordata[:] = velocity
        assert mirrored._task.get_reward(mirrored._physics) == pytest.approx(
            simulation._task.get_reward(simulation._physics)
        )

    cheetah = Environment("cheetah-run-backwards")
    cheetah.reset((3,))
    physics = cheetah._task._physics
    for speed, reward in ((-8.0, 1.0), (-9.0, 1.0), (-4.0, 0.5), (0.0, 0.0), (8.0, 0.0)):
        physics.data.sensordata[:] = speed
        assert cheetah._task._task.get_reward(physics) == pytest.approx(reward)

    front = Environment("cheetah-run-front")
    front.reset((3,))
    physics = front._task._physics
    physics.data.sensordata[:] = 3.0
    physics.named.data.xpos["bfoot", "z"] = 1.3
    physics.named.data.xpos["torso", "z"] = 0.6  # one margin below: 0.1
    expected = (3 * 1 + 2 * 0.1) / 5 * (5 * 0.5 + 1) / 6
    assert front._task._task.get_reward(physics) == pytest.approx(expected)

    jump = Environment("cheetah-jump")
    jump.reset((3,))
    physics = jump._task._physics
    physics.data.sensordata[:] = 0.75
    physics.named.data.xpos["torso", "z"] = 1.4
    physics.named.data.xpos["bfoot", "z"] = 1.0
    physics.named.data.xpos["ffoot", "z"] = -0.2  # mean with the torso: 0.6, one margin below
    assert jump._task._task.get_reward(physics) == pytest.approx(((5 + 0.5) / 6 + (0.5 + 0.5) / 6) / 2)

    hopper = Environment("hopper-hop-backwards")
    hopper.reset((3,))
    physics = hopper._task._physics
    physics.named.data.xipos["torso", "z"], physics.named.data.xipos["foot", "z"] = 1.0, 0.1
    for speed, reward in ((-1.0, 1.0), (-0.5, 0.5), (0.0, 0.0), (2.0, 0.0)):
        physics.data.sensordata[:] = speed
        assert hopper._task._task.get_reward(physics) == pytest.approx(reward)


def test_cup_spin_starts_in_the_cup_nine_times_in_ten():
    environment = Environment("cup-spin")
    physics = environment._task._physics
    inside = 0
    for episode in range(300):
        environment.reset((9, 0, episode))
        assert physics.data.ncon == 0
        inside += physics.in_target()
        assert environment._task._task.get_reward(physics) == 0 or not physics.in_target()
    assert 0.85 < inside / 300 < 0.97
    # Out of the cup, far and fast.
    target = physics.named.data.site_xpos["target", ["x", "z"]]
    physics.named.data.xpos["ball", ["x", "z"]] = target + [0.375, 0]
    physics.named.data.qvel[["ball_x", "ball_z"]] = [0.0, 4.5]
    away = 1 - 0.5 * (0.125 / 0.25)
    assert environment._task._task.get_reward(physics) == pytest.approx((away + 2 * 0.75) / 3)
