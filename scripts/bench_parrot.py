"""What our proxy costs and sees in front of a Parrot that runs, with `joulegraph bridge parrot --record` as its engine.

Two parts. Probes: one client, a chain and a map-reduce at a time, in turn directly (core), through the proxy, and
through the proxy without its passive reads: how long a submission takes to be answered, how long until the sink's value
is read, medians with distribution-free 95 % intervals. Patterns: the four workloads replayed in turn with and without
the proxy: calls answered, edges the proxy found in the exchange itself of those in the trace, exact lengths as the
engine counted them, makespans.

    python scripts/bench_parrot.py --core http://127.0.0.1:9000 --journal bridge.jsonl \
        [--rounds 15] [--scale 0.05] [--json]
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parent.parent
CLI = [sys.executable, "-m", "joulegraph"]
PATTERNS = {
    "sequential": ["--count", "3", "--rate", "1", "--param", "document=6000"],
    "interactive": ["--count", "6", "--rate", "2", "--param", "output=100-300"],
    "agentic": ["--count", "1", "--param", "files=3", "--param", "rounds=1"],
    "composite": [
        "--count", "6", "--rate", "1", "--param", "mix=sequential:1,interactive:2,agentic:1", "--param",
        "label=members", "--param", "sequential.document=4000", "--param", "agentic.files=3", "--param",
        "agentic.rounds=1",
    ],
}  # fmt: skip
SAMPLING = {"max_gen_length": 8, "ignore_tokenizer_eos": True, "temperature": 1.0, "top_p": 1.0}


class Client:
    """A plain client of a Parrot's public API: a connection per request, as its own frontend."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 80

    def ask(self, method: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """One request; ends the script on anything but 200."""
        connection = http.client.HTTPConnection(self._host, self._port, timeout=120)
        connection.request(method, path, json.dumps(body), {"Content-Type": "application/json"})
        reply = connection.getresponse()
        raw = reply.read()
        connection.close()
        if reply.status != 200:
            sys.exit(f"{method} {path}: {reply.status} {raw[:300]!r}")
        found: dict[str, Any] = json.loads(raw)
        return found


def call(session: int, text: str, inputs: list[str]) -> dict[str, Any]:
    """A semantic call on earlier outputs."""
    given = [{"name": f"i{k}", "is_output": False, "var_id": v} for k, v in enumerate(inputs)]
    template = text + "".join(f"{{{{{p['name']}}}}} the" for p in given) + " of{{out}}"
    out = {"name": "out", "is_output": True, "sampling_config": SAMPLING}
    return {"session_id": session, "template": template, "parameters": [*given, out], "model_type": "token_id"}


def probe(client: Client, shape: str, salt: int) -> tuple[list[float], float]:
    """(ms until each submission was answered, ms from the sink's GET to its value)."""
    session = client.ask("POST", "/v1/session", {})["session_id"]
    submits, made = [], []
    edges = [[], [0], [1], [2]] if shape == "chain" else [[], [], [], [], [0, 1, 2, 3]]
    for k, deps in enumerate(edges):
        body = call(session, f" number {salt} and {k} of the", [made[d] for d in deps])
        start = time.perf_counter()
        reply = client.ask("POST", "/v1/semantic_call", body)
        submits.append((time.perf_counter() - start) * 1e3)
        made.append(next(p["var_id"] for p in reply["param_info"] if p["is_output"]))
    start = time.perf_counter()
    client.ask("GET", f"/v1/semantic_var/{made[-1]}", {"session_id": session, "criteria": "latency"})
    ready = (time.perf_counter() - start) * 1e3
    client.ask("DELETE", f"/v1/session/{session}", {"session_auth": "1"})
    return submits, ready


@contextmanager
def proxied(core: str, *flags: str) -> Iterator[str]:
    """Our proxy in front of the core; its URL."""
    with tempfile.TemporaryDirectory() as folder:
        command = [*CLI, "proxy", "--upstream", core, "--engine", "parrot", "--listen", "127.0.0.1:0", "--control", "0"]
        command += ["--record", f"{folder}/run", "--json", *flags]
        child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert child.stdout is not None
        try:
            listen = json.loads(child.stdout.readline())["listen"]
            yield listen if listen.startswith("http") else f"http://{listen}"
        finally:
            child.terminate()
            child.wait(30)


def middle(values: list[float]) -> dict[str, float]:
    """Median with a distribution-free 95 % interval (order statistics), n."""
    ordered, n = sorted(values), len(values)
    reach = 0.98 * n**0.5
    low, high = max(0, int(n / 2 - reach)), min(n - 1, int(n / 2 + reach))
    median = statistics.median(ordered)
    return {"median": round(median, 2), "low": round(ordered[low], 2), "high": round(ordered[high], 2), "n": n}


def probes(core: str, rounds: int) -> dict[str, Any]:
    """Every arm in turn, in an order that turns round."""
    with proxied(core) as passive, proxied(core, "--parrot-no-passive") as blind:
        arms = {"direct": core, "proxy": passive, "proxy, no passive reads": blind}
        clients = {name: Client(url) for name, url in arms.items()}
        submit: dict[str, list[float]] = defaultdict(list)
        ready: dict[str, list[float]] = defaultdict(list)
        for k in range(rounds):
            for shape in ("chain", "map-reduce"):
                for name in list(clients)[:: 1 if k % 2 == 0 else -1]:
                    submits, value = probe(clients[name], shape, k)
                    submit[name] += submits
                    ready[f"{shape}: {name}"].append(value)
    return {
        "submit_ms": {name: middle(values) for name, values in submit.items()},
        "ready_ms": {name: middle(values) for name, values in ready.items()},
    }


def rows(path: Path, name: str) -> list[dict[str, Any]]:
    """A journal's rows, whoever wrote them."""
    found = [json.loads(line) for file in sorted(path.glob(f"{name}.*.jsonl")) for line in file.open()]
    return [row for row in found if "journal" not in row]


def replayed(core: str, trace: Path, journal: Path, out: Path, proxy: bool, seed: int) -> dict[str, Any]:
    """One replay: what came of it."""
    flags = [
        "--api",
        "parrot",
        "--prompts",
        "words",
        "--bridge",
        str(journal),
        "--sources",
        "none",
        "--seed",
        str(seed),
    ]
    command = [*CLI, "replay", str(trace), "--target", core, *flags, "--no-report", "--json", "--out", str(out)]
    done = subprocess.run([*command, *(["--proxy"] if proxy else [])], cwd=ROOT, capture_output=True, text=True)
    if not done.stdout:
        sys.exit(done.stderr[-600:])
    sent = {r["wire_id"]: r for r in rows(out, "dispatch") if r["kind"] == "llm"}
    served = {r["request_id"]: r for r in rows(out, "bridge")}
    ends: dict[str, list[int]] = defaultdict(list)
    for row in sent.values():
        ends[row["workflow_id"]] += [row["due_ns"], row["t_end_ns"]]
    pairs = [(sent[w], served[w]) for w in sent if w in served]
    result: dict[str, Any] = {
        "calls": len(sent),
        "ok": sum(r["outcome"] == "ok" for r in sent.values()),
        "joined": len(pairs),
        "outputs_exact": sum(s["completion_tokens"] == p["planned_output_tokens"] for p, s in pairs),
        "prompts_as_composed": sum(s["prompt_tokens"] == p.get("prompt_tokens") for p, s in pairs),
        "prompts_as_planned": sum(s["prompt_tokens"] == p["planned_input_tokens"] for p, s in pairs),
        "makespan_s": [round((max(t) - min(t)) / 1e9, 3) for t in ends.values()],
    }
    if proxy:
        llm = {r["request_id"] for r in sent.values()}
        wanted = {
            (r["workflow_id"], d["on"], r["request_id"])
            for r in sent.values()
            for d in r.get("deps") or []
            if d["on"] in llm
        }
        seen = [r for r in rows(out, "requests") if r["api"] == "parrot" and r["request_id"] in sent]
        recorded = [(r, d) for r in seen for d in r.get("deps") or [] if "provenance" not in d]
        found = {(r["workflow_id"], d["on"], r["node_id"]) for r, d in recorded}
        result |= {"edges": len(wanted), "edges_found": len(wanted & found), "edges_invented": len(found - wanted)}
        result["ready_seen"] = sum(r["note"] is None for r in seen)
    return result


def patterns(core: str, journal: Path, scale: float, rounds: int) -> dict[str, Any]:
    """The four workloads, in turn with and without the proxy."""
    out: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, flags in PATTERNS.items():
            trace = Path(folder) / f"{name}.jsonl"
            made = [*CLI, "workload", name, *flags, "--scale", str(scale), "-o", str(trace)]
            subprocess.run(made, cwd=ROOT, check=True, capture_output=True)
            runs: dict[bool, list[dict[str, Any]]] = {False: [], True: []}
            for k in range(rounds):
                for proxy in (False, True) if k % 2 == 0 else (True, False):
                    where = Path(folder) / f"{name}-{k}-{proxy}"
                    runs[proxy].append(replayed(core, trace, journal, where, proxy, k))
            spans = {p: middle([s for r in group for s in r["makespan_s"]]) for p, group in runs.items()}
            summed = {key: sum(r[key] for g in runs.values() for r in g) for key in (
                "calls", "ok", "joined", "outputs_exact", "prompts_as_composed", "prompts_as_planned")}  # fmt: skip
            edges = {k: sum(r[k] for r in runs[True]) for k in ("edges", "edges_found", "edges_invented", "ready_seen")}
            out[name] = {**summed, **edges, "makespan_s": {"direct": spans[False], "proxy": spans[True]}}
            sys.stderr.write(f"{name}: {json.dumps(out[name])}\n")
    return out


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--core", required=True, metavar="URL")
    parser.add_argument("--journal", required=True, type=Path, metavar="FILE", help="the bridge's --record")
    parser.add_argument("--rounds", type=int, default=15, help="of the probes (default 15)")
    parser.add_argument("--repeats", type=int, default=2, help="of each pattern, with and without (default 2)")
    parser.add_argument("--scale", type=float, default=0.05, help="of the patterns' lengths (default 0.05)")
    parser.add_argument("--part", choices=("probes", "patterns"), help="only this one")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    found: dict[str, dict[str, Any]] = {"probes": {}, "patterns": {}}
    if args.part != "patterns":
        found["probes"] = probes(args.core, args.rounds)
    if args.part != "probes":
        found["patterns"] = patterns(args.core, args.journal.resolve(), args.scale, args.repeats)
    if args.json:
        print(json.dumps(found))
        return
    for what, values in found["probes"].items():
        for name, m in values.items():
            print(f"{what:10} {name:40} {m['median']:9.2f} [{m['low']:.2f}, {m['high']:.2f}] n={m['n']}")
    for name, row in found["patterns"].items():
        print(name, json.dumps(row))


if __name__ == "__main__":
    main()
