"""Imports of request traces, client models, conversations in text, and workflow graphs of other fields."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.traces.test_import_agents import edges, lines
from tests.traces.test_importers import imported, through_file
from traces.errors import UserError
from traces.importers import detect
from traces.stats import arrivals

S = 1_000_000_000


# --- BurstGPT ----------------------------------------------------------------------------------------------------


def test_burstgpt_published_rows(data: Path, tmp_path: Path) -> None:
    folder = data / "traces/burstgpt-sample"
    flow, manifest = imported(folder / "BurstGPT_1_head_3rows.csv")
    assert [(w.arrival_ns // S, w.nodes[0].model, w.class_name) for w in flow] == [
        (0, "ChatGPT", "conversation"), (40, "ChatGPT", "conversation"), (113, "GPT-4", "conversation"),
    ]  # fmt: skip
    assert any("relative to 5 s" in t for t in manifest.transforms)
    flow, manifest = imported(folder / "BurstGPT_3_head_4rows_verbatim.csv")
    assert [w.nodes[0].t_end_ns for w in flow][:2] == [43 * S, 53 * S]
    through_file(tmp_path, flow, manifest)


def test_burstgpt_sessions_and_failures(tmp_path: Path) -> None:
    path = tmp_path / "b.csv"
    path.write_text(
        "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
        "100.5,s1,2,GPT-4,10,5,15,Conversation log\n101,,3,GPT-4,7,0,7,API log\n"
        "110.5,s1,4,GPT-4,30,6,36,Conversation log\n112,s1,1,GPT-4,50,6,56,Conversation log\n"
    )
    assert detect(path) == "burstgpt"
    flow, manifest = imported(path)
    session, failed = flow
    assert [n.delay_ns for n in session.nodes] == [0, 8 * S, 0]
    assert [len(n.blocking) for n in session.nodes] == [0, 1, 0]  # the third came before the second had ended
    assert (failed.nodes[0].status, failed.class_name, failed.arrival_ns) == ("error", "api", S // 2)
    assert any("1 x a request failed" in t for t in manifest.transforms)
    through_file(tmp_path, flow, manifest)


# --- Qwen-Bailian, RAGPulse ---------------------------------------------------------------------------------------


def bailian(chat: int, parent: int, stamp: float, tokens: int, **more: object) -> dict[str, Any]:
    blocks = list(range(-(-tokens // 16)))
    row = {"chat_id": chat, "parent_chat_id": parent, "timestamp": stamp, "input_length": tokens, "output_length": 9}
    return {**row, "type": "text", "turn": 1, "hash_ids": blocks, **more}


def test_bailian_conversations(tmp_path: Path) -> None:
    path = lines(
        tmp_path / "q.jsonl",
        bailian(7, -1, 0.25, 100),
        bailian(8, -1, 1.5, 30),
        bailian(9, 7, 2, 120, turn=2),
        bailian(10, 999, 3, 40),
        bailian(11, 9, 9.125, 160, turn=3),
    )
    assert detect(path) == "bailian"
    flow, manifest = imported(path)
    assert [w.workflow_id for w in flow] == ["7", "8", "10"]
    assert [[(d.on, d.kind, d.blocking) for d in n.deps] for n in flow[0].nodes] == [
        [], [("7", "conversation", False)], [("9", "conversation", False)],
    ]  # fmt: skip
    assert (manifest.block_size, manifest.block_rounding, manifest.chained) == (16, "ceil", True)
    assert any("1 x a turn's parent lies outside" in t for t in manifest.transforms)
    assert flow[0].nodes[2].arrival_ns == 9_125_000_000
    through_file(tmp_path, flow, manifest)


def test_bailian_ids_that_are_not_chained_are_noticed(tmp_path: Path) -> None:
    path = lines(tmp_path / "q.jsonl", bailian(1, -1, 0, 32), bailian(2, -1, 1, 32, hash_ids=[1, 0]))
    assert not imported(path)[1].chained


def test_ragpulse(tmp_path: Path) -> None:
    parts = {"sys_prompt": [1], "passages_ids": [5, 6], "history": [], "web_search": [], "user_input": [9]}
    row = {"input_length": 300, "output_length": 20, "hash_ids": parts, "session_id": "x"}
    path = lines(tmp_path / "0_trace.jsonl", {**row, "timestamp": "27"}, {**row, "timestamp": "82"})
    assert detect(path) == "ragpulse"
    (workflow,), manifest = imported(path)
    assert [n.arrival_ns // S for n in workflow.nodes] == [27, 82]
    assert workflow.nodes[1].deps[0].kind == "conversation"
    assert workflow.nodes[0].attrs["components"] == parts
    assert workflow.nodes[0].hash_ids is None
    assert any("prefix sharing is not replayed" in t for t in manifest.transforms)
    through_file(tmp_path, [workflow], manifest)


# --- ServeGen ------------------------------------------------------------------------------------------------------


def test_servegen_samples_what_the_model_says(data: Path) -> None:
    path = data / "traces/servegen/deepseek-r1-chunk-1-trace.csv"
    assert detect(path) == detect(path.parent) == "servegen"
    flow, manifest = imported(path, duration_s=86_400.0, seed=3)
    rows = [line.split(",") for line in path.read_text().split()]
    wanted = sum(float(r[1]) * 600 for r in rows if float(r[0]) < 86_400)
    assert abs(len(flow) - wanted) < 5 * math.sqrt(wanted)
    hour = [w.arrival_ns for w in flow if w.arrival_ns < 3600 * S]  # its windows: CV 0.80 to 0.93; later ones are idle
    assert 0.75 < arrivals(hour)["cv"] < 1.15
    table = orjson.loads((path.parent / "deepseek-r1-chunk-1-dataset.json").read_bytes())
    possible = {int(p.split(":")[0]) for t in table.values() for p in t["input_tokens"].strip("{}").split(",") if p}
    assert {w.nodes[0].input_length for w in flow} <= possible
    assert "seed 3" in manifest.transforms[0]


def test_servegen_is_the_same_for_a_seed_and_only_then(data: Path) -> None:
    path = data / "traces/servegen"
    assert imported(path, seed=1)[0] == imported(path, seed=1)[0]
    assert imported(path, seed=1)[0] != imported(path, seed=2)[0]


@pytest.mark.parametrize(("pattern", "cv", "shape"), [("Gamma", 2.0, 0.25), ("Weibull", 2.236, 0.5), ("", 1.0, 0.0)])
def test_servegen_patterns_have_their_rate_and_cv(tmp_path: Path, pattern: str, cv: float, shape: float) -> None:
    mean = 0.1
    scale = {"Gamma": mean / 0.25, "Weibull": mean / math.gamma(3), "": 0.0}[pattern]
    rows = "".join(f"{600 * i},{1 / mean},{cv},{pattern},{shape},{scale}\n" for i in range(20))
    (tmp_path / "c-trace.csv").write_text(rows)
    tables = {str(600 * i): {"input_tokens": "{10: 0.5, 20: 0.5}", "output_tokens": "{3: 1}"} for i in range(20)}
    (tmp_path / "c-dataset.json").write_bytes(orjson.dumps(tables))
    flow, _ = imported(tmp_path / "c-trace.csv", duration_s=12_000.0)
    found = arrivals([w.arrival_ns for w in flow])
    assert abs(found["rate_per_s"] * mean - 1) < 0.05
    assert abs(found["cv"] / cv - 1) < 0.1


# --- OpenTelemetry --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("simple_chain", {"landmarks_question": {"capital_question"}, "eiffel_tower_height": {"landmarks_question"}}),
        ("fan_in_dependencies", {"span_004": {"span_001", "span_002", "span_003"}}),
        ("parallel_requests", {"span_002": {"span_001"}, "span_003": {"span_001"}}),
    ],
)
def test_flat_spans_get_the_edges_their_texts_show(data: Path, name: str, wanted: dict[str, set[str]]) -> None:
    path = data / f"traces/otel-inference-perf/{name}.json"
    assert detect(path) == "otel"
    (workflow,), manifest = imported(path)
    found = {child: {on for on, _ in parents} for child, parents in edges(workflow).items()}
    for child, parents in wanted.items():
        assert found[child] == parents
    assert manifest.content_mode == "text"
    assert any("estimates" in t for t in manifest.transforms)


def test_all_flat_span_files(data: Path, tmp_path: Path) -> None:
    flow, manifest = imported(data / "traces/otel-inference-perf")
    assert (len(flow), sum(len(w.nodes) for w in flow)) == (12, 73)
    through_file(tmp_path, flow, manifest)
    measured = [n for w in flow for n in w.nodes if not n.attrs]
    assert {(n.input_length, n.output_length) for n in measured} >= {(50, 20), (100, 50), (180, 60)}


def otlp(*spans: dict[str, Any]) -> dict[str, Any]:
    return {"resourceSpans": [{"resource": {"attributes": []}, "scopeSpans": [{"scope": {}, "spans": list(spans)}]}]}


def value(held: object) -> dict[str, Any]:
    if isinstance(held, bool) or not isinstance(held, (int, float, list)):
        return {"stringValue": str(held)}
    if isinstance(held, list):
        return {"arrayValue": {"values": [value(v) for v in held]}}
    return {"intValue": str(held)} if isinstance(held, int) else {"doubleValue": held}


def span(name: str, start: int, end: int, held: dict[str, Any], parent: str = "", links: tuple[Any, ...] = ()) -> Any:
    return {
        "traceId": "a" * 32, "spanId": name, "parentSpanId": parent, "name": name, "links": list(links),
        "startTimeUnixNano": str(10**18 + start * S), "endTimeUnixNano": str(10**18 + end * S),
        "attributes": [{"key": k, "value": value(v)} for k, v in held.items()],
    }  # fmt: skip


def fixture(data: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = orjson.loads((data / f"traces/otel-genai-fixtures/{name}.json").read_bytes())
    return found


@pytest.mark.parametrize(
    "name",
    [
        "otel_genai_client_span_tool_calls",
        "otel_genai_deprecated_client_span_tool_calls",
        "openinference_client_span_tool_calls",
    ],
)
def test_all_dialects_of_attributes_say_the_same(data: Path, tmp_path: Path, name: str) -> None:
    """The published fixtures: one call of gpt-4 with 97 + 52 tokens, whose prompt holds a tool call and its result."""
    tool = fixture(data, "otel_genai_tool_execution_span")
    ask = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "gpt-4", "gen_ai.usage.input_tokens": 9}
    ask |= {"gen_ai.usage.output_tokens": 4}
    ask["gen_ai.output.messages"] = orjson.dumps(
        [{"role": "assistant", "parts": [{"type": "tool_call", "id": "1234", "name": "get_weather"}]}]
    ).decode()
    path = lines(
        tmp_path / "t.json",
        otlp(span("ask", 0, 2, ask), span("run", 3, 4, tool), span("say", 5, 8, fixture(data, name))),
    )
    (workflow,), _ = imported(path)
    say = workflow.nodes[-1]
    assert (say.input_length, say.output_length) == (97, 52)
    assert say.model in ("gpt-4", "gpt-4-0613")
    assert [m["role"] for m in say.messages or ()] == ["user", "assistant", "tool"]
    assert (say.messages or ())[2]["content"] == "rainy, 57°F"
    assert say.output is not None
    assert "57°F" in say.output
    assert edges(workflow) == {"ask": set(), "run": {("ask", "tool")}, "say": {("run", "tool")}}
    assert [n.delay_ns // S for n in workflow.nodes] == [0, 1, 1]


def test_links_agents_and_failures_of_spans(tmp_path: Path) -> None:
    llm = {"openinference.span.kind": "LLM", "llm.token_count.prompt": 5, "llm.token_count.completion": 2}
    agent = {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "planner"}
    failing = {**span("b", 4, 5, llm, "g", ({"traceId": "a" * 32, "spanId": "a"},)), "status": {"code": 2}}
    rows = [span("g", 0, 9, agent), span("a", 1, 2, llm, "g"), failing, span("web", 0, 9, {"http.method": "GET"})]
    (workflow,), _ = imported(lines(tmp_path / "t.jsonl", otlp(*rows[:2]), otlp(*rows[2:])))
    assert [(n.request_id, n.agent_id, n.status) for n in workflow.nodes] == [
        ("a", "planner", "ok"),
        ("b", "planner", "error"),
    ]
    assert edges(workflow)["b"] == {("a", "data")}
    assert workflow.nodes[1].deps[0].provenance == "recorded"


# --- conversations --------------------------------------------------------------------------------------------------


def test_mlperf_conversations(tmp_path: Path) -> None:
    head = {"conversation_id": "c", "system": "be brief", "tools": [{"type": "function", "function": {"name": "bash"}}]}
    ask = {"tool_calls": [{"id": "x", "type": "function", "function": {"name": "bash", "arguments": "{}"}}]}
    path = lines(
        tmp_path / "m.jsonl",
        {**head, "turn": 1, "role": "user", "content": "do it"},
        {"conversation_id": "c", "turn": 2, "role": "assistant", **ask},
        {"conversation_id": "c", "turn": 3, "role": "tool", "delay_seconds": 0.25,
         "tool_results": [{"tool_call_id": "x", "content": "done"}]},
        {"conversation_id": "c", "turn": 4, "role": "assistant", "content": "all done now"},
        {"conversation_id": "c", "turn": 5, "role": "user", "content": "thanks"},
    )  # fmt: skip
    assert detect(path) == "mlperf"
    (workflow,), manifest = imported(path)
    first, second = workflow.nodes
    assert [m["role"] for m in first.messages or ()] == ["system", "user"]
    assert [m["role"] for m in second.messages or ()] == ["system", "user", "assistant", "tool"]
    assert (second.messages or ())[2]["output_of"] == "call1"
    assert (second.delay_ns, second.tool_wait_ns, second.deps[0].kind) == (S // 4, S // 4, "tool")
    assert second.output == "all done now"
    assert any("left out" in t for t in manifest.transforms)
    through_file(tmp_path, [workflow], manifest)


def test_sharegpt_and_its_relatives(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    talk = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}, {"from": "human", "value": "?"}]
    path.write_bytes(
        orjson.dumps(
            [
                {"id": "a", "conversations": [*talk, {"from": "gpt", "value": "!"}]},
                {"id": "b", "conversations": talk[1:]},
            ]
        )
    )
    assert detect(path) == "sharegpt"
    (workflow,), manifest = imported(path)
    assert edges(workflow) == {"call1": set(), "call2": {("call1", "conversation")}}
    assert any("without a reply" in t for t in manifest.transforms)
    rows = {
        "conversation_id": "z",
        "model": "m",
        "conversation": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
    }
    (other,), _ = imported(lines(tmp_path / "l.jsonl", rows))
    assert (other.workflow_id, other.nodes[0].model) == ("z", "m")


def test_swe_agent_trajectories(tmp_path: Path) -> None:
    history = [
        {"role": "system", "content": "s", "agent": "main"},
        {"role": "assistant", "content": "demo", "agent": "main", "is_demo": True},
        {"role": "user", "content": "fix it", "agent": "main"},
        {"role": "assistant", "content": "look", "agent": "main", "action": "ls"},
        {"role": "user", "content": "a.py", "agent": "main"},
    ]
    steps = [{"response": "look", "execution_time": 0.5}, {"response": "submit now", "execution_time": 0.1}]
    path = tmp_path / "r" / "one.traj"
    path.parent.mkdir()
    stats = {"model_stats": {"tokens_sent": 7}}
    path.write_bytes(orjson.dumps({"history": history, "trajectory": steps, "info": stats}))
    assert detect(path) == detect(path.parent) == "sweagent"
    (workflow,), manifest = imported(path.parent)
    assert workflow.workflow_id == "one"
    assert [n.output for n in workflow.nodes] == ["look", "submit now"]
    assert [n.delay_ns for n in workflow.nodes] == [0, S // 2]
    assert len(workflow.nodes[0].messages or ()) == 3
    assert workflow.nodes[0].attrs["model_stats"] == {"tokens_sent": 7}
    through_file(tmp_path, [workflow], manifest)


# --- WfFormat --------------------------------------------------------------------------------------------------------


def test_wfformat_of_a_foreign_graph(tmp_path: Path) -> None:
    def task(name: str, parents: list[str], reads: list[str], writes: list[str]) -> dict[str, Any]:
        return {"id": name, "name": "t", "parents": parents, "children": [], "inputFiles": reads, "outputFiles": writes}

    tasks = [
        task("a", [], [], ["f"]),
        task("b", ["a"], ["f"], []),
        task("c", ["a", "gone"], [], []),
        task("d", ["b", "c"], [], []),
    ]
    runs = [{"id": n, "runtimeInSeconds": r} for n, r in zip("abc", (1, 2.5, 4), strict=True)]
    runs[0]["energyInKWh"] = 3
    path = tmp_path / "w.json"
    document = {
        "name": "w",
        "schemaVersion": "1.5",
        "workflow": {
            "specification": {"tasks": tasks, "files": [{"id": "f", "sizeInBytes": 9}]},
            "execution": {"tasks": runs},
        },
    }
    path.write_bytes(orjson.dumps(document))
    assert detect(path) == "wfformat"
    (workflow,), manifest = imported(path)
    assert edges(workflow) == {
        "a": set(),
        "b": {("a", "data")},
        "c": {("a", "control")},
        "d": {("b", "control"), ("c", "control")},
    }
    assert [n.arrival_ns / S for n in workflow.nodes] == [0, 1, 1, 5]
    assert workflow.nodes[0].attrs["output_files"] == {"f": 9}
    for part in ("no task of its workflow", "energyInKWh", "without a runtime", "start times"):
        assert any(part in t for t in manifest.transforms)
    through_file(tmp_path, [workflow], manifest)


def test_a_cycle_in_a_foreign_graph_is_said(tmp_path: Path) -> None:
    tasks = [{"id": "a", "parents": ["b"]}, {"id": "b", "parents": ["a"]}]
    path = tmp_path / "w.json"
    path.write_bytes(orjson.dumps({"schemaVersion": "1.5", "workflow": {"specification": {"tasks": tasks}}}))
    with pytest.raises(UserError, match="break the cycle"):
        imported(path)
