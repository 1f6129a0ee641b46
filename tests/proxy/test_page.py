"""The proxy's page counts every pause between tokens, whatever way it finds their buckets."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from joulegraph.live.watch import Watch
from proxy.config import ProxyConfig
from proxy.exchange import Exchange
from proxy.heads import RequestHead, read_request
from proxy.page import Page
from tests.proxy.test_exchange import head
from traces.status import HISTOGRAM_BUCKETS, StatusReader, histogram_names

EDGES = [round(1000 * 2 ** (k / 4)) for k in range(1, HISTOGRAM_BUCKETS)]
pauses = st.integers(1_100, 10**13) | st.integers(4_900_000, 5_100_000)


@given(st.lists(st.tuples(pauses, st.sampled_from([0, 1, 1, 1, 3]))))
def test_each_token_after_the_first_read_adds_one_pause(reads: list[tuple[int, int]]) -> None:
    exchange, page = Exchange(head(b"/v1/chat/completions"), 5, 5), Page(None)
    expected = [0] * HISTOGRAM_BUCKETS
    pause, started = 0, False
    for gap, tokens in reads:
        exchange.read_times.append(gap)
        exchange.read_tokens.append(tokens)
        pause += gap
        if tokens and started:
            expected[sum(pause // tokens >= edge for edge in EDGES)] += tokens
        if tokens:
            pause, started = 0, True
    exchange.t_first_token_ns, exchange.t_last_token_ns = (6, 7) if started else (None, None)
    exchange.end("ok", 10)
    page.ended(exchange, 0)
    slots, index = page.status.slots, page.status.index
    assert [slots[index[name]] for name in histogram_names("itl")] == expected


def test_polls_are_done_but_no_calls_of_a_model() -> None:
    page = Page(None)
    config = ProxyConfig(("http://127.0.0.1:1",))
    for method, path in (b"GET", b"/metrics"), (b"POST", b"/tokenize"), (b"POST", b"/v1/embeddings"):
        made = read_request(method, path, "1.1", [(b"Host", b"p")], True, config, frozenset())
        assert isinstance(made, RequestHead)
        exchange = Exchange(made, 5, 5)
        exchange.end("ok", 10)
        page.ended(exchange, 0)
    slots = page.status.slots
    assert (slots[page.status.index["done"]], slots[page.status.index["looks"]]) == (3, 2)
    shown = Watch({"proxy": [StatusReader(page.status)]}).read(10).proxy
    assert shown is not None and shown.done == 1
