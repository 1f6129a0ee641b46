"""Damaged input of every format: an import gives workflows that can be written, or one sentence; never a traceback."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.traces.test_import_agents import call, dynamo, tracelab, weka
from tests.traces.test_import_requests import bailian, otlp, span
from traces.errors import UserError
from traces.importers import open_import
from traces.trace import read_trace, write_trace

LLM = {"gen_ai.operation.name": "chat", "gen_ai.usage.input_tokens": 5, "gen_ai.usage.output_tokens": 2}
LLM |= {
    "gen_ai.input.messages": '[{"role":"user","parts":[{"type":"text","content":"x"}]}]',
    "gen_ai.output.text": "yes",
}
OPEN = {"openinference.span.kind": "LLM", "llm.input_messages.0.message.role": "user"}
OPEN |= {"llm.input_messages.0.message.contents.0.message_content.text": "hi", "llm.token_count.prompt": 4}
SUB = {"t": 20.0, "type": "subagent", "agent_id": "a", "duration_ms": 15_000, "requests": [call(0, 3.5)]}
TOOL = {"tool_call_id": "t1", "emitted_at": "2026-06-01T05:40:09Z", "result_at": "2026-06-01T05:40:10Z"}
TASK = {"id": "a", "name": "t", "parents": [], "inputFiles": ["f"], "outputFiles": ["g"]}
FLAT = {"span_id": "a", "trace_id": "t", "start_time": "2026-02-25T10:00:00", "end_time": "2026-02-25T10:00:01"}
DYNAMO_TOOL = {"tool_call_id": "c", "started_at_unix_ms": 1_000_110, "ended_at_unix_ms": 1_000_200}

SAMPLES: list[tuple[str, list[Any]]] = [
    (
        "joulegraph",
        [
            {
                "workflow_id": "w",
                "request_id": "a",
                "timestamp": 1,
                "input_length": 1,
                "output_length": 1,
                "deps": [],
                "hash_ids": [1],
                "attrs": {},
            }
        ],
    ),
    ("mooncake", [{"timestamp": 1, "input_length": 600, "output_length": 1, "hash_ids": [1, 2]}]),
    ("bailian", [bailian(1, -1, 0, 32), bailian(2, 1, 1.5, 48)]),
    (
        "ragpulse",
        [{"timestamp": "3", "input_length": 5, "output_length": 1, "session_id": "s", "hash_ids": {"history": [1]}}],
    ),
    ("weka", [weka(call(0, 4.5, ttft=1.0), SUB, call(30, 2))]),
    ("tracelab", [tracelab(0, 1, 10, tools=(TOOL,)), tracelab(1, 12, 15, result_of="t1")]),
    (
        "dynamo",
        [
            dynamo("p", "p1", 0, 100, calls=("c",)),
            dynamo("k", "k1", 120, 50, parent="p"),
            {"schema": "dynamo.request.trace.v1", "event_type": "tool_end", "session_id": "p", "tool": DYNAMO_TOOL},
        ],
    ),
    (
        "agentic_mooncake",
        [
            {
                "request_id": "a",
                "session_id": "s",
                "input_length": 5,
                "output_length": 2,
                "timestamp": 5,
                "hash_ids": [1],
                "branches": ["b"],
            },
            {"request_id": "b", "input_length": 5, "output_length": 2, "wait_for": ["a"], "delay": 1},
        ],
    ),
    ("otel", [otlp(span("a", 0, 1, LLM), span("b", 2, 3, OPEN, "a", ({"traceId": "a" * 32, "spanId": "a"},)))]),
    ("otel", [{"trace_id": "t", "spans": [{**FLAT, "attributes": LLM, "status": {"code": 1}}]}]),
    (
        "mlperf",
        [
            {"conversation_id": "c", "turn": 1, "role": "user", "content": "x", "system": "s", "tools": [{"a": 1}]},
            {
                "conversation_id": "c",
                "turn": 2,
                "role": "assistant",
                "tool_calls": [{"id": "x", "function": {"name": "b"}}],
            },
            {"conversation_id": "c", "turn": 3, "role": "tool", "delay_seconds": 1, "tool_results": [{"content": "y"}]},
            {"conversation_id": "c", "turn": 4, "role": "assistant", "content": "z"},
        ],
    ),
    ("sharegpt", [{"id": "a", "conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y"}]}]),
    (
        "sweagent",
        [
            {
                "history": [{"role": "user", "content": "x", "agent": "main"}, {"role": "assistant", "content": "y"}],
                "trajectory": [{"response": "y", "execution_time": 0.5}],
                "info": {"model_stats": {"a": 1}},
            }
        ],
    ),
    (
        "wfformat",
        [
            {
                "name": "w",
                "schemaVersion": "1.5",
                "joulegraph": {"class": "c", "manifest": {"block_size": 16}},
                "workflow": {
                    "specification": {"tasks": [TASK, {**TASK, "id": "b", "parents": ["a"]}], "files": [{"id": "f"}]},
                    "execution": {"tasks": [{"id": "a", "runtimeInSeconds": 1, "command": {"program": "x"}}]},
                },
            }
        ],
    ),
]
JUNK = st.sampled_from(
    [
        None,
        True,
        -1,
        0,
        1,
        0.5,
        -0.5,
        1e300,
        2**63,
        "",
        "x",
        "5",
        "-1",
        [],
        [None],
        [1],
        ["x"],
        [[]],
        {},
        {"a": None},
        {"id": []},
    ]
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place inside a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [p for key, held in inner for p in [(*path, key), *places(held, (*path, key))]]


def changed(rows: list[Any], path: tuple[Any, ...], junk: Any, drop: bool) -> list[Any]:
    """A copy with one place replaced or removed."""
    rows = copy.deepcopy(rows)
    at: Any = rows
    for key in path[:-1]:
        at = at[key]
    if drop and isinstance(at, dict):
        del at[path[-1]]
    else:
        at[path[-1]] = junk
    return rows


def try_import(rows: list[Any], name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.json"
        path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
        try:
            found = open_import(path, name)
            out = Path(folder) / "o.jsonl"
            write_trace(out, found.settled, found.workflows)
            if out.read_bytes().count(b"\n") > 1:
                list(read_trace(out).workflows())
        except UserError as error:
            assert folder in str(error)
            assert "\n" not in str(error)


@pytest.mark.parametrize(("name", "rows"), SAMPLES, ids=[f"{n}-{i}" for i, (n, _) in enumerate(SAMPLES)])
def test_the_samples_themselves_are_sound(name: str, rows: list[Any], tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    assert list(open_import(path, name).workflows)


@pytest.mark.parametrize(("name", "rows"), SAMPLES, ids=[f"{n}-{i}" for i, (n, _) in enumerate(SAMPLES)])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_one_damaged_value_is_no_traceback(name: str, rows: list[Any], data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(places(rows)))
    try_import(changed(rows, path, data.draw(JUNK), data.draw(st.booleans())), name)
