"""The run: every worker once in a round, round after round, until the time is up or everything is measured."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from importlib.machinery import PathFinder
from importlib.util import find_spec
from typing import Any, NamedTuple

from ..backends import available
from ..environment import available_memory, describe, without_paths
from .cases import Case
from .load import LoadMeter
from .results import SCHEMA, SCHEMA_VERSION
from .statistics import summarise
from .storages import STORAGES
from .subjects import ALL_SECTIONS, SUBJECTS, Subject, distribution

LEADERS = ("c", "numba", "reference")  # the first that is there is whom the others are compared with


class Mode(NamedTuple):
    """How long to measure."""

    name: str
    seconds: float  # the run's time limit
    rounds: tuple[int, int]  # least and most rounds of a case
    sittings: int  # how often a case gets new arrays
    patience: float  # seconds until a subject that does not answer is left out of a case
    block_seconds: float  # how long a subject repeats its step per round


QUICK = Mode("quick", 92.0, (4, 10), 2, 10.0, 0.01)
FULL = Mode("full", 1140.0, (6, 24), 2, 60.0, 0.025)

QUIET = 0.1  # a round in which other processes used more of the CPU time is measured again, while there is time
LARGE = 1 << 26  # bytes from which arrays lie on huge pages wherever they are, and getting ready takes most of the time


class WorkerDied(Exception):
    """The worker is gone; the message says how."""


class Worker:
    """A subject's process, with a given number of threads."""

    def __init__(self, subject: Subject, threads: int):
        self.subject = subject
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        environment = dict(os.environ)
        for name in ("OMP_NUM_THREADS", "NUMEXPR_NUM_THREADS"):
            environment[name] = str(threads)
        # No update uses BLAS, the network of the training cases does: its threads would spin where updates want to run.
        for name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
            environment[name] = "1"
        environment["NUMBA_NUM_THREADS"] = str(threads)
        if threads == 1:
            flags = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
            environment["XLA_FLAGS"] = f"{environment.get('XLA_FLAGS', '')} {flags}".strip()
        environment.setdefault("JAX_PLATFORMS", "cpu")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "fastoptim.bench.worker", json.dumps(asdict(subject))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment,
            start_new_session=True,  # Ctrl-C is for the parent, which then ends its workers
        )
        self.pid = self._process.pid
        self._buffer = b""
        self._selector = selectors.DefaultSelector()
        assert self._process.stdout is not None
        self._selector.register(self._process.stdout, selectors.EVENT_READ)

    def receive(self, patience: float) -> dict[str, Any]:
        """The next answer; WorkerDied if there is none."""
        assert self._process.stdout is not None
        limit = time.monotonic() + patience
        while b"\n" not in self._buffer:
            remaining = limit - time.monotonic()
            if remaining <= 0 or not self._selector.select(remaining):
                self.close(kill=True)
                raise WorkerDied(f"no answer within {patience:.0f} s")
            piece = os.read(self._process.stdout.fileno(), 1 << 16)
            if not piece:
                raise WorkerDied(self._last_words())
            self._buffer += piece
        line, self._buffer = self._buffer.split(b"\n", 1)
        answer: dict[str, Any] = json.loads(line)
        return answer

    def ask(self, patience: float, **request: Any) -> dict[str, Any]:
        """Send a request and wait for its answer."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            raise WorkerDied(self._last_words()) from None
        return self.receive(patience)

    def _last_words(self) -> str:
        code = self._process.wait()
        if code == -signal.SIGKILL:
            how = "was killed by the system (out of memory?)"
        elif code < 0:
            how = f"crashed ({signal.Signals(-code).name})"
        else:
            how = f"ended with status {code}"
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return without_paths(f"{how}: {lines[-1]}" if lines and code > 0 else how)

    def close(self, kill: bool = False) -> None:
        """End the process."""
        if kill:
            self._process.kill()
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._selector.close()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._errors.close()


class Pool:
    """The workers in use; all have the same number of threads."""

    def __init__(self, subjects: dict[str, Subject], patience: float, lost: Callable[[str, str], None]):
        self.subjects, self.patience, self.lost = subjects, patience, lost
        self.threads = 0
        self.workers: dict[str, Worker] = {}
        self.broken: set[str] = set()
        self.import_seconds: dict[str, list[float]] = {}

    def use(self, threads: int, names: Iterable[str]) -> None:
        """Have workers for these subjects, and end those with another number of threads."""
        if threads != self.threads:
            self.close()
            self.threads = threads
        missing = [name for name in names if name not in self.workers and name not in self.broken]
        for name in missing:
            self.workers[name] = Worker(self.subjects[name], threads)
        for name in missing:
            try:
                hello = self.workers[name].receive(max(60.0, self.patience))
            except WorkerDied as error:
                hello = {"ok": False, "reason": str(error)}
            if hello["ok"]:
                self.import_seconds.setdefault(name, []).append(hello["import_seconds"])
            else:
                self.drop(name)
                self.broken.add(name)
                self.lost(name, hello["reason"])

    def drop(self, name: str) -> None:
        worker = self.workers.pop(name, None)
        if worker is not None:
            worker.close(kill=True)

    def pids(self) -> list[int]:
        return [worker.pid for worker in self.workers.values()]

    def close(self) -> None:
        for name in list(self.workers):
            self.workers.pop(name).close()


START_UP = """
import json, time
times = [time.perf_counter()]
import numpy as np
times.append(time.perf_counter())
import fastoptim as fo
times.append(time.perf_counter())
p, g = np.ones(1000, np.float32), np.ones(1000, np.float32)
start = time.perf_counter()
fo.Adam(p).step(g)
times.append(time.perf_counter() - start + times[-1])
print(json.dumps([b - a for a, b in zip(times, times[1:])]))
"""


def start_up(rounds: int = 7) -> dict[str, list[float]]:
    """Seconds that a new process takes to import numpy, then fastoptim, then to make its first step."""
    names = ("numpy_import_seconds", "import_seconds", "first_step_seconds")
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        answer = subprocess.run([sys.executable, "-c", START_UP], capture_output=True, text=True, check=False)
        if answer.returncode:
            raise WorkerDied((answer.stderr.strip().splitlines() or ["no message"])[-1])
        for name, seconds in zip(names, json.loads(answer.stdout), strict=True):
            times[name].append(seconds)
    return times


class Bar:
    """A progress bar: one line that is redrawn on a terminal, one line per section elsewhere."""

    def __init__(self, total: int, stream: Any):
        self.total, self.stream, self.done, self.section = total, stream, 0, ""
        self.start = time.monotonic()
        self.live = stream.isatty()

    def show(self, done: int, case: Case) -> None:
        self.done = done
        if self.live:
            width = 24
            full = width * self.done // max(1, self.total)
            bar = "#" * full + "-" * (width - full)
            text = f"[{bar}] {self.done}/{self.total}  {time.monotonic() - self.start:4.0f} s  {case.name}"
            print(f"\r{text[:110]:110}", end="", file=self.stream, flush=True)
        elif case.section != self.section:
            self.section = case.section
            seconds = time.monotonic() - self.start
            print(f"{self.done}/{self.total} cases, {seconds:.0f} s: {case.section}", file=self.stream, flush=True)

    def close(self) -> None:
        if self.live:
            print(file=self.stream, flush=True)


def choose(against: Sequence[str] | None, mode: Mode) -> tuple[dict[str, Subject], list[dict[str, str]]]:
    """The subjects of the families in `against` (None: all that are installed), and what is left out.

    ``name=module:function`` adds a subject of the user's own; see `subjects.Subject.factory`.
    """
    known = SUBJECTS | STORAGES
    families = {subject.family for subject in known.values()} - {"fastoptim"}
    wanted = families if against is None else {name for name in against if "=" not in name}
    unknown = wanted - families
    if unknown:
        raise ValueError(f"--against knows {', '.join(sorted(families))}; got {', '.join(sorted(unknown))}")
    chosen, left_out = {}, []
    for name, subject in known.items():
        reason = None
        missing = [distribution(module) for module in subject.requires if find_spec(module) is None]
        if subject.family == "fastoptim":
            reason = available({"reference": "numpy"}.get(name, name.partition("-")[0]))
        elif subject.family not in wanted:
            reason = "not asked for"
        if reason is None and missing:
            reason = f"not installed: pip install {' '.join(missing)}"
        elif reason is None and against is None and mode.name == QUICK.name and not subject.quick:
            reason = "only in a full run, or where --against names it"
        if reason is None:
            chosen[name] = subject
        else:
            left_out.append({"what": subject.title, "why": without_paths(reason)})
    for own in against or ():
        if "=" in own:
            name, factory = own.split("=", 1)
            if not name or ":" not in factory or name in known:
                raise ValueError(f"--against takes a new name=module:function, got {own!r}")
            module = factory.partition(":")[0]
            package = module.partition(".")[0]  # workers find what is in this folder, too
            if not package or not (find_spec(package) or PathFinder.find_spec(package, [os.getcwd()])):
                raise ValueError(f"--against {own}: there is no module {module!r} here")
            chosen[name] = Subject(name, "own", factory, sections=ALL_SECTIONS[:-1], threaded=True)
    return chosen, left_out


class Run:
    """One benchmark run; `document` is what results.json will hold, at any moment."""

    def __init__(self, mode: Mode, subjects: dict[str, Subject], left_out: list[dict[str, str]], stream: Any):
        self.mode, self.subjects, self.stream = mode, subjects, stream
        self.focus = next(name for name in LEADERS if name in subjects)
        self.started = time.monotonic()
        self.load = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
        self.pool = Pool(subjects, mode.patience, lambda name, why: self._lost(subjects[name].title, why))
        self.document: dict[str, Any] = {
            "schema": SCHEMA,
            "schema_version": SCHEMA_VERSION,
            "mode": mode.name,
            "complete": False,
            "machine": describe(),
            "settings": {
                "rounds": list(mode.rounds),
                "sittings": mode.sittings,
                "time_limit_seconds": mode.seconds,
                "focus": self.focus,
                "block_ms": mode.block_seconds * 1e3,
            },
            "subjects": {
                name: {"title": s.title, "family": s.family, "threaded": s.threaded} for name, s in subjects.items()
            },
            "cases": [],
            "start_up": {},
            "left_out": left_out,
            "not_reached": [],
        }

    def _lost(self, what: str, why: str) -> None:
        entry = {"what": what, "why": without_paths(why)}
        if entry not in self.document["left_out"]:
            self.document["left_out"].append(entry)

    def _remaining(self) -> float:
        return self.mode.seconds - (time.monotonic() - self.started)

    def measure(self, cases: Sequence[Case]) -> None:
        """Measure the cases; what was measured before Ctrl-C stays, and the document says that it is not all."""
        bar = Bar(len(cases), self.stream)
        done = 0
        try:
            try:
                self.document["start_up"]["fastoptim"] = start_up()
            except WorkerDied as error:
                self._lost("start-up times", str(error))
            for done, case in enumerate(cases):
                if self._remaining() <= 0:
                    break
                bar.show(done, case)
                self._case(case, self._remaining() / (len(cases) - done))
            else:
                done = len(cases)
        except KeyboardInterrupt:
            self.document["interrupted"] = True
        finally:
            bar.close()
            self.pool.close()
        self._finish(cases)
        missing = self.document["not_reached"]
        self.document["complete"] = done == len(cases) and not missing
        if missing:
            why = "the run was interrupted" if "interrupted" in self.document else "the time limit was reached"
            self._lost(f"{len(missing)} of {len(cases)} cases, first {missing[0]}", why)

    def _finish(self, cases: Sequence[Case]) -> None:
        for entry in self.document["cases"]:
            entry["results"] = {key: result for key, result in entry["results"].items() if result["seconds"]}
        begun = {entry["name"]: entry for entry in self.document["cases"]}
        reached = [case.name for case in cases if case.name in begun and self._has_ended(case, begun[case.name])]
        self.document["not_reached"] = [case.name for case in cases if case.name not in reached]
        self.document["cases"] = [begun[name] for name in reached]
        for name, seconds in self.pool.import_seconds.items():
            if self.subjects[name].requires:
                self.document["start_up"][name] = {"import_seconds": seconds}
        self.document["noise"] = self._noise()
        self.document["seconds"] = round(time.monotonic() - self.started, 1)

    def _has_ended(self, case: Case, entry: dict[str, Any]) -> bool:
        """Whether something was measured, or nobody can be."""
        return bool(entry["results"]) or not set(self._names(case, {"left_out": {}})) - entry["left_out"].keys()

    def _noise(self) -> dict[str, Any]:
        cases = [entry for entry in self.document["cases"] if entry["results"]]
        spreads = [summarise(r["seconds"]).spread for entry in cases for r in entry["results"].values()]
        return {
            "load_average_at_start": self.load,
            "rounds": sum(entry["rounds"] for entry in cases),
            "rounds_kept": sum(entry["rounds_kept"] for entry in cases),
            "others_at_most": max((entry["others"] for entry in cases), default=0.0),
            "disturbed_cases": sum(entry["others"] > QUIET for entry in cases),
            "median_spread": round(summarise(spreads).median, 4) if spreads else None,
        }

    # --- one case

    def _names(self, case: Case, entry: dict[str, Any]) -> list[str]:
        """Subjects that can do this case; the others are written down with the reason."""
        names = []
        for name, subject in self.subjects.items():
            if name in self.pool.broken:
                continue
            if case.section not in subject.sections:
                if "storage" in (case.section, *subject.sections):
                    continue  # a comparison of its own
                reason = {"clip": "no clipping", "rows": "no gradients of rows"}.get(case.section, "cannot be timed so")
            elif case.count > subject.max_arrays:
                reason = f"compiling a step for {case.count} arrays takes too long"
            elif case.elements > subject.max_elements:
                reason = f"timed up to {subject.max_elements:,} elements only: it is far from the limit there"
            else:
                names.append(name)
                continue
            entry["left_out"][name] = reason
        return names

    def _groups(self, case: Case, names: list[str]) -> list[list[str]]:
        """Subjects that fit into memory at the same time; the focus is in every group."""
        budget = 0.6 * available_memory()
        leader = [name for name in names if name == self.focus]
        first = sum(case.resident_bytes * self.subjects[name].memory for name in leader)
        groups, size = [list(leader)], first
        for name in names:
            if name in leader:
                continue
            need = case.resident_bytes * self.subjects[name].memory
            if size + need > budget and len(groups[-1]) > len(leader):
                groups.append(list(leader))
                size = first
            groups[-1].append(name)
            size += need
        return groups

    def _case(self, case: Case, share: float) -> None:
        entry: dict[str, Any] = case.to_json() | {"results": {}, "left_out": {}}
        names = self._names(case, entry)
        self.pool.use(case.threads, names)
        self.document["cases"].append(entry)
        sittings = 1 if case.resident_bytes > LARGE else self.mode.sittings
        start = time.monotonic()
        for sitting in range(sittings):
            groups = self._groups(case, [name for name in names if name not in entry["left_out"]])
            until = start + share * (sitting + 1) / sittings
            for k, group in enumerate(groups):
                now = time.monotonic()
                self._group(case, group, entry, now + max(0.0, until - now) / (len(groups) - k), sittings)
            if self._remaining() <= 0:
                break

    def _fail(self, entry: dict[str, Any], name: str, reason: str) -> None:
        """Strike a subject out of this case, with whatever it had measured."""
        entry["left_out"][name] = without_paths(reason)
        for key in [key for key, result in entry["results"].items() if result["subject"] == name]:
            del entry["results"][key]

    def _ask(self, entry: dict[str, Any], name: str, **request: Any) -> dict[str, Any] | None:
        """The worker's answer, or None if this subject is out of the case."""
        try:
            self.pool.use(self.pool.threads, [name])
            worker = self.pool.workers.get(name)
            if worker is None:
                return None
            answer = worker.ask(self.mode.patience, **request)
        except WorkerDied as error:
            self.pool.drop(name)
            self._fail(entry, name, str(error))
            return None
        if not answer["ok"]:
            self._fail(entry, name, answer["reason"])
            return None
        return answer

    def _group(self, case: Case, group: list[str], entry: dict[str, Any], until: float, sittings: int) -> None:
        """Rounds in which every subject of the group is timed once."""
        loops: dict[str, list[str]] = {}
        for name in group:
            if self._remaining() <= 0:
                break
            first = name not in entry["results"]
            ready = self._ask(
                entry, name, do="ready", case=case.to_json(), block_seconds=self.mode.block_seconds, check=first
            )
            if ready is None:
                continue
            loops[name] = ready["loops"]
            for loop in ready["loops"]:
                key = name if loop == "step" else loop
                result = entry["results"].setdefault(key, {"subject": name, "seconds": [], "speedup_of_focus": []})
                if loop == "step" and first:
                    result |= {name: x for name, x in ready.items() if name not in ("ok", "loops") and x is not None}
        least, most = (-(-count // sittings) for count in self.mode.rounds)
        rounds: list[tuple[float, dict[str, dict[str, float]]]] = []
        while loops:
            meter = LoadMeter(self.pool.pids())
            turn = len(rounds) % len(loops)
            timed: dict[str, dict[str, float]] = {}
            for name in [*list(loops)[turn:], *list(loops)[:turn]]:
                for loop in loops[name]:
                    answer = self._ask(entry, name, do="run", loop=loop)
                    if answer is None:
                        del loops[name]
                        break
                    timed[name if loop == "step" else loop] = answer
            rounds.append((meter.others(), timed))
            quiet = sum(others <= QUIET for others, _ in rounds)
            late = time.monotonic() > until or len(rounds) >= 3 * most
            if quiet >= most or (late and len(rounds) >= least) or self._remaining() < -5:
                break
        for name in loops:
            self._ask(entry, name, do="drop")
        kept = [r for r in rounds if r[0] <= QUIET]
        if len(kept) < least:
            kept = sorted(rounds, key=lambda r: r[0])[:least]
        for key in ("rounds", "rounds_kept"):
            entry[key] = entry.get(key, 0) + len(rounds if key == "rounds" else kept)
        entry["others"] = round(max([entry.get("others", 0.0), *(others for others, _ in kept)]), 3)
        for _, timed in kept:
            self._enter(entry, timed)

    def _enter(self, entry: dict[str, Any], timed: dict[str, dict[str, float]]) -> None:
        """Add one round to the results."""
        for key, answer in timed.items():
            if key not in entry["results"]:
                continue  # struck out later
            result = entry["results"][key]
            result["seconds"].append(answer["seconds"])
            if "update_seconds" in answer:
                result.setdefault("update_seconds", []).append(answer["update_seconds"])
            if self.focus in timed and key != self.focus:
                result["speedup_of_focus"].append(answer["seconds"] / timed[self.focus]["seconds"])
            if "roofline" in timed and key != "roofline":
                shares = result.setdefault("share_of_roofline", [])
                shares.append(timed["roofline"]["seconds"] / answer["seconds"])
