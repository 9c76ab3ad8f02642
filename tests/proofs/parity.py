"""Every class beside its counterparts in other libraries: python -m tests.proofs.parity [library ...] [--count 100]

Random configurations of 50 steps each, float64 and float32; the bound is that of `tests.support.peers`. Libraries:
torch, optax, keras and schedulefree; what is not installed is named and fails the run unless it was not asked for.
"""

from __future__ import annotations

import argparse
import sys
from importlib.util import find_spec

import numpy as np

from tests.support.peers import BOUND, PEERS, distance


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("libraries", nargs="*", default=sorted({peer.library for peer in PEERS}))
    parser.add_argument("--count", type=int, default=100)
    arguments = parser.parse_args()
    missing = [library for library in arguments.libraries if find_spec(library) is None]
    failed, found = len(missing), {"float64": 0.0, "float32": 0.0}
    compared: set[str] = set()
    for library in missing:
        print(f"{library} is not installed")
    for peer in PEERS:
        if peer.library in arguments.libraries and peer.library not in missing:
            for dtype in (np.float64, np.float32):
                rng = np.random.default_rng(2026)
                each = [distance(peer, dtype, rng, 50) for _ in range(arguments.count)]
                share, _, options = max(each, key=lambda x: x.share)
                failed += share > 1.0
                compared.add(peer.label)
                name = np.dtype(dtype).name
                found[name] = max(found[name], share)
                told = f"  MORE THAN ALLOWED with {options}" if share > 1.0 else ""
                epsilons = max(x.epsilons for x in each)
                print(f"{peer.label} {name}: {epsilons:.1f} epsilons, {share:.2f} of the bound{told}", flush=True)
    print(
        f"{len(compared)} counterparts in {', '.join(arguments.libraries)}, {arguments.count} random configurations of "
        f"50 steps each: at most {found['float64']:.2f} of the bound in float64, {found['float32']:.2f} in float32 "
        f"(it is {BOUND:g} machine epsilons of |p| + distance travelled, and half of one more for each step where a "
        f"decay is rounded apart); {failed} failed"
    )
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
