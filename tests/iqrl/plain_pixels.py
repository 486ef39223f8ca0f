"""Pictures drawn by dm_control alone, in a process that has none of this project's code.

Usage: python plain_pixels.py OUTPUT.npz KEY ACTIONS_SEED DECISIONS DOMAIN/TASK/CAMERA/REPEAT...
"""

import sys

import numpy as np
from dm_control import suite


def play(domain: str, task: str, camera: int, repeat: int, key: tuple[int, ...], seed: int, decisions: int):
    """The picture at the start and after each decision, (decisions + 1, 84, 84, 3) uint8."""
    random = np.random.RandomState(np.random.MT19937(np.random.SeedSequence(key)))
    environment = suite.load(domain, task, task_kwargs={"random": random})
    spec = environment.action_spec()
    centre, half_range = (spec.maximum + spec.minimum) / 2, (spec.maximum - spec.minimum) / 2
    generator = np.random.default_rng(seed)
    environment.reset()
    pictures = [environment.physics.render(84, 84, camera)]
    for _ in range(decisions):
        action = centre + half_range * generator.uniform(-1, 1, spec.shape).astype(np.float32)
        for _ in range(repeat):
            environment.step(action)
        pictures.append(environment.physics.render(84, 84, camera))
    return np.array(pictures)


if __name__ == "__main__":
    output, key, seed, decisions, *tasks = sys.argv[1:]
    arrays = {}
    for name in tasks:
        domain, task, camera, repeat = name.split("/")
        numbers = tuple(map(int, key.split(",")))
        arrays[name] = play(domain, task, int(camera), int(repeat), numbers, int(seed), int(decisions))
    np.savez(output, **arrays)
