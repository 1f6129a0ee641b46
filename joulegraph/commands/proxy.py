"""Observe and tag live traffic in front of an engine: change only base_url of existing clients to the listen address.
Every request is recorded into a run directory; bodies of replies pass unchanged. Ctrl-C or SIGTERM drains and leaves,
SIGHUP reopens the journals. The control port shows /metrics, /workflows, /workflows/ID, /healthz, takes PUT /limit."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

from joulegraph.flags import real


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--upstream", action="append", required=True, metavar="URL", help="engine, http(s)://host:port; may be repeated"
    )
    parser.add_argument("--listen", default="127.0.0.1:8001", metavar="HOST:PORT", help="default %(default)s")
    parser.add_argument(
        "--control", type=int, metavar="PORT", help="control port on 127.0.0.1 (default: the listen port plus 1)"
    )
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes that share the port")
    parser.add_argument("--record", metavar="DIR", help="run directory to write (default runs/proxy-TIME)")
    parser.add_argument(
        "--record-content", choices=("none", "hash", "text"), default="hash", help="of prompts (default %(default)s)"
    )
    parser.add_argument("--max-concurrency", type=int, metavar="N", help="requests at the engine at once; others queue")
    parser.add_argument("--deadline", type=real(above=0), metavar="S", help="end every request after this long")
    parser.add_argument("--drain", type=real(0), default=30.0, metavar="S", help="time for running requests at the end")
    parser.add_argument(
        "--max-body", type=real(above=0), default=64.0, metavar="MB", help="request body cap (default 64)"
    )
    parser.add_argument("--engine", choices=("openai", "parrot"), default="openai", help="what the upstream speaks")
    parser.add_argument("--parrot-native", action="store_true", help="Parrot: let py_native_call through (runs code)")
    parser.add_argument(
        "--parrot-deadline", type=real(above=0), metavar="S", help="Parrot: answer a GET that waits longer with 504"
    )
    parser.add_argument(
        "--parrot-no-passive", action="store_true", help="Parrot: never read intermediate values to see when they ended"
    )
    parser.add_argument("--allow", action="append", default=[], metavar="PATH", help="let one more path through")
    parser.add_argument("--no-splice-usage", action="store_true", help="never ask for usage in a client's stream")
    parser.add_argument("--key-env", metavar="NAME", help="environment variable with the key clients must present")
    parser.add_argument("--upstream-key-env", metavar="NAME", help="variable with the key sent to the engine")
    parser.add_argument("--upstream-ca", metavar="FILE", help="CA certificates for an https upstream")
    parser.add_argument("--tls-cert", metavar="FILE", help="serve https with this certificate chain")
    parser.add_argument("--tls-key", metavar="FILE", help="its private key")
    parser.add_argument("--sample", action="store_true", help="sample power too and attribute continuously")
    parser.add_argument(
        "--source", action="append", default=[], metavar="NAME", help="power source for --sample (default nvml, rapl)"
    )
    parser.add_argument("--json", action="store_true", help="one line with the addresses on stdout once it listens")


def run(args: argparse.Namespace) -> int:
    """Serve until told to stop."""
    from joulegraph.proxying import run_proxy
    from joulegraph.proxyworkers import ProxyPlan
    from traces.errors import UserError

    host, port = address(args.listen)
    _refuse_without_effect(args)
    _refuse_itself(args.upstream, host, port)
    if args.engine == "parrot" and args.workers > 1:
        raise UserError(f"--workers {args.workers}: --engine parrot takes 1, since one worker must see a whole session")
    plan = ProxyPlan(
        proxy=proxy_config(args, host),
        host=host,
        port=port,
        control_port=control_port(args.control, port),
        workers=checked(args.workers, "--workers", 1),
        record=_record(args.record),
        drain_s=args.drain,
        sample=args.sample,
        sources=tuple(args.source) or ("nvml", "rapl"),
        say=_say_json if args.json else _say_text,
    )
    run_proxy(plan)
    return 0


def _refuse_without_effect(args: argparse.Namespace) -> None:
    """UserError for a flag that would do nothing as the others stand: whoever gave it meant something by it."""
    from traces.errors import UserError

    secure = any(url.lower().startswith("https://") for url in args.upstream)
    parrot = {"--parrot-native": args.parrot_native, "--parrot-deadline": args.parrot_deadline is not None}
    parrot["--parrot-no-passive"] = args.parrot_no_passive
    idle = [
        ("--upstream-ca", args.upstream_ca is not None and not secure, "an https --upstream"),
        ("--tls-key", args.tls_key is not None and args.tls_cert is None, "--tls-cert too"),
        ("--source", bool(args.source) and not args.sample, "--sample"),
        *((name, given and args.engine != "parrot", "--engine parrot") for name, given in parrot.items()),
    ]
    for name, useless, needed in idle:
        if useless:
            raise UserError(f"{name}: has no effect without {needed}; add that, or leave the flag out")
    for path in args.allow:
        if not path.startswith("/") or ".." in path.split("/"):
            raise UserError(f"--allow {path}: not a path of the engine; give it as it is asked for, like /v1/rerank")


def _refuse_itself(upstreams: list[str], host: str, port: int) -> None:
    """UserError for an upstream that is this proxy: its first request would go round until no connection is left."""
    from proxy.config import is_loopback, parse_target
    from traces.errors import UserError

    names = {"localhost": "127.0.0.1"}
    for url in upstreams:
        target = parse_target(url)
        there = names.get(target.host, target.host)
        same = there == names.get(host, host) or (host in ("0.0.0.0", "::") and is_loopback(there))
        if same and target.port == port:
            raise UserError(f"--upstream {url}: is where this proxy listens; name the engine, or give another --listen")


def proxy_config(args: argparse.Namespace, host: str) -> Any:
    """The proxy's configuration from the command line. UserError on what cannot work."""
    from proxy.config import ParrotConfig, ProxyConfig, check

    config = ProxyConfig(
        upstreams=tuple(args.upstream),
        engine=args.engine,
        key=secret(args.key_env, "--key-env"),
        upstream_key=secret(args.upstream_key_env, "--upstream-key-env"),
        run_key=os.urandom(32),
        allow=tuple(args.allow),
        splice_usage=not args.no_splice_usage,
        record_content=args.record_content,
        max_concurrency=args.max_concurrency,
        deadline_ns=round(args.deadline * 1e9) if args.deadline is not None else None,
        max_body=round(args.max_body * 1e6),
        upstream_ca=args.upstream_ca,
        tls_cert=args.tls_cert,
        tls_key=args.tls_key,
        parrot=ParrotConfig(
            allow_native=args.parrot_native,
            passive=not args.parrot_no_passive,
            get_deadline_ns=round(args.parrot_deadline * 1e9) if args.parrot_deadline is not None else None,
        ),
    )
    check(config, host)
    return config


def address(text: str) -> tuple[str, int]:
    """HOST:PORT, [IPv6]:PORT or a bare PORT. UserError otherwise."""
    from traces.errors import UserError

    host, _, port = text.rpartition(":")
    if not port.isdigit() or int(port) > 65535:
        raise UserError(f"--listen {text}: not HOST:PORT; for instance 127.0.0.1:8001")
    return host.strip("[]") or "127.0.0.1", int(port)


def control_port(given: int | None, listen: int) -> int:
    """The control port: beside the listen port unless given, any free one where that is 0 too. UserError: no port."""
    from traces.errors import UserError

    if given is not None and not 0 <= given <= 65535:
        raise UserError(f"--control {given}: not a port; give 1 to 65535, or 0 for any free one")
    if given is not None and given == listen != 0:
        raise UserError(f"--control {given}: the proxy listens on that port; give another, or leave the flag out")
    if given is not None or listen == 0:
        return given or 0
    return listen + 1 if listen < 65535 else listen - 1


def secret(name: str | None, option: str) -> str | None:
    """A secret from the environment: never from the command line, which other users can read."""
    from traces.errors import UserError

    if name is None:
        return None
    value = os.environ.get(name, "")
    if not value or not value.isascii() or not value.isprintable():
        raise UserError(f"{option} {name}: the environment variable is empty or not printable ASCII; set it")
    return value


def checked(value: int, option: str, least: int) -> int:
    """A number that is at least `least`."""
    from traces.errors import UserError

    if value < least:
        raise UserError(f"{option} {value}: must be at least {least}")
    return value


def _record(given: str | None) -> Any:
    import time
    from pathlib import Path

    return Path(given) if given else Path("runs") / time.strftime("proxy-%Y%m%d-%H%M%S")


def _say_text(told: dict[str, Any]) -> None:
    sys.stderr.write(
        f"proxy listens on {told['listen']}, control port {told['control']}, records to {told['run']}; "
        f"hot modules: {told['hot_modules']}; Ctrl-C drains\n"
    )


def _say_json(told: dict[str, Any]) -> None:
    import orjson

    sys.stdout.write(orjson.dumps(told).decode() + "\n")
    sys.stdout.flush()
