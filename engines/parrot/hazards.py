"""Requests that must not reach a Parrot: they would hang it, end it, return wrong data or run code. Pure.

May not know: sockets, who refuses.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engines.parrot.protocol import CRITERIA, MODEL_TYPES, Route, split_template


def hazard(route_: Route, body: Mapping[str, Any] | None, *, allow_native: bool = False) -> str | None:
    """Why a request must not reach a Parrot: one sentence, or None.

    Only what hangs or kills it, corrupts results, or runs code; what it answers with an error of its own may pass,
    except where the error shows only at a later GET.
    """
    if route_.kind == "native" and not allow_native:
        return "py_native_call runs code inside the serve layer; start the proxy with --parrot-native to allow it"
    if route_.kind != "call" or body is None:
        return None
    return _call_hazard(body)


def _call_hazard(body: Mapping[str, Any]) -> str | None:
    model_type = body.get("model_type", "token_id")
    if model_type not in MODEL_TYPES:
        return (
            f"model_type must be one of {', '.join(MODEL_TYPES)}: any other ends the serve layer once it is scheduled"
        )
    if body.get("fuse_fill"):
        return "fuse_fill must stay false: it generates on another call's context"
    criteria = body.get("output_criteria")
    if criteria is not None and criteria not in CRITERIA:
        return f"output_criteria must be one of {', '.join(CRITERIA)}"
    rows, template = body.get("parameters"), body.get("template")
    if not isinstance(rows, list) or not isinstance(template, str):
        return None  # the server says so itself
    outputs = {str(r.get("name")) for r in rows if isinstance(r, dict) and r.get("is_output") is True}
    if len(outputs) > 1:
        return "a call may have one output only: with more, reading them fails"
    pieces = split_template(template)
    if pieces and pieces[0][1] and pieces[0][0] in outputs:
        return "the template must not begin with its output"
    if outputs and sum(1 for text, name in pieces if name and text in outputs) != 1:
        return "the output must stand in the template exactly once"
    return None
