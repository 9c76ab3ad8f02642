"""An evolution strategy that balances a pole, with steps that return new parameters: `opt.apply`.

    python examples/evolution.py

The strategy estimates a gradient from the scores of a population of noisy copies, and keeps every point that it has
visited. `opt.apply(params, grads)` never writes to them. Beside it run the lines of the Adam that evolution strategies
bring along, in the same convention.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

import fastoptim as fo

PAIRS, SIGMA, RATE = 32, 0.5, 0.1
Step = Callable[[np.ndarray, np.ndarray], np.ndarray]


def scores(controllers: np.ndarray, rng: np.random.Generator, most: int = 200) -> np.ndarray:
    """For how many steps each linear controller, a row of four weights, keeps the pole up (Barto et al., 1983)."""
    x, dx, angle, turn = rng.uniform(-0.05, 0.05, (4, 1)) * np.ones((4, len(controllers)))
    up, lasted = np.ones(len(controllers), bool), np.zeros(len(controllers))
    for _ in range(most):
        force = np.where((controllers * np.stack([x, dx, angle, turn], 1)).sum(1) > 0, 10.0, -10.0)
        sin, cos = np.sin(angle), np.cos(angle)
        push = (force + 0.05 * turn**2 * sin) / 1.1
        spin = (9.8 * sin - cos * push) / (0.5 * (4 / 3 - 0.1 * cos**2 / 1.1))
        x, dx = x + 0.02 * dx, dx + 0.02 * (push - 0.05 * spin * cos / 1.1)
        angle, turn = angle + 0.02 * turn, turn + 0.02 * spin
        up &= (abs(x) < 2.4) & (abs(angle) < 0.21)
        x, dx, angle, turn = (np.where(up, state, 0.0) for state in (x, dx, angle, turn))
        lasted += up
    return lasted


def evolve(step: Step, generations: int) -> list[np.ndarray]:
    """Every mean of the population, from the first to the last."""
    rng, points = np.random.default_rng(1), [np.zeros(4)]
    for _ in range(generations):
        noise = rng.standard_normal((PAIRS, 4))
        noise = np.concatenate([noise, -noise])  # mirrored samples
        ranks = scores(points[-1] + SIGMA * noise, rng).argsort(kind="stable").argsort(kind="stable")
        utilities = ranks / (len(noise) - 1) - 0.5
        points.append(step(points[-1], -(utilities @ noise) / (len(noise) * SIGMA)))
        points[-1].flags.writeable = False  # others may keep it
    return points


def adam_by_hand() -> Step:
    m, v, t = np.zeros(4), np.zeros(4), 0

    def step(x: np.ndarray, g: np.ndarray) -> np.ndarray:
        nonlocal m, v, t
        t += 1
        m = 0.9 * m + 0.1 * g
        v = 0.999 * v + 0.001 * (g * g)
        return x - RATE * np.sqrt(1 - 0.999**t) / (1 - 0.9**t) * m / (np.sqrt(v) + 1e-8)

    return step


def main(generations: int = 40) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray]:
    ours = evolve(fo.Adam(np.zeros(4), lr=RATE, eps_mode="hat").apply, generations)
    expected = evolve(adam_by_hand(), generations)
    ends = scores(np.stack([ours[0], ours[-1]]), np.random.default_rng(2))
    worst = max(abs(a - b).max() for a, b in zip(ours, expected, strict=True))
    print(f"the pole stays up for {ends[0]:.0f} steps at first, {ends[1]:.0f} (of 200) after {generations} generations")
    print(f"largest difference from the lines by hand at any of {len(ours)} points: {worst:.1e}")
    return ours, expected, ends


if __name__ == "__main__":
    main()
