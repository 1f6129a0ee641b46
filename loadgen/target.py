"""Where the load goes and what that server understands: address, model, key, and the few facts that change a body.

Values only, plus the parsing of a --target URL. May not know: sockets, prompts, traces' content.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

from traces.errors import UserError

PATHS = {
    "completions": "/v1/completions",
    "chat": "/v1/chat/completions",
    "responses": "/v1/responses",
    "messages": "/v1/messages",
}


@dataclass(frozen=True, slots=True)
class Tls:
    """How to trust an https server. Values only, so that a target travels to other processes."""

    ca_file: str | None = None
    """PEM file of certificates to trust; None: the system's"""
    verify: bool = True
    """False is for a test server's own certificate, and is disclosed"""

    def context(self) -> ssl.SSLContext:
        """The client side of TLS. UserError when the file cannot be used."""
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
        except (OSError, ssl.SSLError) as error:
            raise UserError(f"--ca-file {self.ca_file}: cannot be used ({error}); give a PEM file") from error
        if not self.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context


@dataclass(frozen=True, slots=True)
class Target:
    """A server and how to speak to it."""

    host: str
    port: int
    model: str = "default"
    """for nodes that name none; `force_model` uses it for all"""
    force_model: bool = True
    api: Literal["completions", "chat", "responses", "messages", "parrot"] | None = None
    """dialect for every request; None: the node's own"""
    criteria: Literal["pattern", "latency", "throughput"] = "pattern"
    """api parrot: how calls are activated (loadgen.parrot_plan.CriteriaRule)"""
    base: str = ""
    """path before /v1"""
    exact: bool = True
    """the server knows ignore_eos and min_tokens (vLLM, the embedded engine), so output lengths are exact"""
    prompts: Literal["ids", "words"] = "ids"
    """form of synthetic prompts on /v1/completions; chat, responses and messages always carry words"""
    vocab: tuple[int, int] = (1_000, 31_000)
    """[lowest, one past the highest) token id of synthetic id prompts"""
    overhead_tokens: int = 0
    """tokens the server adds to a word prompt (template, BOS); found by calibration and taken off the words"""
    turn_tokens: int = 0
    """tokens it adds to an answer and the message after it, when a conversation goes on; found and used alike"""
    api_key: str | None = field(default=None, repr=False)
    ssl: Tls | None = None
    """None: plain HTTP"""

    @property
    def authority(self) -> str:
        """host:port as in a Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def split_url(url: str) -> tuple[str, int, str, bool]:
    """host, port, path before /v1, whether TLS. UserError when it is no http(s) URL."""
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        port = parts.port
    except ValueError as error:
        raise UserError(f"--target {url}: not a URL ({error}); give something like http://127.0.0.1:8000") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(f"--target {url}: must be http:// or https:// with a host, like http://127.0.0.1:8000")
    secure = parts.scheme == "https"
    base = parts.path.rstrip("/").removesuffix("/v1").rstrip("/")
    return parts.hostname, port or (443 if secure else 80), base, secure
