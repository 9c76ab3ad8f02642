"""``python -m fastoptim``: see `fastoptim.cli`."""

from .cli import main

if __name__ == "__main__":
    raise SystemExit(main())
