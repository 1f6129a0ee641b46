"""An engine's word with a Parrot's core: registered once, then heartbeats; registered again with a core that forgot it.

May not know: contexts, generation, how the core's requests are served.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson

from engines.parrot.protocol import parse_json
from engines.pool import Pool
from traces.seams import Connect, NowNs, SleepUntil

HEARTBEAT_NS = 3_000_000_000


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """What the core is told of the engine."""

    model: str
    """what the engine behind calls it"""
    tokenizer: str
    """directory that the core loads its tokenizer from"""
    model_name: str | None = None
    """what the core calls it (default: the same); a core keeps the first tokenizer it loaded for a name"""
    name: str = "joulegraph-bridge"
    tasks_capacity: int = 256
    tokens_capacity: int = 99_999_999_999_999_999

    def as_json(self, port: int) -> dict[str, Any]:
        """The body's engine_config."""
        return {
            "model": self.model_name or self.model, "host": "127.0.0.1", "port": port, "heartbeat_interval": 3,
            "engine_name": self.name, "engine_type": "builtin", "random_seed": 0, "tokenizer": self.tokenizer,
            "fill_chunk_size": -1, "dtype": "float16", "device": "cuda", "tasks_capacity": self.tasks_capacity,
            "tokens_capacity": self.tokens_capacity,
        }  # fmt: skip


class _Told:
    """The core's answer. A Reply of engines.http1."""

    def __init__(self) -> None:
        self.status = 0
        self.raw = b""
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def head(self, status: int, headers: list[tuple[bytes, bytes]], now_ns: int) -> None:
        self.status = status

    def body(self, data: bytes, now_ns: int) -> None:
        self.raw += data

    def done(self, now_ns: int) -> None:
        self.over.set_result(None)

    def lost(self, why: str, now_ns: int) -> None:
        self.status = 0
        self.over.set_result(None)


class Registration:
    """Where one engine stands with one core."""

    def __init__(
        self,
        config: EngineConfig,
        host: str,
        port: int,
        *,
        now_ns: NowNs,
        sleep_until: SleepUntil,
        connect: Connect,
        say: Callable[[str], None] = lambda sentence: None,
    ) -> None:
        """say: told where it stands with the core, once whenever that changes."""
        self.engine_id: int | None = None
        self.incarnation = 0
        """how often the engine was registered before"""
        self._config, self._host = config, host
        self._core, self._say, self._said = f"{host}:{port}", say, ""
        self._now_ns, self._sleep_until = now_ns, sleep_until
        self._pool = Pool(host, port, connect=connect, now_ns=now_ns)

    async def run(self, port: int, running: Callable[[], int], forgotten: Callable[[], None]) -> None:
        """Register, then beat for ever. running: jobs now. forgotten: called when the core does not know the engine
        (any more): it was restarted, or gone, and what it had here means nothing."""
        while True:
            if self.engine_id is None:
                await self._register(port)
            else:
                beat = {"engine_id": self.engine_id, "engine_name": self._config.name, "runtime_info": info(running())}
                status, _ = await self._tell("/engine_heartbeat", beat)
                if status != 200:
                    self.engine_id, self._said = None, ""
                    self.incarnation += 1
                    forgotten()
                    continue
            await self._sleep_until(self._now_ns() + HEARTBEAT_NS)

    async def _register(self, port: int) -> None:
        status, answer = await self._tell("/register_engine", {"engine_config": self._config.as_json(port)})
        if status == 200 and isinstance(answer.get("engine_id"), int):
            self.engine_id = answer["engine_id"]
            self._tell_user(f"registered with the core at {self._core}")
        elif status == 0:
            self._tell_user(f"no core answers at {self._core}; tried again every 3 s")
        else:
            self._tell_user(
                f"{self._core} answered {status} to a registration: give --core the address of a Parrot's serve layer, "
                "not of a proxy in front of it; tried again every 3 s"
            )

    def _tell_user(self, sentence: str) -> None:
        if sentence != self._said:
            self._said = sentence
            self._say(sentence)

    async def _tell(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        raw, told = orjson.dumps(body), _Told()
        head = f"POST {path} HTTP/1.1\r\nhost: {self._host}\r\ncontent-type: application/json\r\n"
        try:
            connection = await self._pool.acquire(fresh=True)
        except OSError:
            return 0, {}
        connection.send(f"{head}content-length: {len(raw)}\r\nconnection: close\r\n\r\n".encode() + raw, told)
        await told.over
        connection.close()
        return told.status, parse_json(told.raw) or {}

    def close(self) -> None:
        """Close what is idle."""
        self._pool.close()


def info(running: int) -> dict[str, int]:
    """runtime_info: what is not known as Parrot writes it."""
    return {
        "num_cached_tokens": -1, "num_max_blocks": 0, "num_running_jobs": running, "num_total_jobs": running,
        "cache_mem": -1, "model_mem": -1, "profiled_cpu_mem": 0, "profiled_gpu_tensor_mem": 0,
        "profiled_gpu_allocate_mem": 0, "recent_average_latency": 0,
    }  # fmt: skip
