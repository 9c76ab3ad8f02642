"""A network of scalar objects that differentiate themselves, as in micrograd: the adapter of objects.

    python examples/scalar_values.py

Every weight is a `Value` with ``.data`` and ``.grad``, both Python numbers. Training two interleaved half circles with
`fastoptim.adapters.objects.SGD` gives the very bits of ``p.data -= rate * p.grad`` in a loop. For numbers alone that
loop is quicker; the adapter is for models that mix them with arrays, and for trying other rules without writing them.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable
from itertools import pairwise

from fastoptim.adapters import objects


class Value:
    """A number that remembers what it was computed of, and the derivatives by that."""

    def __init__(self, data: float, parents: tuple[tuple[Value, float], ...] = ()) -> None:
        self.data, self.grad, self._parents = data, 0.0, parents

    def __add__(self, other: Value) -> Value:
        return Value(self.data + other.data, ((self, 1.0), (other, 1.0)))

    def __mul__(self, other: Value) -> Value:
        return Value(self.data * other.data, ((self, other.data), (other, self.data)))

    def tanh(self) -> Value:
        t = math.tanh(self.data)
        return Value(t, ((self, 1 - t * t),))

    def backward(self) -> None:
        """Add the derivative of this value to `grad` of all that it was computed of."""
        order: dict[Value, None] = {}

        def visit(value: Value) -> None:
            if value not in order:
                for parent, _ in value._parents:
                    visit(parent)
                order[value] = None

        visit(self)
        self.grad = 1.0
        for value in reversed(order):
            for parent, slope in value._parents:
                parent.grad += slope * value.grad


class Network:
    def __init__(self, *widths: int) -> None:
        rng = random.Random(0)
        self.layers = [
            [[Value(rng.uniform(-1, 1)) for _ in range(n + 1)] for _ in range(m)] for n, m in pairwise(widths)
        ]

    def parameters(self) -> list[Value]:
        return [weight for layer in self.layers for neuron in layer for weight in neuron]

    def __call__(self, x: Iterable[float]) -> Value:
        values = [Value(number) for number in x]
        for layer in self.layers:
            values = [sum((w * v for w, v in zip(ws, values, strict=False)), ws[-1]).tanh() for ws in layer]
        return values[0]


def moons(n: int) -> list[tuple[tuple[float, float], float]]:
    angles = [math.pi * i / (n - 1) for i in range(n)]
    upper = [((math.cos(a), math.sin(a)), 1.0) for a in angles]
    return upper + [((1 - math.cos(a), 0.5 - math.sin(a)), -1.0) for a in angles]


def train(network: Network, step: Callable[[], None], epochs: int) -> int:
    """Returns how many points are on the right side in the end."""
    points = moons(16)
    for _ in range(epochs):
        for p in network.parameters():
            p.grad = 0.0
        for x, y in points:
            error = network(x) + Value(-y)
            (error * error * Value(1 / len(points))).backward()
        step()
    return sum(network(x).data * y > 0 for x, y in points)


def main(epochs: int = 150) -> tuple[list[float], list[float], int]:
    ours, other = Network(2, 6, 1), Network(2, 6, 1)

    def by_hand() -> None:
        for p in other.parameters():
            p.data -= 0.3 * p.grad

    right = train(ours, objects.SGD(0.3).setup(ours).update, epochs)
    train(other, by_hand, epochs)
    weights, expected = ([p.data for p in network.parameters()] for network in (ours, other))
    print(f"{right} of 32 points right; {'the very bits' if weights == expected else 'NOT the bits'} of the loop")
    return weights, expected, right


if __name__ == "__main__":
    main()
