"""Episodes stepped by dm_control alone, in a process that has none of this project's code.

Usage: python plain_dm_control.py OUTPUT.npz KEY ACTIONS_SEED DECISIONS DOMAIN/TASK...
Actions are uniform in [-1, 1], float32, mapped to the task's bounds; action repeat 2.
"""

import sys

import numpy as np
from dm_control import suite


def play(domain: str, task: str, key: tuple[int, ...], seed: int, decisions: int):
    random = np.random.RandomState(np.random.MT19937(np.random.SeedSequence(key)))
    environment = suite.load(domain, task, task_kwargs={"random": random})
    spec = environment.action_spec()
    centre, half_range = (spec.maximum + spec.minimum) / 2, (spec.maximum - spec.minimum) / 2
    generator = np.random.default_rng(seed)
    time_step = environment.reset()
    observations, rewards = [time_step.observation], []
    for _ in range(decisions):
        action = centre + half_range * generator.uniform(-1, 1, spec.shape).astype(np.float32)
        reward = 0.0
        for _ in range(2):
            time_step = environment.step(action)
            reward += time_step.reward
            if time_step.last():
                break
        observations.append(time_step.observation)
        rewards.append(reward)
        if time_step.last():
            break
    flat = [np.concatenate([np.ravel(entry) for entry in observation.values()]) for observation in observations]
    return np.array(flat, np.float32), np.array(rewards, np.float64), time_step.last()


if __name__ == "__main__":
    output, key, seed, decisions, *tasks = sys.argv[1:]
    arrays = {}
    for name in tasks:
        domain, task = name.split("/")
        played = play(domain, task, tuple(map(int, key.split(","))), int(seed), int(decisions))
        for kind, array in zip(("observations", "rewards", "last"), played):
            arrays[f"{name}/{kind}"] = array
    np.savez(output, **arrays)
