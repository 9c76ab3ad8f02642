"""Write the reference's hashes for variants that ``golden.json`` lacks: python -m tests.proofs.golden_write

What the file holds is never changed: a hash that no longer comes out is an error, of the code or of the platform.
"""

from __future__ import annotations

import json
import sys

from tests.support import golden
from tests.support.cases import VARIANTS


def main() -> int:
    stored = golden.load() if golden.FILE.exists() else {"coefficients": {}, "hashes": {}}
    new = [variant for variant in VARIANTS if variant.label not in stored["coefficients"]]
    for variant in new:
        rows = golden.host_coefficients(variant)
        stored["coefficients"][variant.label] = [" ".join(x.hex() for x in row) for row in rows]
    wrong = 0
    for name, jobs in golden.jobs(stored):
        found = golden.hash_of([golden.by_reference(job) for job in jobs])
        if stored["hashes"].setdefault(name, found) != found:
            wrong += 1
            print(f"{name}: the reference gives {found}, the file holds {stored['hashes'][name]}")
    if wrong:
        return 1
    golden.FILE.write_text(json.dumps(stored, indent=1) + "\n")
    print(f"{len(stored['hashes'])} hashes, {len(new)} variants new")
    return 0


if __name__ == "__main__":
    sys.exit(main())
