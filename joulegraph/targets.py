"""What answers at a URL: reachable at all, which model, which server. Asked once, before anything is started.

Blocking and small (standard library), because it runs before any loop. May not know: what will be sent there.
"""

from __future__ import annotations

import json
import ssl
import urllib.error
import urllib.request
from dataclasses import dataclass

from traces.errors import UserError

EXACT = ("vllm", "sglang", "llamacpp", "joulegraph-embedded")
"""owners (owned_by of /v1/models) of engines that know ignore_eos"""


@dataclass(frozen=True, slots=True)
class Server:
    """An engine (or proxy) that answered."""

    url: str
    models: tuple[str, ...]
    owner: str | None
    """owned_by of its first model: vllm, sglang, llamacpp, library (Ollama) ..."""
    context: int | None
    """max_model_len where it says so"""

    @property
    def exact_lengths(self) -> bool:
        """It knows ignore_eos, so output lengths come out as planned."""
        return self.owner in EXACT


def ask(url: str, *, api_key: str | None = None, timeout_s: float = 5.0, tls: ssl.SSLContext | None = None) -> Server:
    """GET /v1/models. UserError when nothing answers or it is no OpenAI-style server."""
    base = _base(url)
    request = urllib.request.Request(f"{base}/v1/models")
    if api_key:
        request.add_header("Authorization", f"Bearer {api_key}")
    opener = _opener(tls)
    try:
        with opener.open(request, timeout=timeout_s) as reply:
            body = json.loads(reply.read(1 << 20))
        first = body["data"][0]
        models = tuple(str(m["id"]) for m in body["data"])
    except urllib.error.HTTPError as error:
        error.close()
        raise UserError(
            f"{url}: GET /v1/models answered {error.code}; give the address of an OpenAI-style server"
        ) from error
    except (OSError, ValueError) as error:
        why = getattr(error, "reason", error)
        raise UserError(f"{url}: no engine answers there ({why}); start it or correct the address") from error
    except (KeyError, IndexError, TypeError) as error:
        raise UserError(f"{url}: /v1/models lists no model; give the address of an OpenAI-style server") from error
    length = first.get("max_model_len")
    return Server(base, models, first.get("owned_by"), length if isinstance(length, int) else None)


def ask_parrot(url: str, *, timeout_s: float = 5.0, tls: ssl.SSLContext | None = None) -> None:
    """Open a session and close it again. UserError when nothing answers or it is no Parrot."""
    base, opener = _base(url), _opener(tls)
    wanted = "give the address of a Parrot's serve layer, or of a proxy with --engine parrot in front of one"
    try:
        with opener.open(_json(f"{base}/v1/session", "POST"), timeout=timeout_s) as reply:
            session = json.loads(reply.read(1 << 20))["session_id"]
        opener.open(_json(f"{base}/v1/session/{session}", "DELETE"), timeout=timeout_s).close()
    except urllib.error.HTTPError as error:
        error.close()
        raise UserError(f"{url}: /v1/session answered {error.code}; {wanted}") from error
    except (OSError, ValueError) as error:
        why = getattr(error, "reason", error)
        raise UserError(f"{url}: no Parrot answers there ({why}); start it or correct the address") from error
    except (KeyError, TypeError) as error:
        raise UserError(f"{url}: /v1/session gives no session_id; {wanted}") from error


def _json(url: str, method: str) -> urllib.request.Request:
    return urllib.request.Request(url, b"{}", {"Content-Type": "application/json"}, method=method)


def _base(url: str) -> str:
    base = url.rstrip("/").removesuffix("/v1")
    if not base.lower().startswith(("http://", "https://")):
        raise UserError(f"{url}: not an http:// or https:// address; give something like http://127.0.0.1:8000")
    return base


def _opener(tls: ssl.SSLContext | None) -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=tls))
