"""The proxy's control port: metrics for Prometheus, recent workflows with joules, health, the run-time limit.

Runs in the parent, on a loopback port of its own; nothing of it can be reached through the data port. It reads status
pages, journals and live.json, and owns none of them. May not know: how requests are relayed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
from aiohttp import web

from joulegraph.continuous import Tail
from joulegraph.traffic import Traffic
from traces.errors import UserError
from traces.rundir import RunDir
from traces.status import HISTOGRAM_BUCKETS, StatusReader

_COUNTERS = {
    "requests": ("joulegraph_proxy_requests_total", "requests accepted"),
    "done": ("joulegraph_proxy_finished_total", "requests that ended, in whatever way"),
    "errors": ("joulegraph_proxy_errors_total", "requests that failed in the engine, on the way, or by deadline"),
    "client_left": ("joulegraph_proxy_client_left_total", "requests whose client left before the end"),
    "refused": ("joulegraph_proxy_refused_total", "requests refused before they were accepted"),
    "bytes_out": ("joulegraph_proxy_reply_bytes_total", "reply body bytes relayed"),
    "journal_dropped": ("joulegraph_proxy_records_dropped_total", "records lost because the journal could not follow"),
}
_GAUGES = {
    "in_flight": ("joulegraph_proxy_requests_in_flight", "requests under way"),
    "queued": ("joulegraph_proxy_requests_queued", "requests held by the concurrency limit"),
    "limit": ("joulegraph_proxy_concurrency_limit", "the limit; 0 means none"),
    "connections": ("joulegraph_proxy_client_connections", "open client connections"),
    "journal_depth": ("joulegraph_proxy_records_waiting", "records not yet written"),
}
_HISTOGRAMS = {
    "e2e": ("gen_ai_server_request_duration_seconds", "arrival to the last byte of the reply"),
    "ttft": ("gen_ai_server_time_to_first_token_seconds", "arrival to the first token event"),
    "itl": (
        "gen_ai_server_time_per_output_token_seconds",
        "gaps between token events; those in one read share it",
    ),
}


@dataclass
class Control:
    """What the control port shows. `pages`: one status page per worker; `alive`: are all workers there?"""

    run: RunDir
    pages: Sequence[StatusReader]
    alive: Callable[[], bool]
    set_limit: Callable[[int | None], None]
    traffic: Traffic = field(default_factory=Traffic)
    _tails: dict[Any, Tail] = field(default_factory=dict)
    _live_seen: tuple[int, int] | None = None
    _live_state: dict[str, Any] = field(default_factory=dict)

    def app(self) -> web.Application:
        """The aiohttp application."""
        app = web.Application(client_max_size=4096)
        app.router.add_get("/healthz", self.health)
        app.router.add_get("/metrics", self.metrics)
        app.router.add_get("/workflows", self.workflows)
        app.router.add_get("/workflows/{id:.+}", self.workflow)
        app.router.add_put("/limit", self.limit)
        return app

    async def health(self, _: web.Request) -> web.Response:
        """200 while every worker lives, else 503."""
        alive = self.alive()
        body = {"status": "ok" if alive else "a worker is gone", "workers": len(self.pages)}
        return _json(body, 200 if alive else 503)

    async def metrics(self, _: web.Request) -> web.Response:
        """Prometheus text format."""
        return web.Response(text=prometheus(self.pages, self.live()), content_type="text/plain")

    async def workflows(self, _: web.Request) -> web.Response:
        """Recent workflows, the latest active first."""
        self.look()
        return _json(self.traffic.overview(self.live().get("workflows", {})))

    async def workflow(self, request: web.Request) -> web.Response:
        """One workflow as a graph with timings and joules."""
        self.look()
        name = request.match_info["id"]
        found = self.traffic.detail(name, self.live().get("workflows", {}))
        return _json(found) if found is not None else _json({"error": "no such workflow among the recent ones"}, 404)

    async def limit(self, request: web.Request) -> web.Response:
        """PUT {"max_concurrency": N | null}: the batch-size knob at run time."""
        try:
            asked = (await request.json(loads=orjson.loads))["max_concurrency"]
            if asked is not None and (isinstance(asked, bool) or not isinstance(asked, int)):
                raise UserError('give {"max_concurrency": N} with a whole number, or null for no limit')
            self.set_limit(asked)
        except UserError as error:
            return _json({"error": str(error)}, 400)
        except (orjson.JSONDecodeError, KeyError, TypeError):
            return _json({"error": 'give {"max_concurrency": N} with a whole number, or null for no limit'}, 400)
        return _json({"max_concurrency": asked})

    def look(self) -> None:
        """Take up what was appended to the journals since the last look. On demand only: parsing costs CPU."""
        for path in self.run.journals("requests"):
            for line in self._tails.setdefault(path, Tail(path)).lines():
                row = orjson.loads(line)
                if "outcome" in row:
                    self.traffic.take(row)

    def live(self) -> dict[str, Any]:
        """live.json of continuous attribution, parsed when it was replaced; empty without it."""
        path = self.run.file("live.json")
        try:
            found = path.stat()
            seen = (found.st_ino, found.st_mtime_ns)
            if seen != self._live_seen:
                state = orjson.loads(path.read_bytes())
                self._live_seen, self._live_state = seen, state if isinstance(state, dict) else {}
        except (OSError, orjson.JSONDecodeError):
            return {}
        return self._live_state


def prometheus(pages: Sequence[StatusReader], live: dict[str, Any]) -> str:
    """All workers' pages, added up, and joules per class, in Prometheus' text format."""
    out: list[str] = []
    for kind, table in (("counter", _COUNTERS), ("gauge", _GAUGES)):
        for slot, (name, help_text) in table.items():
            out += _head(name, kind, help_text)
            out.append(f"{name} {_sum(pages, slot)}")
    name = "gen_ai_client_token_usage_total"
    out += _head(name, "counter", "tokens by usage (input) and by token events seen (output)")
    for slot, kind in (("tokens_in", "input"), ("tokens_out", "output")):
        out.append(f'{name}{{gen_ai_token_type="{kind}"}} {_sum(pages, slot)}')
    for slot, (name, help_text) in _HISTOGRAMS.items():
        out += _head(name, "histogram", help_text)
        out += _histogram(name, [sum(c) for c in zip(*(p.histogram(slot) for p in pages), strict=True)])
        out.append(f"{name}_sum {_sum(pages, f'{slot}_sum_ns') / 1e9:.9f}")
    if "classes" in live:
        name = "joulegraph_active_joules"
        out += _head(name, "gauge", "active joules by workflow class so far (provisional within the sliding window)")
        for label, uj in sorted(live["classes"].items()):
            out.append(f'{name}{{class="{_label(label)}"}} {uj / 1e6:.6f}')
    return "\n".join(out) + "\n"


def _head(name: str, kind: str, help_text: str) -> list[str]:
    return [f"# HELP {name} {help_text}", f"# TYPE {name} {kind}"]


def _sum(pages: Sequence[StatusReader], slot: str) -> int:
    return sum(page.get(slot) for page in pages)


def _histogram(name: str, counts: list[int]) -> list[str]:
    """Every second bucket edge (ratio 1.41) as cumulative counts."""
    out, total = [], 0
    for k in range(HISTOGRAM_BUCKETS - 1):
        total += counts[k]
        if k % 2:
            out.append(f'{name}_bucket{{le="{2 ** ((k + 1) / 4) / 1e6:.6g}"}} {total}')
    total += counts[-1]
    return [*out, f'{name}_bucket{{le="+Inf"}} {total}', f"{name}_count {total}"]


def _label(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _json(value: Any, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(value), status=status, content_type="application/json")


class ControlServer:
    """The listening control port."""

    def __init__(self, runner: web.AppRunner, port: int) -> None:
        self._runner = runner
        self.port = port

    async def close(self) -> None:
        """Stop listening."""
        await self._runner.cleanup()


async def serve_control(control: Control, host: str, port: int) -> ControlServer:
    """Listen; UserError when the port cannot be had."""
    runner = web.AppRunner(control.app(), access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, host, port)
    try:
        await site.start()
    except OSError as error:
        await runner.cleanup()
        raise UserError(f"--control {port}: {error.strerror or error}; choose another port") from error
    return ControlServer(runner, runner.addresses[0][1])
