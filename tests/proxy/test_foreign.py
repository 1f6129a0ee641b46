"""Foreign tags: each scheme alone, and the rule that one wins."""

from __future__ import annotations

import json
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.foreign import TAG_HEADERS, read_tag
from traces.tags import Tag

UUID = "0b1c2d3e-0000-4000-8000-123456789abc"
TRACE = "0af7651916cd43dd8448eb211c80319c"

# (headers, body, source, workflow, agent, parent agent), in order of precedence
CASES = [
    ({"x-workflow-id": "w"}, {}, "x-workflow", "w", None, None),
    ({}, {"metadata": {"workflow_id": "w"}}, "metadata", "w", None, None),
    ({"baggage": "a=b,workflow.id=w%2C1"}, {}, "baggage", "w,1", None, None),
    ({"x-dynamo-session-id": "s", "x-dynamo-parent-session-id": "r"}, {}, "dynamo", "r", "s", "r"),
    (
        {},
        {"nvext": {"agent_context": {"session_id": "s", "trajectory_id": "t", "parent_trajectory_id": "p"}}},
        "dynamo",
        "s",
        "t",
        "p",
    ),
    (
        {},
        {"vllm_xargs": {"agentic_context": {"program_id": "p2", "root_program_id": "p0", "parent_program_id": "p1"}}},
        "agentic_context",
        "p0",
        "p2",
        "p1",
    ),
    ({}, {"program_id": "p"}, "program_id", "p", None, None),
    ({}, {"job_id": "j"}, "job_id", "j", None, None),
    (
        {"x-claude-code-session-id": "s", "x-claude-code-agent-id": "a", "x-claude-code-parent-agent-id": "b"},
        {},
        "claude-code",
        "s",
        "a",
        "b",
    ),
    (
        {},
        {"metadata": {"user_id": json.dumps({"device_id": "d", "session_id": UUID})}},
        "claude-code",
        UUID,
        None,
        None,
    ),
    ({}, {"metadata": {"user_id": f"user_ab12_account__session_{UUID}"}}, "claude-code", UUID, None, None),
    ({"session-id": "s", "thread-id": "t", "x-codex-parent-thread-id": "u"}, {}, "codex", "s", "t", "u"),
    ({"session_id": "s"}, {}, "codex", "s", None, None),
    ({"x-session-id": "s", "x-parent-session-id": "r"}, {}, "opencode", "r", "s", "r"),
    ({"x-session-affinity": "s"}, {}, "opencode", "s", "s", None),
    ({"x-litellm-trace-id": "s"}, {}, "litellm", "s", None, None),
    ({"helicone-session-id": "s", "helicone-session-path": "/a/b"}, {}, "helicone", "s", "/a/b", None),
    ({"x-portkey-trace-id": "s"}, {}, "portkey", "s", None, None),
    ({"x-langtrace-session-id": "s"}, {}, "langtrace", "s", None, None),
    ({"x-cagent-session-id": "s"}, {}, "cagent", "s", None, None),
    ({"x-gateway-inference-fairness-id": "s"}, {}, "gateway-api", "s", None, None),
    ({"baggage": "session.id=s"}, {}, "baggage-session", "s", None, None),
    ({"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}, {}, "traceparent", TRACE, None, None),
    ({}, {"conversation": {"id": "c"}}, "conversation", "c", None, None),
    ({}, {"metadata": {"session_id": "s"}}, "metadata-session", "s", None, None),
    ({}, {"prompt_cache_key": "k"}, "prompt_cache_key", "k", None, None),
]


@pytest.mark.parametrize(("headers", "body", "source", "workflow", "agent", "parent"), CASES)
def test_each_scheme(
    headers: dict[str, str], body: dict[str, object], source: str, workflow: str, agent: str | None, parent: str | None
) -> None:
    tag = read_tag(headers, body)
    assert tag is not None
    assert (tag.source, tag.workflow_id, tag.agent_id, tag.parent_agent_id) == (source, workflow, agent, parent)
    assert set(headers) <= TAG_HEADERS | {"x-workflow-id"}


def test_one_scheme_wins_and_nothing_is_mixed() -> None:
    for first, second in combinations(CASES, 2):
        if first[0].keys() & second[0].keys() or first[1].keys() & second[1].keys():
            continue
        tag = read_tag({**second[0], **first[0]}, {**second[1], **first[1]})
        assert tag == read_tag(first[0], first[1])


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({}, {}),
        ({}, None),
        ({}, [1]),
        ({"x-session-id": ""}, {"metadata": "x"}),
        ({"x-session-id": "a" * 257}, {"nvext": {"agent_context": [1]}}),
        ({"x-session-id": "a\x07b"}, {"vllm_xargs": {"agentic_context": "{"}}),
        ({"traceparent": "00-" + "0" * 32 + "-b7ad6b7169203331-01"}, {"metadata": {"user_id": 5}}),
        ({"traceparent": "junk"}, {"user": "alice", "safety_identifier": "alice"}),
    ],
)
def test_unusable_values_are_no_tag(headers: dict[str, str], body: object) -> None:
    assert read_tag(headers, body) is None


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=6),
    lambda c: st.lists(c, max_size=3) | st.dictionaries(st.text(max_size=5), c, max_size=3),
    max_leaves=8,
)
names = [
    "metadata",
    "nvext",
    "vllm_xargs",
    "program_id",
    "conversation",
    "prompt_cache_key",
    "agent_context",
    "user_id",
]


@given(
    st.dictionaries(st.sampled_from(sorted(TAG_HEADERS)), st.text(max_size=300), max_size=4),
    st.dictionaries(st.sampled_from(names), json_values, max_size=4),
)
def test_anything_is_read_without_failing_and_bounded(headers: dict[str, str], body: dict[str, object]) -> None:
    tag = read_tag(headers, body)
    if tag is not None:
        for value in (tag.workflow_id, tag.node_id, tag.agent_id, tag.session_id):
            assert value is None or (0 < len(value) <= 256 and value.isprintable())


def test_portkey_spans_are_nodes_and_edges() -> None:
    tag = (
        read_tag({"x-portkey-trace-id": "t", "x-portkey-span-id": "s2", "x-portkey-parent-span-id": "s1"}, None)
        or Tag()
    )
    assert (tag.node_id, [d.on for d in tag.parents]) == ("s2", ["s1"])
