"""An engine that already runs at a URL: asked who it is; what it lacks for joulegraph is said, nothing is stopped.

May not know: how to start anything.
"""

from __future__ import annotations

import http.client
from dataclasses import dataclass
from urllib.parse import urlsplit

import orjson

from engines.launchers.common import Launched, get, models
from traces.errors import UserError


@dataclass(frozen=True, slots=True)
class Kind:
    """An engine that can be told from its answers."""

    name: str
    lacks: tuple[str, ...]


VLLM = Kind("vllm", ("level L2 needs --enable-per-request-metrics, cached tokens --enable-prompt-tokens-details",))
SGLANG = Kind(
    "sglang",
    (
        "no per-request times in replies (level L1)",
        "the X-Request-Id of a request does not become the reply's id",
        "cached tokens need --enable-cache-report",
    ),
)
TGI = Kind(
    "tgi",
    (
        "no per-request times in replies (level L1)",
        "no cached tokens in usage",
        "no token-id prompts, so exact lengths only where max_tokens is reached",
    ),
)
LLAMA_CPP = Kind(
    "llama.cpp",
    (
        "no queue time (its `timings` give prefill and decode)",
        "min_tokens is unknown, ignore_eos holds",
        "the X-Request-Id of a request does not become the reply's id",
    ),
)
OLLAMA = Kind(
    "ollama",
    (
        "no per-request times on the OpenAI routes (level L1)",
        "no cached tokens, no token-id prompts, no ignore_eos: lengths are not exact",
        "no /metrics",
    ),
)
EMBEDDED = Kind("joulegraph embedded", ())
UNKNOWN = Kind(
    "unknown OpenAI-compatible engine", ("what it reports is taken as it comes; usage decides the level (L1 at most)",)
)


def identify(host: str, port: int) -> tuple[Kind, str | None]:
    """The kind of engine and its version where it says so. UserError when nothing answers there."""
    try:
        version = _version(host, port)
    except (OSError, http.client.HTTPException) as error:
        raise UserError(f"nothing answers at http://{host}:{port} ({error}); start it or mend the URL") from None
    metrics = _text(host, port, "/metrics")
    if version and version.endswith("+joulegraph-embedded"):
        return EMBEDDED, version
    for sign, kind in (("vllm:", VLLM), ("sglang:", SGLANG), ("tgi_", TGI), ("llamacpp:", LLAMA_CPP)):
        if sign in metrics:
            return kind, version
    if "ollama" in _text(host, port, "/").lower():
        return OLLAMA, version or _ollama_version(host, port)
    if '"build_info"' in (props := _text(host, port, "/props")) or '"default_generation_settings"' in props:
        return LLAMA_CPP, version
    if "model_id" in (info := _text(host, port, "/info")) and "max_concurrent_requests" in info:
        return TGI, version
    if "model_path" in _text(host, port, "/get_model_info"):
        return SGLANG, version
    return (VLLM, version) if version else (UNKNOWN, None)


def _version(host: str, port: int) -> str | None:
    status, body = get(host, port, "/version")
    try:
        found = orjson.loads(body).get("version") if status == 200 else None
    except (orjson.JSONDecodeError, AttributeError):
        return None
    return found if isinstance(found, str) else None


def _ollama_version(host: str, port: int) -> str | None:
    try:
        return str(orjson.loads(_text(host, port, "/api/version"))["version"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return None


def _text(host: str, port: int, path: str) -> str:
    try:
        status, body = get(host, port, path)
    except (OSError, http.client.HTTPException):
        return ""
    return body.decode(errors="replace") if status == 200 else ""


def launch(url: str) -> Launched:
    """Look at a running engine; leaving the `with` block leaves it alone."""
    parts = urlsplit(url if "//" in url else f"http://{url}")
    try:
        port = parts.port
    except ValueError:
        port = None
    if parts.scheme != "http" or not parts.hostname:
        raise UserError(f"{url}: not an http URL of an engine; give http://HOST:PORT")
    port = port or 80
    kind, version = identify(parts.hostname, port)
    names = models(parts.hostname, port)
    facts = {"engine": kind.name, "version": version, "models": names, "lacks": list(kind.lacks), "url": url}
    return Launched(parts.hostname, port, names[0] if names else "", facts)
