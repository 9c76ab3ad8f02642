"""The energy of the hydrogen molecule by a variational quantum circuit: ``minimize(fun, x0, jac)``, as in Qiskit.

    python examples/circuit.py

Two qubits are turned around Y, entangled by a CNOT, and turned again; `fo.minimize` looks for the four angles of least
energy. Gradients come from two more runs of the circuit per angle (the parameter-shift rule). Beside it run the lines
of an Adam written by hand, in the same convention: eps beside the root of the uncorrected mean.
"""

from __future__ import annotations

import numpy as np

import fastoptim as fo

X, Y, Z, ONE = np.array([[0, 1], [1, 0]]), np.array([[0, -1j], [1j, 0]]), np.diag([1, -1]), np.eye(2)
CNOT = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0]])

# At a bond length of 0.75 angstrom, in hartree: O'Malley et al., Physical Review X 6, 031007 (2016), table 1.
HAMILTONIAN = (
    0.2252 * np.eye(4)
    + 0.3435 * np.kron(Z, ONE)
    - 0.4347 * np.kron(ONE, Z)
    + 0.5716 * np.kron(Z, Z)
    + 0.0910 * (np.kron(X, X) + np.kron(Y, Y))
)
START = np.array([0.4, -0.3, 0.2, 0.1])


def turn(angle: float) -> np.ndarray:
    """A rotation of one qubit around Y."""
    c, s = np.cos(angle / 2), np.sin(angle / 2)
    return np.array([[c, -s], [s, c]])


def energy(angles: np.ndarray) -> float:
    """The expectation of the energy in the state that the circuit makes of ``|00>``."""
    a, b, c, d = angles
    state = np.kron(turn(c), turn(d)) @ CNOT @ np.kron(turn(a), turn(b))[:, 0]
    return float((state.conj() @ HAMILTONIAN @ state).real)


def shifts(angles: np.ndarray) -> np.ndarray:
    """The exact gradient, by the parameter-shift rule."""
    return np.array([(energy(angles + s) - energy(angles - s)) / 2 for s in np.pi / 2 * np.eye(4)])


def by_hand(steps: int) -> np.ndarray:
    """Adam as many packages have it."""
    x, m, v = START.copy(), np.zeros(4), np.zeros(4)
    for t in range(1, steps + 1):
        g = shifts(x)
        m = 0.9 * m + 0.1 * g
        v = 0.999 * v + 0.001 * g * g
        x = x - 0.05 * np.sqrt(1 - 0.999**t) / (1 - 0.9**t) * m / (np.sqrt(v) + 1e-8)
    return x


def main(steps: int = 300) -> dict[str, np.ndarray]:
    found = fo.minimize(
        energy, START, jac=shifts, optimizer=lambda x: fo.Adam(x, lr=0.05, eps_mode="hat"), maxiter=steps
    )
    exact, expected = np.linalg.eigvalsh(HAMILTONIAN)[0], by_hand(steps)
    print(f"energy {found.fun:.6f} hartree after {found.nit} steps; exact {exact:.6f}")
    print(f"largest difference from the lines by hand: {abs(found.x - expected).max():.1e}")
    return {"ours": found.x, "by hand": expected, "error": found.fun - exact}


if __name__ == "__main__":
    main()
