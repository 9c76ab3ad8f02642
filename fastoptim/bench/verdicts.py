"""Say in a few sentences what a run found, and what speaks against relying on it."""

from __future__ import annotations

import re
from collections.abc import Callable

from .cases import TRAINING_SIZES
from .results import Entry, Results, case_text, ratio_text, seconds_text, share_text, threads_text
from .statistics import BUSY, FEWEST_ROUNDS, NOISY, Summary, summarise, verdict

NETWORK = "-".join(map(str, TRAINING_SIZES))


def notices(results: Results) -> list[str]:
    """Warn of what makes this run unfit to decide by."""
    noise, cases = results.document["noise"], len(results.cases)
    reasons, found = [], []
    if noise["disturbed_cases"] > BUSY * cases:
        reasons.append(
            f"in {noise['disturbed_cases']} of {cases} cases other programs used more than a tenth of the processor, "
            f"up to {noise['others_at_most']:.0%}"
        )
    noisy, rows = results.noisy_rows()
    if noisy > BUSY * rows:
        reasons.append(f"{noisy} of {rows} rows spread by more than {NOISY:.0%}")
    if reasons:
        found.append(f"This machine was busy: do not decide by these figures ({'; '.join(reasons)}).")
    if missing := results.document["not_reached"]:
        threads = {entry["threads"] for entry in results.cases}
        without = sorted({int(re.findall(r"\d+", name)[-1]) for name in missing} - threads)
        all_of = f", among them all with {' or '.join(map(threads_text, without))}" if without else ""
        why = "the run was interrupted" if results.document.get("interrupted") else "the time was up"
        found.append(f"Not complete: {len(missing)} of {cases + len(missing)} cases are missing{all_of} ({why}).")
    return found


def training_verdicts(results: Results) -> list[str]:
    """Say what updates take of a training step, with NumPy and with fastoptim."""
    found = []
    for entry in results.select("training"):
        pairs = [(key, entry["results"][key]) for key in ("numpy-naive", results.focus) if key in entry["results"]]
        if len(pairs) < 2:
            continue
        step = [summarise(result["seconds"]) for _, result in pairs]
        update = [summarise(result["update_seconds"]) for _, result in pairs]
        what = f"One training step of a {NETWORK} network, {entry['label']}, {threads_text(entry['threads'])}"
        if max(s.spread for s in step) > NOISY:
            found.append(f"{what}: no figure, as its times spread by more than {NOISY:.0%}.")
            continue
        shares = [f"{u.median / s.median:.0%}" for s, u in zip(step, update, strict=True)]
        found.append(
            f"{what}: updates take {shares[0]} of it with {results.title(pairs[0][0])} and {shares[1]} with "
            f"{results.title(results.focus)}; the step takes {seconds_text(step[0].median)} and "
            f"{seconds_text(step[1].median)}, {ratio_text(step[0].median / step[1].median)} as fast."
        )
    if found:
        found.append(
            "For your own network, time the updates alone: if they take the share s of a step, no update can make it "
            "more than 1 / (1 - s) times as fast."
        )
    return found


def _span(rows: list[tuple[Entry, Summary]], text: Callable[[float], str]) -> str:
    """Least and greatest of the rows that can be quoted, each with its case."""
    quiet = [(entry, s.median) for entry, s in rows if s.spread <= NOISY and s.rounds >= FEWEST_ROUNDS]
    if not quiet:
        return f"no figure, as all rows spread by more than {NOISY:.0%} or have too few rounds"
    low, high = min(quiet, key=lambda row: row[1]), max(quiet, key=lambda row: row[1])
    span = f"{text(low[1])} ({low[0]['label']})"
    if text(high[1]) != text(low[1]):
        span += f" to {text(high[1])} ({high[0]['label']})"
    left_out = len(rows) - len(quiet)
    return span + (f"; too noisy to be quoted: {left_out} of {len(rows)} rows" if left_out else "")


def roofline_verdict(results: Results) -> list[str]:
    """Say how near the speed of memory the focus comes."""
    rows = [
        (entry, share)
        for entry in results.select("size", dtype="float32")
        if results.level(entry) == "memory" and (share := results.share_of_roofline(entry, results.focus))
    ]
    if not rows:
        return []
    named = [(entry | {"label": case_text(entry)}, share) for entry, share in rows]
    return [
        "Share of the roofline (a loop that moves the same bytes with the same threads and computes next to nothing) "
        f"that {results.title(results.focus)} reaches on arrays too large for the caches: {_span(named, share_text)}."
    ]


def peer_verdicts(results: Results) -> list[str]:
    """Say how many times faster Adam is than what people use instead."""
    found = []
    for key in ("numpy-naive", "numpy-in-place", "torch-default", "torch-fused", "optax"):
        entries = results.sizes("adam", results.threads)
        rows = [(entry, summarise(ratios)) for entry in entries if (ratios := results.ratios(entry, key))]
        if rows:
            span = _span([(e | {"label": f"{e['label']} elements"}, ratio) for e, ratio in rows], ratio_text)
            found.append(f"Times as fast as {results.title(key)} (Adam, {threads_text(results.threads)}): {span}.")
    return found


def tally(results: Results) -> list[str]:
    """Count losses and what cannot be told from them."""
    met = [(entry, key, summarise(r).median, verdict(r)) for entry, key, r in results.compared()]
    if not met:
        return []
    lost = sorted((row for row in met if row[3] == "loss"), key=lambda row: row[2])
    ties = [row[2] for row in met if row[3] == "tie"]
    text = f"{results.title(results.focus)} loses in {len(lost)} of {len(met)} comparisons"
    if lost:
        listed = "; ".join(f"{results.title(key)} at {case_text(e)}: {ratio_text(r)}" for e, key, r, _ in lost[:5])
        text += f"{', most clearly' if len(lost) > 1 else ':'} to {listed}"
    if ties:
        span = f"{ratio_text(min(ties))} to {ratio_text(max(ties))}"
        text += f". In {len(ties)} more the rounds spread too much to tell (medians {span})"
    found = [f"{text}."]
    if too_few := sum(row[3] == "unknown" for row in met):
        found.append(f"{too_few} of these comparisons have fewer than {FEWEST_ROUNDS} rounds: too few to tell.")
    return found


def in_short(results: Results) -> list[str]:
    """Sum up the findings in a few sentences, losses included."""
    parts = training_verdicts, peer_verdicts, roofline_verdict, tally
    return [sentence for part in parts for sentence in part(results)]
