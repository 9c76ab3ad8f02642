"""The codecs against ml_dtypes, NumPy and exact fractions: nothing else checks how the reference stores."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from fastoptim.arrays.storage import small_dtype
from fastoptim.rules import codecs
from fastoptim.rules.codecs import BLOCK, Coding, decoded, encode, key_of
from tests.support.cases import raw_bits

ml_dtypes = pytest.importorskip("ml_dtypes", reason="LOUD: pip install ml_dtypes to test bfloat16 and float8")
FORMATS = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16, "float8": ml_dtypes.float8_e4m3fn}
LARGEST = {name: float(ml_dtypes.finfo(dtype).max) for name, dtype in FORMATS.items()}
STORAGES = tuple(FORMATS)


def stored(x, storage, square=False, nearest=False, key=1, first=0):
    """Codes and scales of an array."""
    x = np.asarray(x, np.float32)
    codes = np.zeros(x.shape, small_dtype(storage))
    scales = np.zeros(-(-x.size // BLOCK), np.float32) if storage == "float8" else None
    encode(x, codes, scales, Coding(storage, square, nearest, key, first))
    return codes, scales


def back(x, storage, square=False, **how):
    return decoded(*stored(x, storage, square, **how), storage, square)


@pytest.mark.parametrize("storage", STORAGES)
def test_every_code_means_what_the_format_says(storage):
    width = 8 if storage == "float8" else 16
    codes = np.arange(1 << width, dtype=f"u{width // 8}").view(FORMATS[storage])
    scales = np.ones(2, np.float32) if storage == "float8" else None
    x, wanted = decoded(codes, scales, storage, False), codes.astype(np.float32)
    finite = ~np.isnan(wanted)
    assert x.dtype == np.float32 and np.array_equal(np.isnan(x), ~finite)
    assert np.array_equal(x.view(np.uint32)[finite], wanted.view(np.uint32)[finite])


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("nearest", [False, True])
def test_numbers_of_the_format_stay_what_they_are(storage, nearest):
    x = np.arange(1 << (8 if storage == "float8" else 16)).astype("u1" if storage == "float8" else "u2")
    x = x.view(FORMATS[storage]).astype(np.float32)
    x = x[np.isfinite(x)]
    if storage == "float8":  # every block with the largest, so that its scale is 1
        x = np.concatenate([np.append(part, np.float32(448)) for part in np.array_split(x, -(-x.size // (BLOCK - 1)))])
        x = np.concatenate([x, np.zeros(-x.size % BLOCK, np.float32)])
        x = x.reshape(-1, BLOCK)
        x[:, -1] = 448
        x = x.reshape(-1)
    assert np.array_equal(back(x, storage, nearest=nearest, key=2**32 - 1).view(np.uint32), x.view(np.uint32))


@pytest.mark.parametrize("storage", ["bfloat16", "float16"])
def test_nearest_is_what_others_round_to(storage):
    rng = np.random.default_rng(0)
    powers = np.exp2(rng.uniform(-30, 20, 100_000))
    x = np.concatenate([raw_bits(rng, 200_000, np.float32), (rng.choice([-1, 1], 100_000) * powers).astype(np.float32)])
    with np.errstate(all="ignore"):
        wanted = x.astype(FORMATS[storage])
    codes, _ = stored(x, storage, nearest=True)
    known = ~np.isnan(x)
    assert np.array_equal(codes.view(np.uint16)[known], wanted.view(np.uint16)[known])


def test_nearest_float8_is_what_others_round_to():
    rng = np.random.default_rng(1)
    x = (rng.uniform(-448, 448, 128_000) * np.exp2(-rng.integers(0, 20, 128_000))).astype(np.float32)
    x[::BLOCK] = 448  # so that the scale is 1
    codes, scales = stored(x, "float8", nearest=True)
    assert np.all(scales == 1)
    assert np.array_equal(codes.view(np.uint8), x.astype(FORMATS["float8"]).view(np.uint8))


@pytest.mark.parametrize("storage", STORAGES)
def test_a_number_becomes_one_of_its_two_neighbours(storage):
    rng = np.random.default_rng(2)
    if storage == "float8":
        x = (rng.uniform(-448, 448, 64_000) * np.exp2(-rng.integers(0, 20, 64_000))).astype(np.float32)
        x[::BLOCK] = 448
    else:
        x = raw_bits(rng, 64_000, np.float32)
        x = x[np.abs(x) < LARGEST[storage]]
    numbers = np.arange(1 << (8 if storage == "float8" else 16)).astype("u1" if storage == "float8" else "u2")
    numbers = numbers.view(FORMATS[storage]).astype(np.float32)
    numbers = np.unique(numbers[np.isfinite(numbers)])
    above = np.searchsorted(numbers, x)
    for key in (0, 2**32 - 1, 12345):
        y = back(x, storage, key=key)
        assert np.all((y == numbers[above]) | (y == numbers[np.maximum(above - 1, 0)]))


@pytest.mark.parametrize(
    "storage, value",
    [
        *product(["bfloat16"], [1.2345, -3e-39, 3.3e38, 1e-44]),
        *product(["float16"], [1.2345, -3e-7, 60001.5, 5e-8, 6.1e-5]),
        *product(["float8"], [3.14, -0.0123, 401.7, 0.0007, 0.0156]),
    ],
)
def test_the_mean_of_many_encodings_is_the_number(storage, value):
    """Within 4 standard errors, for 10,000 keys; the mean of the elements' dithers of one key is not enough."""
    x = np.float32(value)
    found = []
    for seed in range(10_000):
        i = seed % 7
        block = np.zeros(BLOCK, np.float32)
        block[i], block[-1] = x, 448 if storage == "float8" else 1
        found.append(back(block, storage, key=key_of(seed, 1, 2, 3))[i] if seed < 200 else None)
    keys = np.array([key_of(seed, 3, 2, 9) for seed in range(10_000)], np.uint64).astype(np.uint32)
    r = keys + np.uint32(5 * 0x9E3779B1 % 2**32)
    same = np.full(keys.size, x, np.float32)
    if storage == "float8":
        codes = codecs.float8_stochastic(same, np.float32(1), 0, r)
        y = codecs.float8_decode(codes, np.float32(1))
    else:
        y = getattr(codecs, f"{storage}_decode")(getattr(codecs, f"{storage}_stochastic")(same, r))
    spread = y.astype(np.float64).std()
    assert len(set(y)) == 2 and {float(v) for v in found if v is not None} <= {float(v) for v in y}
    assert abs(y.astype(np.float64).mean() - float(x)) < 4 * spread / np.sqrt(keys.size)


@pytest.mark.parametrize("key", [0, 2**32 - 1])
def test_what_is_not_an_ordinary_number(key):
    x = np.array([np.inf, -np.inf, np.nan, -np.nan, 0.0, -0.0, 3.4028235e38, -3.4028235e38, 1e-45], np.float32)
    for storage, bits in (
        ("bfloat16", (0x7F80, 0xFF80, 0x7FC0, 0x7FC0, 0, 0x8000, 0x7F7F, 0xFF7F)),
        ("float16", (0x7C00, 0xFC00, 0x7E00, 0x7E00, 0, 0x8000, 0x7BFF, 0xFBFF)),
    ):
        codes, _ = stored(x, storage, key=key)
        assert tuple(codes.view(np.uint16)[:-1]) == bits, storage
    for n in (2, 8, BLOCK):  # infinities and NaNs count for no scale
        codes, scales = stored(np.append(x[:6], np.full(n, 448, np.float32)), "float8", key=key)
        assert scales[0] == 1 and tuple(codes.view(np.uint8)[:6]) == (0x7F,) * 4 + (0, 0x80)
    assert np.isnan(back(x[:4], "float8", key=key)).all()
    assert not back(np.zeros(300), "float8", key=key).any()
    largest = back(np.full(300, 3.4028235e38, np.float32), "float8", key=key)
    assert np.all(np.isfinite(largest))


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("nearest", [False, True])
def test_nothing_is_stored_beyond_the_largest(storage, nearest):
    x = np.float32(LARGEST[storage]) * np.linspace(0.97, 1.0, 4 * BLOCK, dtype=np.float32)
    for key in (0, 2**31, 2**32 - 1):
        assert np.abs(back(x, storage, nearest=nearest, key=key)).max() <= LARGEST[storage]


@pytest.mark.parametrize("nearest", [False, True])
def test_squares_are_stored_as_roots_and_never_become_zero(nearest):
    v = np.exp2(np.arange(0, -BLOCK, -1, dtype=np.float32))
    v[-1] = 0
    codes, scales = stored(v, "float8", square=True, nearest=nearest, key=0)
    code = codes.view(np.uint8)
    assert code[0] == 0x7E and scales[0] == np.float32(1) / np.float32(448)
    assert np.all(code[:-1] >= 1) and code[-1] == 0 and code[-2] == 1
    assert np.array_equal(decoded(codes, scales, "float8", True), decoded(codes, scales, "float8", False) ** 2)
    assert stored(v, "float8", nearest=nearest, key=0)[0].view(np.uint8)[-2] == 0, "the floor is for squares alone"
    tiny = back(np.full(5, 1e-70, np.float64).astype(np.float32) + np.float32(2.0**-149), "float8", square=True)
    assert np.all(tiny >= 0)


def test_a_block_too_small_to_invert_is_all_zero_and_keeps_its_squares():
    x = np.full(BLOCK, 2.0**-101, np.float32)
    assert not back(x, "float8").any()
    assert np.all(stored(x.astype(np.float64) ** 1, "float8", square=False)[0].view(np.uint8) == 0)
    assert back(np.full(BLOCK, 2.0**-99, np.float32), "float8").all()


def test_blocks_have_scales_of_their_own_and_parts_are_parts_of_the_whole():
    rng = np.random.default_rng(3)
    x = rng.standard_normal(1000).astype(np.float32) * np.repeat(np.exp2(np.arange(8)), BLOCK)[:1000].astype(np.float32)
    codes, scales = stored(x, "float8", key=77)
    assert np.array_equal(scales, [np.abs(x[i : i + BLOCK]).max() / np.float32(448) for i in range(0, 1000, BLOCK)])
    for storage in STORAGES:
        codes, scales = stored(x, storage, key=77)
        for start in (0, BLOCK, 5 * BLOCK):
            part, part_scales = stored(x[start:], storage, key=77, first=start)
            assert part.tobytes() == codes[start:].tobytes()
            if scales is not None:
                assert np.array_equal(part_scales, scales[start // BLOCK :])


def test_keys_are_splitmix64_and_differ_wherever_anything_does():
    assert key_of(0, 0, 0, 0) == key_of(0, 0, 0, 0)
    h = codecs.mix(np.zeros(1, np.uint64), np.zeros(1, np.uint64))
    assert int(h[0]) == 0xE220A8397B1DCDAF  # the first number of splitmix64 with the seed 0, as its authors publish it
    keys = [key_of(*numbers) for numbers in product((0, 1, 2**63 - 1), (0, 1, 2), (0, 2, 3), (1, 2, 2**40))]
    assert len(set(keys)) == len(keys)
    first, second = codecs.dithers(keys[0], 0, 1000), codecs.dithers(keys[1], 0, 1000)
    assert np.mean(first == second) < 0.01
    assert np.array_equal(codecs.dithers(7, 2**32 - 2, 5)[2:], codecs.dithers(7, 0, 3))  # element numbers wrap


def test_the_largest_of_a_block_is_never_rounded_to_nan():
    """The product of a and 448 / a may be above 448, which the largest dither would carry to the code of NaN."""
    a = np.random.default_rng(5).uniform(1, 2, 10_000).astype(np.float32)
    inverse = codecs.float8_inverse(a)
    above = a * inverse > 448
    assert above.any()
    codes = codecs.float8_stochastic(a[above], inverse[above], 0, np.full(above.sum(), 2**32 - 1, np.uint32))
    assert np.all(codes == 0x7E)
