"""Can the figures be believed? Each check is a value: what was looked at, how it came out, in one sentence.

Pure. "bad" makes figures unusable, "warn" limits what may be said with them, "good" and "unknown" say so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from joulegraph.live.render import duration
from joulegraph.report.facts import Facts
from joulegraph.report.summary import lateness_ns, quantiles

Verdict = Literal["good", "warn", "bad", "unknown"]
LATENESS_NS = 20_000_000
UNMEASURED = 0.01
SCALE = (0.9, 1.1)


@dataclass(frozen=True, slots=True)
class Check:
    """One look at the run's own honesty."""

    name: str
    verdict: Verdict
    sentence: str


def checks(facts: Facts) -> list[Check]:
    """All checks in order of weight."""
    found = [
        _state(facts),
        _trace(facts),
        _requests(facts),
        _lateness(facts),
        _usage(facts),
        *_energy(facts),
        _sampler(facts),
    ]
    return [*(c for c in found if c is not None), *_simulated(facts)]


def _state(facts: Facts) -> Check:
    state, why = facts.info.get("state"), facts.info.get("why")
    if isinstance(why, list):
        why = " ".join(why)
    why = str(why or "no reason recorded").rstrip(".")
    match state:
        case "complete":
            return Check("run", "good", "The run ended as planned.")
        case "invalid":
            return Check("run", "bad", f"The run is invalid: {why}.")
        case "interrupted":
            return Check("run", "warn", f"The run was interrupted: {why}; figures cover what ran.")
        case _:
            return Check("run", "warn", f"The run's state is {state!r}: it is going on, or ended without saying so.")


def _trace(facts: Facts) -> Check | None:
    left_out = facts.info.get("left_out")
    if not left_out:
        return None
    count, first = left_out["count"], left_out["first"][0]
    return Check(
        "trace", "warn", f"Faults of the trace: {count:,}. What they are about was not replayed; first: {first}."
    )


def _requests(facts: Facts) -> Check:
    llm = [r for r in facts.requests if r.kind == "llm"]
    bad: dict[str, int] = {}
    for r in llm:
        if r.outcome != "ok":
            bad[r.outcome] = bad.get(r.outcome, 0) + 1
    if not bad:
        return Check("requests", "good", f"All {len(llm):,} requests ended well.")
    words = ", ".join(f"{n:,} {what}" for what, n in sorted(bad.items()))
    only_refused = set(bad) <= {"rejected", "skipped", "cancelled"}
    return Check(
        "requests",
        "warn" if only_refused or sum(bad.values()) < len(llm) else "bad",
        f"{words} of {len(llm):,} requests.",
    )


def _lateness(facts: Facts) -> Check:
    if not facts.planned:
        return Check("lateness", "unknown", "Live traffic: nothing was planned, so nothing can be late.")
    found = quantiles(lateness_ns(r) for r in facts.requests if r.kind == "llm")
    if found is None:
        return Check("lateness", "unknown", "No request was sent.")
    p99 = round(found["p99"])
    verdict: Verdict = "good" if p99 <= LATENESS_NS else "bad"
    return Check(
        "lateness",
        verdict,
        f"Requests were sent {duration(p99)} after they were due at p99 (bound {duration(LATENESS_NS)}).",
    )


def _usage(facts: Facts) -> Check | None:
    """Did the engine read and write as many tokens as planned?"""
    plans = [r for r in facts.requests if r.outcome == "ok" and r.kind == "llm" and None not in r.planned_tokens]
    if not plans:
        return None
    told = [r for r in plans if r.prompt_tokens is not None and r.output_tokens is not None]
    exact = sum((r.prompt_tokens, r.output_tokens) == r.planned_tokens for r in told)
    missing = len(plans) - len(told)
    words = f"{exact:,} of {len(plans):,} replies have exactly the planned prompt and output tokens"
    words += f"; {missing:,} came without usage." if missing else "."
    return Check("tokens", "good" if exact == len(plans) else "warn", words)


def _energy(facts: Facts) -> list[Check]:
    ledger = facts.ledger
    if ledger is None or not ledger.get("measured_uj"):
        return [Check("energy", "unknown", "No energy was measured: joules are unknown, not zero.")]
    out = [_closure(ledger), _unmeasured(ledger)]
    scale = ledger.get("scale")
    if scale:
        inside = SCALE[0] <= scale["p5"] and scale["p95"] <= SCALE[1]
        out.append(
            Check(
                "model",
                "good" if inside else "warn",
                f"Measured over modelled energy per block: p5 {scale['p5']:.3f}, p50 {scale['p50']:.3f}, "
                f"p95 {scale['p95']:.3f} (1 is a perfect model; joules are scaled to the measured total either way).",
            )
        )
    truth = facts.truth
    if truth:
        out.append(
            Check(
                "truth",
                "good" if truth["median"] <= 0.05 else "warn",
                f"Against the embedded engine's true joules per request: median error {truth['median']:.1%}, "
                f"p95 {truth['p95']:.1%}.",
            )
        )
    return out


def _closure(ledger: dict[str, Any]) -> Check:
    off = sum(abs(book.get("closure_uj") or 0) for book in (ledger.get("components") or {"": ledger}).values())
    if off:
        return Check("ledger", "bad", f"The ledger does not close: {off:,} uJ are on neither side.")
    return Check("ledger", "good", "The ledger closes: every measured microjoule is in exactly one place.")


def _unmeasured(ledger: dict[str, Any]) -> Check:
    share = (ledger.get("unmeasured_uj") or 0) / ledger["measured_uj"]
    verdict: Verdict = "good" if share <= UNMEASURED else "warn"
    return Check("coverage", verdict, f"{share:.1%} of the measured energy lies where it could not be attributed.")


def _sampler(facts: Facts) -> Check | None:
    if not facts.sampling:
        return None
    s = facts.sampling
    trouble = [
        f"{s[k]:,} {what}" for k, what in (("gap", "gaps"), ("reset", "resets"), ("lost", "sensors lost")) if s.get(k)
    ]
    missed = s.get("missed", 0)
    if missed:
        trouble.append(f"{missed:,} of {s.get('ticks', 0):,} reads missed")
    serious = any(s.get(k) for k in ("gap", "reset", "lost")) or missed > 0.01 * max(1, s.get("ticks", 0))
    words = ", ".join(trouble) if trouble else f"no gap, no reset, no read missed in {s.get('ticks', 0):,}"
    return Check("sampler", "warn" if serious else "good", f"Power sampling: {words}.")


def _simulated(facts: Facts) -> list[Check]:
    if not any(s.get("simulated") for s in facts.sensors):
        return []
    return [
        Check(
            "sensors",
            "warn",
            "Power comes from simulated sensors of the embedded engine: it shows the method, not any real machine.",
        )
    ]
