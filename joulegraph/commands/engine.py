"""Start an engine: the embedded one (default), vLLM, llama.cpp, or look at one that already runs.

joulegraph engine [options]                  the embedded engine: continuous batching modelled, true joules known
joulegraph engine vllm --model M [-- FLAGS]  vLLM (any of its flags after --), with what joulegraph reads turned on
joulegraph engine xllamacpp [--model F.gguf] llama.cpp's server; SmolLM2 where no model is given
joulegraph engine attach URL                 says what runs there and what it lacks
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from joulegraph.flags import port, real, whole
from traces.errors import UserError

if TYPE_CHECKING:
    from engines.embedded.process import EngineConfig
    from engines.launchers.common import Launched

_COUNTS = ("max_num_seqs", "max_num_batched_tokens", "max_model_len", "tensor_parallel_size")
KINDS = ("embedded", "vllm", "xllamacpp", "attach")
_EMBEDDED = (
    "profile", "block_size", "kv_blocks", "replicas", "power_cap", "num_speculative_tokens", "draft_acceptance", "seed",
    "truth", "status", "no_enable_request_id_headers", "no_enable_per_request_metrics",
    "no_enable_prompt_tokens_details", "enable_force_include_usage", "api_key", "drain",
)  # fmt: skip
_WHOSE: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(_EMBEDDED, ("embedded",)),
    **dict.fromkeys(("python", "gpu_memory_utilization", "steps"), ("vllm",)),
    **dict.fromkeys(("model", "log"), ("vllm", "xllamacpp")),
    **dict.fromkeys(
        ("max_num_batched_tokens", "tensor_parallel_size", "no_enable_prefix_caching"), ("embedded", "vllm")
    ),
    **dict.fromkeys(("max_num_seqs", "max_model_len", "served_model_name"), ("embedded", "vllm", "xllamacpp")),
}
"""flags that not every kind has: an engine that ignored one would not be the engine that was asked for"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Options, named as vLLM's where it has them. None: the engine's own default."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("kind", nargs="?", choices=KINDS, default="embedded", help="which engine (default: embedded)")
    add("url", nargs="?", help="attach: where the engine runs")
    add("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    add("--port", type=port, default=8000, help="port; 0 takes any free one (default: %(default)s)")
    add("--served-model-name", metavar="NAME", help="model name that clients use (default: the profile's or model's)")
    add("--max-num-seqs", type=int, metavar="N", help="sequences per step (embedded: 256)")
    add("--max-num-batched-tokens", type=int, metavar="N", help="tokens per step (embedded: 8192)")
    add("--max-model-len", type=int, metavar="N", help="prompt plus output (embedded: what the profile has)")
    add("--tensor-parallel-size", type=int, metavar="N", help="GPUs per replica (embedded: 1)")
    add("--no-enable-prefix-caching", action="store_true", help="compute every prompt whole")
    add("--json", action="store_true", help="one line on stdout when the engine is ready: url, model, facts")
    _embedded_options(parser.add_argument_group("embedded engine"))
    launched = parser.add_argument_group("vllm, xllamacpp")
    launched.add_argument("--model", help="model path or name (vllm), .gguf file (xllamacpp)")
    launched.add_argument("--python", metavar="PATH", help="interpreter that has vLLM (default: whichever has it)")
    launched.add_argument(
        "--gpu-memory-utilization", type=real(above=0), metavar="U", help="share of GPU memory vLLM takes"
    )
    launched.add_argument("--steps", type=Path, metavar="FILE", help="journal of vLLM's iteration stream (level L3)")
    launched.add_argument("--log", type=Path, metavar="FILE", help="where the engine's own output goes")
    _take_flags(parser)


def _take_flags(parser: argparse.ArgumentParser) -> None:
    """What follows `--` is vLLM's: argparse (below 3.13) takes no positionals after options, so it is cut off first."""
    parse = parser.parse_args

    def parse_args(args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        words = list(sys.argv[1:] if args is None else args)
        at = words.index("--") if "--" in words else len(words)
        parsed = parse(words[:at], namespace)
        parsed.flags = words[at + 1 :]
        parsed.given = [name for name in _WHOSE if getattr(parsed, name) != parser.get_default(name)]
        return parsed

    parser.parse_args = parse_args  # type: ignore[method-assign,assignment]


def _embedded_options(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--profile", default="h100-llama8b", help="GPU + model, a name or a profile file (default: %(default)s)")
    add("--block-size", type=int, default=16, metavar="N", help="tokens per KV block (default: %(default)s)")
    add("--kv-blocks", type=int, metavar="N", help="KV blocks (default: what the profile's memory leaves)")
    add("--replicas", type=int, default=1, metavar="N", help="replicas behind this port (default: %(default)s)")
    add("--power-cap", type=int, metavar="W", help="lower the clock to stay under this power per GPU")
    add(
        "--num-speculative-tokens",
        type=whole(),
        default=0,
        metavar="K",
        help="draft tokens verified per step (0: none)",
    )
    add("--draft-acceptance", type=real(0), default=0.5, metavar="P", help="chance of each (default: %(default)s)")
    add("--seed", type=whole(), default=0, help="of outputs, ids and sensor noise (default: %(default)s)")
    add("--truth", type=Path, metavar="DIR", help="write truth.jsonl (true joules) and engine.jsonl (steps) there")
    add("--status", type=Path, metavar="FILE", help="publish counters and simulated sensors in this memory-mapped page")
    add("--no-enable-request-id-headers", action="store_true", help="no X-Request-Id in replies")
    add("--no-enable-per-request-metrics", action="store_true", help="no queue, prefill and decode times in replies")
    add("--no-enable-prompt-tokens-details", action="store_true", help="no cached tokens in usage")
    add("--enable-force-include-usage", action="store_true", help="usage in every stream, asked for or not")
    add("--api-key", metavar="KEY", help="ask for it on /v1 routes; needed beyond loopback")
    add("--drain", type=real(0), default=30.0, metavar="S", help="wait for running requests (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Serve until SIGTERM or Ctrl-C (attach: look and return)."""
    if args.flags and args.kind != "vllm":
        raise UserError(f"{args.flags[0]}: only vllm takes flags of its own after --; see joulegraph engine --help")
    if args.url and args.kind != "attach":
        raise UserError(f"{args.url}: only attach takes a URL; see joulegraph engine --help")
    for name in args.given:
        if args.kind not in _WHOSE[name]:
            own = "; vLLM's own flags come after --" if args.kind == "vllm" else ""
            raise UserError(f"--{name.replace('_', '-')}: has no effect on {args.kind}{own}; leave it out")
        if name in _COUNTS and getattr(args, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} is {getattr(args, name)}; give at least 1")
    guarded = args.api_key if args.kind == "embedded" else any(flag.startswith("--api-key") for flag in args.flags)
    if args.host not in ("127.0.0.1", "::1", "localhost") and args.kind != "attach" and not guarded:
        how = {"embedded": "give --api-key KEY", "vllm": "give vLLM its own: -- --api-key KEY"}.get(args.kind)
        raise UserError(f"--host {args.host}: without a key everyone could use it; {how or 'bind 127.0.0.1'}")
    return {"embedded": _embedded, "vllm": _vllm, "xllamacpp": _xllamacpp, "attach": _attach}[args.kind](args)


def _say(text: str) -> None:
    sys.stderr.write(f"joulegraph: {text}\n")
    sys.stderr.flush()


def _announce(args: argparse.Namespace, port: int, model: str, facts: dict[str, object]) -> None:
    """The address on stderr; with --json one line on stdout."""
    url = f"http://{args.host}:{port}"
    _say(f"engine {model} on {url} (Ctrl-C stops it)")
    if args.json:
        sys.stdout.write(json.dumps({"url": url, "model": model, "facts": facts}) + "\n")
        sys.stdout.flush()


def _embedded(args: argparse.Namespace) -> int:
    from engines.embedded import process
    from engines.embedded.server import RunningEngine

    def ready(running: RunningEngine) -> None:
        facts: dict[str, object] = {"engine": "embedded", "profile": args.profile}
        _announce(args, running.port, running.server.model, facts)

    process.run(config_of(args), ready, lambda end: None)
    return 0


def _vllm(args: argparse.Namespace) -> int:
    from engines.launchers.vllm import VllmOptions, launch

    if not args.model:
        raise UserError("no model given; joulegraph engine vllm --model NAME_OR_PATH")
    options = VllmOptions(
        model=args.model,
        python=args.python,
        host=args.host,
        port=args.port,
        served_model_name=args.served_model_name,
        max_num_seqs=args.max_num_seqs,
        max_num_batched_tokens=args.max_num_batched_tokens,
        max_model_len=args.max_model_len,
        gpu_memory_utilization=args.gpu_memory_utilization,
        tensor_parallel_size=args.tensor_parallel_size,
        enable_prefix_caching=False if args.no_enable_prefix_caching else None,
        extra=tuple(args.flags),
        steps=args.steps,
        log=args.log,
    )
    return _hold(args, lambda: launch(options, _say))


def _xllamacpp(args: argparse.Namespace) -> int:
    from engines.launchers.xllamacpp import XllamaOptions, launch

    options = XllamaOptions(
        model=Path(args.model) if args.model else None,
        served_model_name=args.served_model_name,
        host=args.host,
        port=args.port,
        context=args.max_model_len or 4096,
        max_num_seqs=args.max_num_seqs or 4,
        log=args.log,
    )
    return _hold(args, lambda: launch(options))


def _hold(args: argparse.Namespace, start: Callable[[], Launched]) -> int:
    """Keep a launched engine until a signal, or until it ends by itself."""
    over = threading.Event()
    started: list[Launched] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: over.set() if started else _interrupt())
    try:
        launched = start()
    except KeyboardInterrupt:
        _say("stopped while the engine was starting")
        return 130
    started.append(launched)
    with launched:
        _announce(args, launched.port, launched.model, launched.facts)
        over.wait()
        _say("stopping the engine")
    return 0


def _interrupt() -> None:
    raise KeyboardInterrupt


def _attach(args: argparse.Namespace) -> int:
    from engines.launchers.attach import launch

    if not args.url:
        raise UserError("no URL given; joulegraph engine attach http://HOST:PORT")
    launched = launch(args.url)
    version = launched.facts["version"] or "version unknown"
    _say(f"{launched.url}: {launched.facts['engine']} ({version}), model {launched.model or 'unknown'}")
    for lack in launched.facts["lacks"]:
        _say(f"  lacks: {lack}")
    if args.json:
        line = {"url": launched.url, "model": launched.model, "facts": launched.facts}
        sys.stdout.write(json.dumps(line) + "\n")
    return 0


def config_of(args: argparse.Namespace) -> EngineConfig:
    """The engine process that these options describe. UserError on impossible values."""
    from engines.embedded.process import EngineConfig
    from engines.embedded.server import EngineOptions
    from engines.embedded.types import Limits

    for name in ("block_size", "kv_blocks", "replicas"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} is {value}; give at least 1")
    default = Limits()
    limits = Limits(
        max_num_seqs=args.max_num_seqs or default.max_num_seqs,
        max_num_batched_tokens=args.max_num_batched_tokens or default.max_num_batched_tokens,
        max_model_len=args.max_model_len or default.max_model_len,
        block_size=args.block_size,
        kv_blocks=args.kv_blocks,
        enable_prefix_caching=not args.no_enable_prefix_caching,
        tensor_parallel_size=args.tensor_parallel_size or default.tensor_parallel_size,
        replicas=args.replicas,
        power_cap_w=args.power_cap,
        num_speculative_tokens=args.num_speculative_tokens,
        acceptance=args.draft_acceptance,
        seed=args.seed,
        served_model_name=args.served_model_name,
    )
    options = EngineOptions(
        profile=args.profile,
        limits=limits,
        tick_ns=5_000_000,
        request_id_headers=not args.no_enable_request_id_headers,
        per_request_metrics=not args.no_enable_per_request_metrics,
        prompt_tokens_details=not args.no_enable_prompt_tokens_details,
        force_include_usage=args.enable_force_include_usage,
        api_key=args.api_key,
    )
    if args.truth is not None:
        try:
            args.truth.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{args.truth}: cannot make the directory ({error.strerror}); choose another") from None
    return EngineConfig(
        options,
        args.host,
        args.port,
        truth=args.truth / "truth.jsonl" if args.truth else None,
        steps=args.truth / "engine.jsonl" if args.truth else None,
        status=args.status,
        drain_s=args.drain,
    )
