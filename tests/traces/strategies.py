"""Random workflows for property tests of the trace file and its importers and exporters."""

from __future__ import annotations

from typing import get_args

from hypothesis import strategies as st

from traces.workflow import APIS, Anchor, Dep, DepKind, Extends, Node, Workflow

IDS = st.text("abcxyz0189-_:/é", min_size=1, max_size=12)
MS = st.integers(0, 10**9).map(lambda v: v * 1_000_000)
NS = st.integers(0, 10**15)
TOKENS = st.integers(0, 200_000)
TEXT = st.text(max_size=20)
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**40), 2**40), TEXT, st.just([1, "a"]), st.just({"a": {"b": 1}})
)
OBJECTS = st.dictionaries(TEXT, VALUES, max_size=2)


@st.composite
def deps(draw: st.DrawFn, earlier: list[str]) -> tuple[Dep, ...]:
    """Dependencies on some of the earlier nodes, each at most once."""
    if not earlier:
        return ()
    names = draw(st.lists(st.sampled_from(earlier), unique=True, max_size=4))
    return tuple(
        Dep(
            on,
            kind=draw(st.sampled_from(get_args(DepKind))),
            blocking=draw(st.booleans()),
            anchor=draw(st.sampled_from(get_args(Anchor))),
            provenance=draw(st.sampled_from(["recorded", "declared", "inferred:lcp"])),
            confidence=draw(st.sampled_from([1.0, 0.5, 0.0])),
            extends=draw(st.sampled_from([None, *get_args(Extends)])),
        )
        for on in names
    )


@st.composite
def nodes(draw: st.DrawFn, workflow_id: str, request_id: str, earlier: list[str], start_ns: int) -> Node:
    """One node with every optional field now and then set."""

    def sometimes(strategy: st.SearchStrategy[object]) -> object:
        return draw(st.none() | strategy)

    parts = draw(st.lists(st.integers(0, 10**6), min_size=2, max_size=2))
    blocks = draw(st.none() | st.lists(st.integers(0, 2**64 - 1), max_size=20).map(tuple))
    return Node(
        workflow_id,
        request_id,
        start_ns + draw(NS | MS),
        draw(TOKENS),
        draw(TOKENS),
        session_id=sometimes(IDS),  # type: ignore[arg-type]
        agent_id=sometimes(IDS),  # type: ignore[arg-type]
        kind=draw(st.sampled_from(["llm", "llm", "tool", "human", "other"])),
        delay_ns=sum(parts) + draw(st.integers(0, 10**6)),
        tool_wait_ns=parts[0],
        think_ns=parts[1],
        deps=draw(deps(earlier)),
        cached_length=sometimes(TOKENS),  # type: ignore[arg-type]
        hash_ids=blocks,
        messages=sometimes(st.lists(OBJECTS, max_size=2).map(tuple)),  # type: ignore[arg-type]
        prompt=sometimes(TEXT),  # type: ignore[arg-type]
        output=sometimes(TEXT),  # type: ignore[arg-type]
        model=sometimes(IDS),  # type: ignore[arg-type]
        api=draw(st.sampled_from(APIS)),
        stream=draw(st.booleans()),
        sampling=draw(OBJECTS),
        status=sometimes(st.sampled_from(["ok", "error"])),  # type: ignore[arg-type]
        t_end_ns=sometimes(NS),  # type: ignore[arg-type]
        attrs=draw(OBJECTS),
    )


@st.composite
def workflows(draw: st.DrawFn, name: str, start_ns: int = 0) -> Workflow:
    """A workflow of up to six nodes whose edges go backwards (so it can run)."""
    count = draw(st.integers(1, 6))
    made: list[Node] = []
    for index in range(count):
        made.append(draw(nodes(name, f"n{index}", [n.request_id for n in made], start_ns)))
    return Workflow(name, tuple(made), draw(st.sampled_from(["workflow", "chat", "agentic"])))


@st.composite
def traces(draw: st.DrawFn, most: int = 6) -> list[Workflow]:
    """Workflows in any order of arrival."""
    count = draw(st.integers(1, most))
    return [draw(workflows(f"w{index}")) for index in range(count)]
