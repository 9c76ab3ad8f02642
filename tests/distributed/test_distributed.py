"""Several processes: the bits of one, errors on every rank, checkpoints that any number of ranks can load.

The ranks' side of these tests is in ``mpi_worker.py``; the whole of it, on up to four ranks, in ``proofs/mpi_*.py``.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from functools import partial
from inspect import signature

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastoptim as fo
from fastoptim.distributed.partition import buckets, ranges
from fastoptim.rules.norm import NORM_BLOCK
from tests.support import PROOFS, ROOT, mpi
from tests.support.platforms import needs_mpi

WORKER = ROOT / "tests" / "support" / "mpi_worker.py"
run = partial(mpi.run_worker, WORKER)
EXAMPLE = mpi.ROOT / "examples" / "digits_mpi.py"


# --- Who owns what ------------------------------------------------------------------------------------------------

some_sizes = st.lists(st.integers(0, 5 * NORM_BLOCK), min_size=1, max_size=8)


@settings(deadline=None, max_examples=200)
@given(sizes=some_sizes, ranks=st.integers(1, 7), blocks=st.integers(1, 9))
def test_every_element_has_one_owner_and_cuts_lie_between_blocks(sizes, ranks, blocks):
    numbers = [3 * i for i in range(len(sizes))]
    found = buckets(0, np.dtype(np.float32), sizes, numbers, ranks, blocks * NORM_BLOCK)
    owners = {number: np.zeros(size, int) for number, size in zip(numbers, sizes, strict=True)}
    positions = []
    for rank in range(ranks):
        for bucket in found:
            for number, start, stop in bucket.parts[rank]:
                owners[number][start:stop] += 1
                positions.append((number, start))
                assert start % NORM_BLOCK == 0
                assert stop % NORM_BLOCK == 0 or stop == owners[number].size
    assert all((count == 1).all() for count in owners.values())
    assert positions == sorted(positions) or 0 in sizes  # slices are contiguous, in the order of ranks
    assert {number for number, _ in positions} == set(numbers)
    for bucket in found:
        assert bucket.counts == tuple(sum(part.size for part in own) for own in bucket.parts)
        assert bucket.displacements == tuple(np.cumsum([0, *bucket.counts[:-1]]))
        assert max(bucket.counts) <= (blocks + 1) * NORM_BLOCK
    share = sum(sizes) / ranks
    for rank in range(ranks):
        owned = sum(stop - start for start, stop in ranges(found, rank).values())
        assert abs(owned - share) <= NORM_BLOCK


# --- The same bits ------------------------------------------------------------------------------------------------


@needs_mpi
@pytest.mark.parametrize(("ranks", "every", "cases"), [(2, 31, 15), (3, 115, 4)])
def test_ranks_have_the_bits_of_one_process(ranks, every, cases):
    done = mpi.run(ranks, PROOFS / "mpi_bits.py", "--worker", "--steps", 8, "--every", every)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"{ranks} ranks: {cases} cases of 8 steps" in done.stdout and "0 bits differ" in done.stdout


@needs_mpi
def test_the_bits_are_compared_at_all():
    """The proof fails where one element of a reduced gradient is another."""
    planted = (
        "import sys; sys.argv = ['mpi_bits.py', '--worker', '--steps', '2', '--every', '32']\n"
        "import runpy, fastoptim.distributed.channel as c\n"
        "finish = c.Channel.finish_reduce\n"
        "def flip(self, bucket, buffers):\n"
        "    own = finish(self, bucket, buffers)\n"
        "    own[-1:] += 1\n"
        "    return own\n"
        "c.Channel.finish_reduce = flip\n"
        f"runpy.run_path({str(PROOFS / 'mpi_bits.py')!r}, run_name='__main__')\n"
    )
    done = mpi.run(2, "-c", planted)
    assert done.returncode != 0
    assert "AssertionError: step 0: parameter" in done.stderr


# --- One face, and errors on every rank ---------------------------------------------------------------------------


@needs_mpi
@pytest.mark.parametrize("name", ["construction", "steps", "modes", "clipping", "memory", "busy", "face"])
def test_ranks_agree(name):
    run(2, name)


@needs_mpi
@pytest.mark.parametrize(
    "name", ["differing", "mapped_twice", "modes_of_files", "interrupted", "numbers", "full_folder"]
)
def test_ranks_and_files(tmp_path, name):
    run(2, name, tmp_path / "run")


@needs_mpi
def test_one_rank_is_the_plain_optimizer():
    assert str(signature(fo.distributed.ShardedOptimizer.step)) == str(signature(fo.SGD.step))
    run(1, "alone")


@needs_mpi
def test_an_exception_on_one_rank_ends_the_job_with_its_traceback():
    done = mpi.run(2, WORKER, "uncaught", timeout=30)  # the other rank would wait for an hour
    assert done.returncode != 0
    assert "planted in the user's own code" in done.stderr and "rank 1 of 2 ends the job" in done.stderr


def test_without_mpi4py_one_sentence_says_what_to_install():
    code = (
        "import sys; sys.modules['mpi4py'] = None\n"
        "import numpy as np, fastoptim as fo\n"
        "fo.distributed.ShardedOptimizer(fo.Adam, np.ones(3))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    last = done.stderr.strip().split("\n")[-1]
    assert last.startswith("ImportError: ShardedOptimizer needs mpi4py") and "pip install mpi4py" in last


# --- Checkpoints --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with a checkpoint that two ranks wrote after three steps, the one before it, and a plain one."""
    folder = tmp_path_factory.mktemp("mpi")
    run(2, "save", folder / "run", 3)
    return folder


@needs_mpi
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_saved_by_two_loaded_by_any_number(saved, ranks):
    run(ranks, "load", saved / "run", saved / "run", saved / "run.plain")


@needs_mpi
def test_saved_by_two_loaded_by_a_plain_optimizer(saved):
    names = [path.name for path in saved.iterdir()]
    assert len(names) == len({"run", "run.previous", "run.plain"}) + 2 * 2  # no slices of older checkpoints
    loaded = []
    for name in ("run", "run.plain"):
        params = {
            "w": np.ones((3, NORM_BLOCK), np.float32),
            "b": np.ones(40),
            "f": np.ones((80, 90), np.float32, order="F"),
            "none": np.ones((0, 3), np.float32),
        }
        opt = fo.Adam(params, lr=1.0)
        opt.load(saved / name)
        states = opt.state_dict()["state"]
        loaded.append(
            [
                [p.tobytes() for p in params.values()],
                [[x if key == "step" else x.tobytes() for key, x in entry.items()] for entry in states.values()],
                opt.lr,
            ]
        )
    assert loaded[0] == loaded[1]
    with pytest.raises(fo.CheckpointError, match="other parameters"):
        fo.Adam({"v": np.ones(3)}).load(saved / "run")
    with pytest.raises(fo.CheckpointError, match="SGD"):
        fo.SGD({"w": params["w"], "b": params["b"], "f": params["f"], "none": params["none"]}).load(saved / "run")


@pytest.fixture(scope="module")
def saved_low(tmp_path_factory):
    pytest.importorskip("ml_dtypes", reason="bfloat16 and float8 come with ml_dtypes")
    path = tmp_path_factory.mktemp("low") / "run"
    run(2, "save_low", path)
    return path


@needs_mpi
@pytest.mark.parametrize("ranks", [1, 3])
def test_states_in_fewer_bits_saved_by_two_loaded_by_any_number(saved_low, ranks):
    run(ranks, "load_low", saved_low)


# What becomes of two slices, and what is said of it.
DAMAGES = {
    "altered": (lambda one, two: two.write_bytes(two.read_bytes()[:-5] + bytes(5)), "checksum"),
    "cut": (lambda one, two: one.write_bytes(one.read_bytes()[:-1]), "checksum"),
    "missing": (lambda one, two: two.unlink(), "is missing"),
    "exchanged": (shutil.copy, "do not make up the whole"),
}


@needs_mpi
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_slice_is_refused_on_every_rank(saved, tmp_path, damage):
    change, text = DAMAGES[damage]
    for path in saved.iterdir():
        shutil.copy(path, tmp_path)
    newest = max(saved.glob("run.*.0"), key=lambda path: path.stat().st_mtime_ns).name.removesuffix("0")
    change(*(tmp_path / f"{newest}{rank}" for rank in range(2)))
    run(2, "refuse", tmp_path / "run", text)
    params = {"w": np.ones((3, NORM_BLOCK), np.float32), "b": np.ones(40), "f": np.ones((80, 90), np.float32)}
    params["none"] = np.ones((0, 3), np.float32)
    with pytest.raises(fo.CheckpointError, match=text):
        fo.Adam(params).load(tmp_path / "run")
    assert all((p == 1).all() for p in params.values())


@needs_mpi
def test_killed_in_mid_step():
    done = subprocess.run(
        [sys.executable, PROOFS / "mpi_kill.py", "--trials", "1"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 kills" in done.stdout


@needs_mpi
def test_separate_hosts():
    done = subprocess.run(
        [sys.executable, PROOFS / "mpi_hosts.py", "--every", "25"], capture_output=True, text=True, check=False
    )
    if done.returncode == 77:
        pytest.skip(f"NOT TESTED: ranks on separate hosts: {done.stdout.strip()}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 bits differ" in done.stdout


@needs_mpi
def test_the_example_learns(tmp_path):
    pytest.importorskip("sklearn", reason="the small digits come with scikit-learn")
    arguments = ["--data", "sklearn", "--hidden", "32", "--epochs", "6", "--batch", "120", "--lr", "0.01"]
    done = mpi.run(2, EXAMPLE, *arguments, "--checkpoint", tmp_path / "digits")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "parameters are the same in all processes" in done.stdout
    accuracy = float(done.stdout.split("test accuracy ")[1].split("%")[0])
    assert accuracy > 85
