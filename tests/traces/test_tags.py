"""Tags survive the wire; anything else is dropped, never passed on."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from traces.tags import (
    MAX_VALUE,
    Tag,
    clean,
    format_parents,
    from_baggage,
    from_headers,
    from_metadata,
    parse_parents,
    to_headers,
)
from traces.workflow import DEP_KINDS, Dep

names = st.text(st.characters(min_codepoint=32, max_codepoint=0x2FF), min_size=1, max_size=40).filter(
    lambda s: clean(s) == s
)
deps = st.builds(Dep, on=names, kind=st.sampled_from(DEP_KINDS), provenance=st.just("declared"))


@given(st.lists(deps, max_size=10))
def test_parents_round_trip(parents: list[Dep]) -> None:
    assert parse_parents(format_parents(tuple(parents))) == tuple(parents)


@given(names, names, st.lists(deps, max_size=4), st.none() | names)
def test_headers_metadata_and_baggage_say_the_same(
    workflow: str, node: str, parents: list[Dep], agent: str | None
) -> None:
    tag = Tag(workflow, node, tuple(parents), agent, source="x-workflow")
    assert from_headers(dict(to_headers(tag))) == tag
    metadata = {"workflow_id": workflow, "workflow_node": node, "workflow_parents": format_parents(tag.parents)}
    read = from_metadata(metadata)
    assert read is not None
    assert (read.workflow_id, read.node_id, read.parents) == (workflow, node, tag.parents)
    baggage = f"other=1,workflow.id={quote(workflow, safe='')};p=1,workflow.node={quote(node, safe='')}"
    carried = from_baggage(baggage)
    assert carried is not None
    assert (carried.workflow_id, carried.node_id) == (workflow, node)


@pytest.mark.parametrize("bad", ["", "   ", "a\nb", "a\x00", "x" * (MAX_VALUE + 1), 5, None])
def test_unusable_values_are_dropped(bad: object) -> None:
    assert clean(bad) is None


@given(st.text(max_size=400))
def test_no_input_breaks_the_parsers(text: str) -> None:
    for dep in parse_parents(text):
        assert clean(dep.on) is not None
    from_baggage(text)
    from_headers({"x-workflow-id": text, "x-workflow-parents": text})
