"""What the end of an exchange means for the rest: an answer to go on from, or a request sent once more.

Pure. May not know: sockets, the agenda, what ended it.
"""

from __future__ import annotations

from loadgen.bodies import Output
from loadgen.client import Exchange, Row
from loadgen.options import ReplayOptions


def answered(exchange: Exchange, record: Row) -> Output:
    """What a node was asked and answered, for those that go on from it; lengths as planned where usage is missing."""
    node, asked, said = exchange.node, record.get("prompt_tokens"), record.get("completion_tokens")
    return Output(
        exchange.observer.text or "",
        node.output_length if said is None else said,
        exchange.body_form.messages,
        node.input_length if asked is None else asked,
    )


def repeated_ns(exchange: Exchange, options: ReplayOptions) -> int | None:
    """When a failed request is sent once more: after a pause that doubles. None: no more, or no longer in its time."""
    attempt = exchange.attempt
    if attempt > options.retries or not exchange.repeatable:
        return None
    again_ns = exchange.end_ns + (options.retry_wait_ns << (attempt - 1))
    return again_ns if again_ns < exchange.due_ns + options.timeout_ns else None
