"""Bugs in how numbers are stored in fewer bits: codecs, dithers, blocks, and what drives them."""

from __future__ import annotations

from .mutant import Mutant, planted

CODECS, STORED = "tests/rules/test_codecs.py", "tests/optimizers/test_storage.py"
SHARDED = "tests/distributed/test_distributed.py::test_states_in_fewer_bits_saved_by_two_loaded_by_any_number"
FILE = "fastoptim/rules/codecs.py"

MUTANTS: tuple[Mutant, ...] = (
    *planted(
        FILE,
        (CODECS,),
        ("bfloat16: wrong shift of the dither", "e38, 0, r >> 16)", "e38, 0, r >> 17)"),
        ("bfloat16: beyond the largest", "e38, 0, r >> 16)", "e38, r >> 16, r >> 16)"),
        ("bfloat16: a NaN becomes an infinity", "rare(x != x, 0x7FC0, (u + below) >> 16)", "(u + below) >> 16"),
        ("bfloat16: half is always up", "0x7FFF + ((u >> 16) & 1)", "0x8000"),
        ("float16: wrong shift of the dither", "0x38800000 + (r >> 19)", "0x38800000 + (r >> 18)"),
        ("float16: small numbers as others", "where(twice < small, small, twice)", "twice"),
        ("float16: infinities are read as numbers", "twice > 131008.0", "twice > 1e6"),
        ("float16: beyond the largest", "where(cut > 0x7BFF, 0x7BFF, cut)", "cut"),
        ("float8: wrong shift of the dither", "0x3C800000 + (r >> 12)", "0x3C800000 + (r >> 13)"),
        ("float8: small numbers as others", "where(y + y < small, small, y + y)", "y + y"),
        ("float8: NaNs are read as numbers", "twice > 896.0", "twice > 960.0"),
        ("float8: beyond the largest", "where(kept > 0x7E, 0x7E, kept)", "where(kept > 0x7F, 0x7F, kept)"),
        ("float8: floor left out", "where(cut < least, least, cut)", "cut"),
        ("float8: floor left out, to nearest", "where(code < least, least, code)", "code"),
        ("float8: zeros get the floor", "where(a < floor, a, floor)", "floor"),
        ("float8: tiny blocks are inverted", "where(a < 7.888609052210118e-31, a * 0.0, 448.0 / a)", "448.0 / a"),
        ("float8: infinities make the scale", "where(a < 0x7F800000, a, 0)", "a"),
        ("block off by one", "np.arange(0, x.size, BLOCK)", "np.arange(0, x.size, BLOCK) + (x.size > BLOCK)"),
        ("dither does not go on behind a cut", "np.arange(first, first + count", "np.arange(0, count"),
    ),
    *planted(
        FILE,
        (CODECS, STORED),
        ("dither reused by two slots", "(seed, parameter, slot, t)", "(seed, parameter, 0, t)"),
        ("dither reused by two parameters", "(seed, parameter, slot, t)", "(seed, 0, slot, t)"),
        ("dither reused by every step", "(seed, parameter, slot, t)", "(seed, parameter, slot, 0)"),
        ("squares are not roots", "x * x if square and", "x if square and"),
    ),
    *planted(
        "fastoptim/arrays/storage.py",
        (STORED,),
        ("scales of any shape are converted", " and scales.shape == (-(-x.size // BLOCK),)", ""),
    ),
    *planted(
        "fastoptim/optimizers/state_dicts.py",
        (STORED,),
        ("a missing scale is not missed", "            if key not in entry:\n", "            if False:\n"),
        ("the seed of a checkpoint is not taken", "_replace(seed=seed)", "_replace()"),
        ("a storage is not checked", "return Storage.checked(**storage).seed", 'return storage["seed"]'),
    ),
    *planted(
        "fastoptim/distributed/slices.py",
        (SHARDED,),
        (
            "ranks: dithers begin anew in every slice",
            "q.number, q.first = part.parameter, part.start",
            "q.number = part.parameter",
        ),
        (
            "ranks: dithers by the number within the piece",
            "q.number, q.first = part.parameter, part.start",
            "q.first = part.start",
        ),
        ("ranks: states are not in files", "own.optimizer._backend = share", "pass"),
        ("ranks: each piece has the whole budget", "share(len(self._pieces))", "share(1)"),
    ),
    *planted(
        "fastoptim/distributed/channel.py",
        (SHARDED,),
        (
            "ranks: gradients are added up in 16 bits",
            "else widened(g[start:stop])",
            "else widened(g[start:stop]).astype(np.float16)",
        ),
    ),
    *planted(
        "fastoptim/distributed/states.py",
        (SHARDED,),
        ("ranks: the seed of a checkpoint is not taken", ", own, mine) | seed)", ", own, mine))"),
        ("ranks: scales are cut like elements", ".over(self._slots[key])", ".over(1)"),
    ),
    *planted(
        "fastoptim/checkpoint/slices.py",
        (SHARDED,),
        ("slices: scales are cut like elements", "BLOCK if is_scales(key, arrays) else 1", "1"),
    ),
)
EQUIVALENT: tuple[tuple[str, str], ...] = ()
