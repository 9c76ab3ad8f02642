"""Parameters and states in files: same bits, bounded residency, truncated files noticed, scratch files removed."""

from __future__ import annotations

import gc
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

import fastoptim as fo
from fastoptim.backends import get_backend, offload
from tests.support import PROOFS

MIB = 1 << 20
SHAPES = {"w": (700, 901), "b": (901,), "empty": (0, 3), "s": ()}


def values(seed, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return {name: np.asarray(rng.normal(size=shape)).astype(dtype) for name, shape in SHAPES.items()}


def on_disk(folder, arrays, prefix="p", order="C", offset=0):
    """The same values as memmaps; empty and 0-d ones stay in memory."""
    mapped = {}
    for name, x in arrays.items():
        if x.ndim and x.size:
            path = folder / f"{prefix}-{name}"
            mapped[name] = np.memmap(path, x.dtype, "w+", offset, x.shape, order)
            mapped[name][...] = x
        else:
            mapped[name] = x.copy()
    return mapped


def same(a, b):
    return all(np.asarray(a[name]).tobytes() == np.asarray(b[name]).tobytes() for name in a)


MAKERS = {
    "sgd": lambda p, **o: fo.SGD(p, 0.1, weight_decay=0.01, **o),
    "nesterov": lambda p, **o: fo.SGD(p, 0.1, 0.9, nesterov=True, **o),
    "amsgrad": lambda p, **o: fo.AdamW(p, 0.01, weight_decay=0.1, amsgrad=True, **o),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize("backend", ["c", "numpy"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_bits_of_the_step_in_memory(tmp_path, make, backend, dtype):
    """Tiles of 1 MiB in all, odd sizes, an offset in the file; clipping, scaling and skipping too."""
    here, there = values(0, dtype), on_disk(tmp_path, values(0, dtype), offset=136)
    one = make(here, backend=backend)
    other = make(there, backend=backend, state_dir=tmp_path / "states", memory_budget="1 MiB")
    assert other.backend == backend
    for t, options in enumerate([{}, {"max_norm": 1.0}, {"grad_scale": 0.5, "max_norm": 2.0, "skip_nonfinite": True}]):
        gradients = values(t + 1, dtype)
        infos = one.step(gradients, **options), other.step(on_disk(tmp_path, gradients, "g"), **options)
        assert infos[0] == infos[1] and infos[0].applied
    assert same(here, there)
    for name in one.state:
        assert same(one.state[name], other.state[name])
        for slot in one.state[name].keys() - {"step"}:
            assert isinstance(other.state[name][slot], np.memmap) == (here[name].size > 0)
    bad = values(9, dtype)
    bad["w"][3, 5] = np.inf
    assert not other.step(bad, skip_nonfinite=True).applied and same(here, there)


@pytest.mark.parametrize("odd", [lambda x: x[:, ::2], lambda x: x[::-1], lambda x: x[3:5], lambda x: x.T])
def test_views_and_layouts(tmp_path, odd):
    base = np.random.default_rng(0).normal(size=(600, 400))
    for order in "CF":
        mapped = on_disk(tmp_path, {"w": base}, order=order)["w"]
        plain = np.array(base, order=order)
        gradient = np.random.default_rng(1).normal(size=odd(plain).shape)
        for array, options in ((odd(plain), {}), (odd(mapped), {"state_dir": tmp_path, "memory_budget": MIB})):
            opt = fo.Adam(array, 0.1, **options)
            opt.step(gradient)
            opt.step(gradient)
        assert (plain == mapped).all() and not (plain == base).all()


def test_files_hold_what_was_stepped(tmp_path):
    there = on_disk(tmp_path, values(0))
    opt = fo.SGD(there, 0.1, memory_budget=MIB)
    opt.step(values(1))
    expected = values(0)["w"] - np.float32(0.1) * values(1)["w"]
    there["w"].flush()
    assert (np.fromfile(tmp_path / "p-w", np.float32).reshape(700, 901) == expected).all()


def test_private_mappings_keep_their_changes(tmp_path):
    """Pages of a copy-on-write mapping are not in the file: they must not be let go of."""
    on_disk(tmp_path, values(0))["w"].flush()
    private = np.memmap(tmp_path / "p-w", np.float32, "c", shape=(700, 901))
    opt = fo.SGD(private, 0.1, memory_budget=MIB)
    opt.step(values(1)["w"])
    assert (private == values(0)["w"] - np.float32(0.1) * values(1)["w"]).all()
    assert (np.fromfile(tmp_path / "p-w", np.float32).reshape(700, 901) == values(0)["w"]).all()


@pytest.mark.parametrize("victim", ["parameter", "state", "gradient"])
def test_a_truncated_file_is_noticed_before_the_step(tmp_path, victim):
    there = on_disk(tmp_path, values(0))
    gradients = on_disk(tmp_path, values(1), "g")
    opt = fo.Adam(there, 0.1, state_dir=tmp_path / "states", memory_budget=MIB)
    opt.step(gradients)
    path = {
        "parameter": tmp_path / "p-w",
        "gradient": tmp_path / "g-w",
        "state": Path(opt.state["w"]["exp_avg_sq"].filename),
    }[victim]
    before, content = np.array(there["b"]), path.read_bytes()
    os.truncate(path, len(content) - 1)
    with pytest.raises(ValueError, match=f"{victim}.*'w'.*was truncated: it has 2522799 bytes, .* byte 2522800"):
        opt.step(gradients)
    assert (there["b"] == before).all() and opt.state["w"]["step"] == 1
    path.write_bytes(content)
    assert opt.step(gradients).applied and opt.state["w"]["step"] == 2


def test_memmap_parameters_are_recognised_without_being_asked(tmp_path):
    there = on_disk(tmp_path, values(0))
    opt = fo.SGD(there, 0.1)
    os.truncate(tmp_path / "p-w", 100)
    with pytest.raises(ValueError, match="was truncated"):
        opt.step(values(1))
    opt = fo.SGD({"x": np.ones(3)}, 0.1)
    opt.add_param_group({"params": on_disk(tmp_path, values(0), "q")})
    os.truncate(tmp_path / "q-b", 100)
    with pytest.raises(ValueError, match="was truncated"):
        opt.step([{"x": np.ones(3)}, values(1)])


def test_state_files_are_whole_private_and_removed(tmp_path):
    folder = tmp_path / "new" / "states"
    opt = fo.Adam(values(0), 0.1, state_dir=folder)
    opt.step(values(1))
    files = sorted(folder.iterdir())
    assert len(files) == 2 * 3
    sizes = sorted(700 * 901 * 4 if i < 2 else 901 * 4 if i < 4 else 4 for i in range(6))
    assert sorted(path.stat().st_size for path in files) == sizes
    assert all(path.stat().st_blocks * 512 >= path.stat().st_size for path in files)  # no holes
    saved = opt.state_dict()
    opt.load_state_dict(saved)
    opt.step(values(2))
    gc.collect()
    assert len(list(folder.iterdir())) == 6
    other = fo.Adam(values(0), 0.1, state_dir=folder)
    other.step(values(1))
    assert len(list(folder.iterdir())) == 12
    pid = os.fork()
    if pid == 0:  # a child's end takes no file away
        del opt, other
        gc.collect()
        os._exit(0)
    os.waitpid(pid, 0)
    assert len(list(folder.iterdir())) == 12
    del opt, other
    gc.collect()
    assert list(folder.iterdir()) == []


def test_no_room_for_states_is_an_error_at_once(tmp_path, monkeypatch):
    def full(handle, start, size):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    params = values(0)
    opt = fo.Adam(params, 0.1, state_dir=tmp_path)
    with pytest.raises(OSError, match="No space left"):
        opt.step(values(1))
    assert same(params, values(0)) and list(tmp_path.iterdir()) == []


def test_checkpoints_cross_between_memory_and_disk(tmp_path):
    there = on_disk(tmp_path, values(0))
    opt = fo.Adam(there, 0.1, state_dir=tmp_path / "states", memory_budget=MIB)
    opt.step(values(1))
    opt.save(tmp_path / "checkpoint")
    here = values(5)
    other = fo.Adam(here, 0.5)
    other.load(tmp_path / "checkpoint")
    for o in (opt, other):
        o.step(values(2))
    assert same(there, here) and other.lr == 0.1
    other.save(tmp_path / "checkpoint")
    opt.load(tmp_path / "checkpoint")
    assert isinstance(opt.state["w"]["exp_avg"], np.memmap) and opt.state["w"]["step"] == 2


@pytest.mark.parametrize(
    "value, error, message",
    [
        ("12 bananas", ValueError, "such as '512 MiB', got '12 bananas'"),
        ("", ValueError, "such as '512 MiB'"),
        (1000, ValueError, "at least 1 MiB, got 1000 bytes"),
        (-1, ValueError, "at least 1 MiB"),
        (1.5, TypeError, "got 1.5"),
        (True, TypeError, "got True"),
    ],
)
def test_budgets_that_are_refused(value, error, message):
    with pytest.raises(error, match=message):
        fo.SGD(np.ones(3), memory_budget=value)


def test_budgets():
    assert [offload.budget_in_bytes(x) for x in ("512 MiB", "2GiB", " 4096 K ", "1048576", np.int64(MIB))] == [
        512 * MIB, 2048 * MIB, 4 * MIB, MIB, MIB,
    ]  # fmt: skip
    with pytest.raises(TypeError, match="state_dir must be the path of a folder, got 5"):
        fo.SGD(np.ones(3), state_dir=5)


RESIDENT = """
    import sys, numpy as np, fastoptim as fo
    from pathlib import Path
    folder, size, budget = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    p, g = (np.memmap(folder / name, np.float32, "w+", shape=size) for name in "pg")
    opt = fo.Adam(p, 0.1, state_dir=folder, memory_budget=budget)
    opt.step(g, max_norm=1.0)
    def resident(key):
        status = Path("/proc/self/status").read_text().split(key + ":")[1]
        return int(status.split()[0]) // 1024
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = resident("VmRSS")
    opt.step(g, max_norm=1.0)
    print(resident("VmHWM") - before, resident("RssFile"))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak residency is read from Linux's /proc")
def test_residency_stays_within_the_budget(tmp_path):
    """128 MiB of mapped arrays, a budget of 12 MiB; without one the peak would be all of them."""

    def residency(budget):
        command = [sys.executable, "-c", textwrap.dedent(RESIDENT), str(tmp_path), str(8 * MIB), str(budget)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return map(int, done.stdout.split())

    growth, mapped = residency(12 * MIB)
    assert growth <= 12 + 4 and mapped < 100
    _, mapped = residency(1024 * MIB)
    assert mapped >= 128


def test_the_proof_on_a_small_model(tmp_path):
    """tests/proofs/offload_limit.py at an eighth of a GiB, where memory cgroups can be made."""
    script = PROOFS / "offload_limit.py"
    command = [sys.executable, str(script), "--gib", "0.0625", "--limit-mib", "128", "--steps", "2"]
    done = subprocess.run([*command, "--folder", str(tmp_path)], capture_output=True, text=True, check=False)
    if "needs a memory cgroup" in done.stderr:
        pytest.skip("no memory cgroup can be made here: the limit goes unproven")
    assert done.returncode == 0, done.stderr
    assert "equal, bit for bit" in done.stdout and list(tmp_path.iterdir()) == []


def test_tiles_end_at_blocks_of_the_norm(tmp_path):
    gradient = on_disk(tmp_path, values(1, np.float64))["w"]
    backend = offload.OffloadBackend(get_backend("numpy"), memory_budget=MIB)
    plain = backend.flat(gradient)
    assert len(backend._cut(plain)) > 10
    expected = get_backend("numpy").block_sums([np.array(plain)], 0.5, 1.0, 1)
    assert (backend.block_sums([plain], 0.5, 1.0, 1) == expected).all()


def test_one_file_mapped_twice_is_noticed(tmp_path):
    """At two addresses, so that no other check of overlaps can see it; what lies side by side in a file may."""
    path, hidden = tmp_path / "w", tmp_path / "g"
    np.arange(4096, dtype=np.float32).tofile(path)
    whole, half = np.memmap(path, np.float32, "r+"), np.memmap(path, np.float32, "r+", 8192)
    (tmp_path / "link").hardlink_to(path)
    linked = np.memmap(tmp_path / "link", np.float32, "r+", 4, 100)
    for other in (half, linked, half[5:7]):
        with pytest.raises(ValueError, match=f"'.' and parameter '.' overlap in the file {re.escape(str(tmp_path))}"):
            fo.SGD([whole, other])
    opt = fo.SGD([whole[:2048], half], lr=1.0)
    with pytest.raises(ValueError, match="overlap in the file"):
        opt.add_param_group({"params": linked})
    assert len(opt.param_groups) == 1
    with pytest.raises(ValueError, match="parameter '1' and gradient of parameter '0' overlap in the file"):
        opt.step([np.memmap(path, np.float32, "r", 8192), np.ones(2048, np.float32)])
    private = np.memmap(path, np.float32, "c", 8192)  # its pages are its own once they are written
    assert opt.step([np.memmap(hidden, np.float32, "w+", 0, 2048), private * 0 + 1]).applied
    np.testing.assert_array_equal(np.fromfile(path, np.float32), np.arange(4096) - np.repeat([0, 1], 2048))
