"""Which rows of a requests journal are calls of a model."""

from __future__ import annotations

from typing import Any

import pytest

from traces.records import is_call


@pytest.mark.parametrize(
    ("row", "call"),
    [
        ({"method": "POST", "path": "/v1/chat/completions", "api": "chat"}, True),
        ({"method": "GET", "path": "/a/v1", "api": "parrot"}, True),
        ({"method": "POST", "path": "/v1/embeddings", "api": None}, True),
        ({"method": "POST", "path": "/tokenize", "api": None}, False),
        ({"method": "POST", "path": "/v1/messages/count_tokens?beta=true", "api": None}, False),
        ({"method": "GET", "path": "/v1/models", "api": None}, False),
        ({"method": "GET", "path": "/metrics", "api": None}, False),
        ({"request_id": "from a foreign recording"}, True),
    ],
)
def test_what_asks_the_model_is_a_call(row: dict[str, Any], call: bool) -> None:
    assert is_call(row) is call
