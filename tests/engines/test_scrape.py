"""Scraping /metrics: vLLM's recorded page, the embedded engine's, and an engine that goes away."""

from __future__ import annotations

import time
from pathlib import Path

from engines.embedded.process import EngineConfig, engine_process
from engines.launchers.scrape import Scraper, parse, read
from traces.child import spawn
from traces.records import EngineRecord


def test_a_recorded_page(data: Path) -> None:
    values = parse((data / "vllm" / "metrics.txt").read_text())
    assert values["vllm:generation_tokens_total"] == 71
    assert values["vllm:request_success_total"] == 26
    assert values["vllm:prompt_tokens_by_source_total"] == values["vllm:prompt_tokens_total"] == 4451
    assert values["vllm:time_to_first_token_seconds_count"] == 26
    assert not [name for name in values if not name.startswith("vllm:") or name.endswith(("_bucket", "_created"))]


def test_odd_lines() -> None:
    text = (
        'vllm:a{x="} 5",y="2"} 3\nvllm:a 4 1700000000\nvllm:b NaN\nvllm:c +Inf\nvllm:d\n# vllm:e 1\nother 1\nvllm:f x\n'
    )
    assert parse(text) == {"vllm:a": 7}
    assert parse("other 1", ("other",)) == {"other": 1}


def test_a_running_engine_and_its_end() -> None:
    child = spawn(engine_process, EngineConfig(), name="engine")
    port = child.lifeline.recv()
    seen: list[EngineRecord] = []
    scraper = Scraper("127.0.0.1", port, seen.append, every_ns=20_000_000)
    until = time.monotonic() + 20
    while len(seen) < 5:
        assert time.monotonic() < until
        time.sleep(0.01)
    assert child.stop() == 0
    while scraper.failures < 3:
        assert time.monotonic() < until
        time.sleep(0.01)
    scraper.close()
    kinds = [record.kind for record in seen]
    assert kinds == ["counters"] * (len(seen) - 1) + ["log"]
    assert "not read" in (seen[-1].text or "")
    assert all(record.values["vllm:num_requests_running"] == 0 for record in seen[:-1])
    stamps = [record.t_ns for record in seen]
    assert stamps == sorted(stamps)
    assert read("127.0.0.1", port).kind == "log"
