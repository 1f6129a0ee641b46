"""What a proxy is told before it starts, as one frozen value: upstreams, limits, timers, what to record.

Lives here: ProxyConfig, the parsing of upstream URLs, and the rule that a non-loopback address needs a key.
May not know: sockets, the command line, where journals lie. The default of every bound is documented in docs/proxy.md.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

from traces.errors import UserError

RecordContent = Literal["none", "hash", "text"]
SECOND_NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Target:
    """One upstream engine. `prefix` is put before every path (empty, or `/x` without a slash at its end)."""

    host: str
    port: int
    tls: bool
    prefix: str = ""

    @property
    def name(self) -> str:
        """host:port, as records name it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_target(url: str) -> Target:
    """`http[s]://host[:port][/prefix]` -> Target. UserError on anything else, credentials included."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise UserError(f"--upstream {url!r}: {error}; give it as http://host:port") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(f"--upstream {url!r}: not an http or https URL; give it as http://host:port")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise UserError(
            f"--upstream {parts.hostname}: credentials, query or fragment in the URL; use --upstream-key-env"
        )
    tls = parts.scheme == "https"
    return Target(parts.hostname, port or (443 if tls else 80), tls, parts.path.rstrip("/"))


@dataclass(frozen=True, slots=True)
class ParrotConfig:
    """What matters in front of a Parrot only (engine="parrot"); docs/parrot.md says why."""

    guard: bool = True
    """refuse what would hang or kill it"""
    allow_native: bool = False
    """let py_native_call through: its callers run code in the core"""
    passive: bool = True
    """read the values of intermediate calls ourselves, after the client's own GET, to see when they were ready"""
    get_deadline_ns: int | None = None
    """answer a GET that still waits after this long with 504; None: wait as the client does"""


@dataclass(frozen=True, slots=True)
class ProxyConfig:
    """Everything one worker needs. Secrets (key, upstream_key, run_key) never show in its repr."""

    upstreams: tuple[str, ...]
    engine: Literal["openai", "parrot"] = "openai"
    key: str | None = field(default=None, repr=False)
    """what clients must present (Authorization: Bearer, or x-api-key); required on a non-loopback address"""
    upstream_key: str | None = field(default=None, repr=False)
    """sent to the upstream as Authorization: Bearer in place of the client's"""
    run_key: bytes = field(default=b"", repr=False)
    """key of every digest and block hash of this run; never written anywhere"""
    allow: tuple[str, ...] = ()
    """paths let through beyond proxy/routes.py, exact"""
    splice_usage: bool = True
    record_content: RecordContent = "hash"
    block_bytes: int = 128
    """of the canonical prompt per block id: about 30 tokens, near an engine's own blocks of 16"""
    max_concurrency: int | None = None
    max_queue: int = 4096
    deadline_ns: int | None = None
    max_head: int = 64 << 10
    max_body: int = 64 << 20
    buffer_body: int = 1_000_000
    """bodies up to this are held whole (spliced, parsed, retried); larger ones stream on"""
    max_connections: int = 16_384
    head_timeout_ns: int = 10 * SECOND_NS
    body_timeout_ns: int = 30 * SECOND_NS
    """longest pause between two reads of a request body"""
    idle_timeout_ns: int = 75 * SECOND_NS
    connect_timeout_ns: int = 5 * SECOND_NS
    upstream_idle_ns: int = 3_500_000_000
    """idle upstream connections older than this are not used again (vLLM closes at 5 s)"""
    upstream_ca: str | None = None
    """CA file for https upstreams; None: the system's"""
    tls_cert: str | None = None
    tls_key: str | None = None
    parrot: ParrotConfig = field(default_factory=ParrotConfig)


def is_loopback(host: str) -> bool:
    """True for addresses that only this machine reaches."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check(config: ProxyConfig, host: str) -> None:
    """Refuse what would be unsafe or cannot work."""
    if not config.upstreams:
        raise UserError("--upstream: none given; name the engine as http://host:port")
    for url in config.upstreams:
        parse_target(url)
    if config.engine == "parrot" and len(config.upstreams) > 1:
        raise UserError("--upstream: --engine parrot takes one, since sessions live in one core; start one proxy each")
    if config.key is None and not is_loopback(host):
        raise UserError(f"--listen {host}: not a loopback address and no key; set --key-env, or listen on 127.0.0.1")
    if config.max_concurrency is not None and config.max_concurrency < 1:
        raise UserError(f"--max-concurrency {config.max_concurrency}: must be at least 1")
