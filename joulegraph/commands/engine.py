"""Start the embedded engine: an OpenAI-speaking server over a model of continuous batching that knows true joules."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from traces.errors import UserError

if TYPE_CHECKING:
    from engines.embedded.process import EngineConfig


def configure(parser: argparse.ArgumentParser) -> None:
    """Options, named as vLLM's where it has them."""
    add = parser.add_argument
    add(
        "--profile",
        default="h100-llama8b",
        help="GPU + model, by name or path of a profile file (default: %(default)s)",
    )
    add("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    add("--port", type=int, default=8000, help="port; 0 takes any free one (default: %(default)s)")
    add("--served-model-name", metavar="NAME", help="model name that clients use (default: the profile's)")
    add("--max-num-seqs", type=int, default=256, metavar="N", help="sequences per step (default: %(default)s)")
    add("--max-num-batched-tokens", type=int, default=8192, metavar="N", help="tokens per step (default: %(default)s)")
    add("--max-model-len", type=int, default=131_072, metavar="N", help="prompt plus output (default: %(default)s)")
    add("--block-size", type=int, default=16, metavar="N", help="tokens per KV block (default: %(default)s)")
    add("--kv-blocks", type=int, metavar="N", help="KV blocks (default: what the profile's memory leaves)")
    add("--tensor-parallel-size", type=int, default=1, metavar="N", help="GPUs per replica (default: %(default)s)")
    add("--replicas", type=int, default=1, metavar="N", help="replicas behind this port (default: %(default)s)")
    add("--power-cap", type=int, metavar="W", help="lower the clock to stay under this power per GPU")
    add("--no-enable-prefix-caching", action="store_true", help="compute every prompt whole")
    add("--seed", type=int, default=0, help="of outputs, ids and sensor noise (default: %(default)s)")
    add("--truth", type=Path, metavar="DIR", help="write truth.jsonl (true joules) and engine.jsonl (steps) there")
    add("--status", type=Path, metavar="FILE", help="publish counters and simulated sensors in this memory-mapped page")
    add("--no-enable-request-id-headers", action="store_true", help="no X-Request-Id in replies")
    add("--no-enable-per-request-metrics", action="store_true", help="no queue, prefill and decode times in replies")
    add("--no-enable-prompt-tokens-details", action="store_true", help="no cached tokens in usage")
    add("--enable-force-include-usage", action="store_true", help="usage in every stream, asked for or not")
    add(
        "--drain",
        type=float,
        default=30.0,
        metavar="S",
        help="wait for running requests at the end (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Serve until SIGTERM or Ctrl-C."""
    from engines.embedded import process
    from engines.embedded.server import RunningEngine

    config = config_of(args)
    if args.host not in ("127.0.0.1", "::1", "localhost"):
        sys.stderr.write("joulegraph: this engine has no key: everyone who reaches the address can use it\n")

    def ready(running: RunningEngine) -> None:
        model = running.server.model
        sys.stderr.write(f"joulegraph: engine {model} on http://{args.host}:{running.port} (Ctrl-C drains)\n")
        sys.stderr.flush()

    process.run(config, ready, lambda end: None)
    return 0


def config_of(args: argparse.Namespace) -> EngineConfig:
    """The engine process that these options describe. UserError on impossible values."""
    from engines.embedded.process import EngineConfig
    from engines.embedded.server import EngineOptions
    from engines.embedded.types import Limits

    for name in (
        "max_num_seqs",
        "max_num_batched_tokens",
        "max_model_len",
        "block_size",
        "tensor_parallel_size",
        "replicas",
    ):
        if getattr(args, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} is {getattr(args, name)}; give at least 1")
    limits = Limits(
        max_num_seqs=args.max_num_seqs,
        max_num_batched_tokens=args.max_num_batched_tokens,
        max_model_len=args.max_model_len,
        block_size=args.block_size,
        kv_blocks=args.kv_blocks,
        enable_prefix_caching=not args.no_enable_prefix_caching,
        tensor_parallel_size=args.tensor_parallel_size,
        replicas=args.replicas,
        power_cap_w=args.power_cap,
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
