"""Flags of `joulegraph replay` that cannot be meant, or that would do nothing beside the others: refused, each by name.

Why: a flag without effect is a figure misread later (a batch size that never held, users who never paused). Lives here:
the ranges that need more than one flag, and what each flag needs to have an effect. May not know: traces, engines.
"""

from __future__ import annotations

import argparse
from typing import Any

from traces.errors import UserError

EMBEDDED = "--embedded PROFILE"
TARGET = "--target URL"
PARROT = "--api parrot"
SIMULATED = "an embedded Parrot (--api parrot --embedded PROFILE)"


def check_options(args: argparse.Namespace) -> None:
    """UserError for a figure that cannot be meant; each sentence names its flag."""
    _refuse_without_effect(args)
    shares = {"--cancel": args.cancel, "--max-merged": args.max_merged}
    for flag, value in shares.items():
        if not 0 <= value <= 1:
            raise UserError(f"{flag} {value:g}: must be a share from 0 to 1")
    for flag, value in {
        "--think": args.think, "--cancel-after": args.cancel_after, "--drain": args.drain, "--prewarm": args.prewarm,
        "--retries": args.retries,
    }.items():  # fmt: skip
        if value < 0:
            raise UserError(f"{flag} {value:g}: must not be below 0")
    for flag, value in {"--users": args.users, "--timeout": args.timeout, "--max-lateness": args.max_lateness}.items():
        if value is not None and not value > 0:
            raise UserError(f"{flag} {value:g}: must be above 0")


def _refuse_without_effect(args: argparse.Namespace) -> None:
    """UserError for a flag that would do nothing as the others stand: whoever gave it meant something by it."""
    if args.embedded and args.shards > 1 and not args.real_time:
        raise UserError(f"--shards {args.shards}: virtual time is one process; add --real-time, or leave it out")
    if args.target and args.real_time:
        raise UserError("--real-time: has no effect on --target, which is real; leave it out")
    for flag, given, needed in _needs(args):
        if given:
            raise UserError(f"{flag}: has no effect without {needed}; add that, or leave the flag out")
    if args.users is not None:
        for flag, given in (("--arrivals", args.arrivals != "recorded"), ("--idle-cap", args.idle_cap is not None)):
            if given:
                raise UserError(f"{flag}: has no effect on users in a closed loop; leave it out, or --users")


def _needs(args: argparse.Namespace) -> list[tuple[str, Any, str]]:
    """(flag, whether it was given although what it needs is not there, what it needs)."""
    no_target, no_parrot = not args.target, args.api != "parrot"
    no_serve_layer = no_parrot or not args.embedded
    return [
        ("--api-key-env", no_target and args.api_key_env, TARGET),
        ("--ca-file", no_target and args.ca_file, TARGET),
        ("--insecure", no_target and args.insecure, TARGET),
        ("--engine-steps", no_target and args.engine_steps, TARGET),
        ("--otlp-port", no_target and args.otlp_port is not None, TARGET),
        ("--sm-clock", no_target and args.sm_clock is not None, TARGET),
        ("--sources", no_target and args.sources != "nvml,rapl", TARGET),
        ("--model", no_target and args.model, TARGET),
        ("--max-num-seqs", args.target and args.max_num_seqs is not None, EMBEDDED),
        ("--max-num-batched-tokens", args.target and args.max_num_batched_tokens is not None, EMBEDDED),
        ("--max-model-len", args.target and args.max_model_len is not None, EMBEDDED),
        ("--no-prefix-caching", args.target and args.no_prefix_caching, EMBEDDED),
        ("--criteria", no_parrot and args.criteria != "pattern", PARROT),
        ("--scheduling", no_serve_layer and args.scheduling, SIMULATED),
        ("--tasks-capacity", no_serve_layer and args.tasks_capacity != 256, SIMULATED),
        ("--chunk-ms", no_serve_layer and args.chunk_ms, SIMULATED),
        ("--engines", no_serve_layer and args.engines != 1, SIMULATED),
        ("--think", args.users is None and args.think, "--users N"),
        ("--cancel-after", not args.cancel and args.cancel_after != 1.0, "--cancel SHARE"),
        ("--vocab", args.prompts == "words" and args.vocab, "--prompts ids"),
    ]
