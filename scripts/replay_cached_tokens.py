#!/usr/bin/env python3
"""Does a replayed proxy recording find as much in the prefix cache as was found when it was recorded?

Chats of the real openai client go through `joulegraph proxy` to an engine (the embedded one in real time, or --target);
the recording is replayed by `joulegraph replay` onto the same kind of engine; cached tokens are compared. Five kinds:
short chats, long chats, chats that share a system prompt, single questions behind a short one, agents with tools. No
prompt text is kept in between.
One line of JSON per kind, with tagged (X-Workflow-Id) and untagged clients; exit code 1 when one is off by over 5 %.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import openai

from traces.rundir import RunDir

BOUND = 0.05
TEXT = re.findall(r"[A-Za-z]+", (Path(__file__).parents[1] / "LICENSE").read_text())
"""natural words, some long, some short: bytes per token differ from place to place as in real prompts"""
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": f"{name.capitalize()} something and give the result as text",
            "parameters": {"type": "object", "properties": {"what": {"type": "string"}}, "required": ["what"]},
        },
    }
    for name in ("search", "read", "write")
]


@dataclass(frozen=True)
class Kind:
    """One kind of client: (least, most) of every count."""

    chats: int
    turns: tuple[int, int]
    asked_words: tuple[int, int]
    answer_tokens: tuple[int, int]
    system_words: int = 0
    tools: bool = False


KINDS = {
    "short": Kind(40, (3, 6), (8, 40), (16, 60)),
    "long": Kind(8, (8, 12), (60, 300), (80, 300)),
    "system": Kind(40, (1, 4), (8, 40), (16, 60), system_words=300),
    "questions": Kind(60, (1, 1), (8, 60), (8, 20), system_words=50),
    "tools": Kind(16, (4, 8), (20, 80), (30, 90), system_words=150, tools=True),
}


def words(dice: random.Random, count: int) -> str:
    """A stretch of natural text."""
    at = dice.randrange(len(TEXT) - count)
    return " ".join(TEXT[at : at + count])


async def chat(client: openai.AsyncOpenAI, kind: Kind, model: str, name: str, *, tagged: bool) -> None:
    """One conversation, its history carried along as clients do."""
    dice = random.Random(name)
    messages: list[Any] = []
    if kind.system_words:
        messages.append({"role": "system", "content": words(random.Random(0), kind.system_words)})
    messages.append({"role": "user", "content": words(dice, dice.randint(*kind.asked_words))})
    await asyncio.sleep(dice.uniform(0, 4))
    for _ in range(dice.randint(*kind.turns)):
        extra: dict[str, Any] = {"tools": TOOLS, "tool_choice": "required"} if kind.tools else {}
        reply = await client.chat.completions.create(
            model=model,
            messages=messages,
            max_tokens=dice.randint(*kind.answer_tokens),
            extra_headers={"X-Workflow-Id": name} if tagged else {},
            extra_body={"ignore_eos": True},
            **extra,
        )
        said = reply.choices[0].message
        if said.tool_calls:
            messages.append({"role": "assistant", "tool_calls": [c.model_dump() for c in said.tool_calls]})
            found = words(dice, dice.randint(*kind.asked_words))
            messages += [{"role": "tool", "tool_call_id": c.id, "content": found} for c in said.tool_calls]
        else:
            messages.append({"role": "assistant", "content": said.content})
            messages.append({"role": "user", "content": words(dice, dice.randint(*kind.asked_words))})
        await asyncio.sleep(dice.uniform(0.02, 0.2))


async def command(*args: str) -> tuple[asyncio.subprocess.Process, dict[str, Any]]:
    """A joulegraph command with --json: its process and what it says when it is ready."""
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "joulegraph", *args, "--json", stdout=asyncio.subprocess.PIPE
    )
    assert child.stdout is not None
    return child, json.loads(await child.stdout.readline())


async def record(kind: Kind, run: Path, port: int, target: str | None, *, tagged: bool) -> None:
    """The chats of one kind, through the proxy."""
    engine = None
    if target is None:
        engine, _ = await command("engine", "--port", str(port))
    proxy, said = await command(
        "proxy", "--upstream", target or f"http://127.0.0.1:{port}", "--listen", "127.0.0.1:0", "--control", "0",
        "--record", str(run),
    )  # fmt: skip
    try:
        client = openai.AsyncOpenAI(base_url=f"http://{said['listen']}/v1", api_key="none", max_retries=0)
        async with client:
            model = (await client.models.list()).data[0].id
            talks = [chat(client, kind, model, f"{run.name}-{k}", tagged=tagged) for k in range(kind.chats)]
            await asyncio.gather(*talks)
    finally:
        for child in (proxy, engine):
            if child is not None:
                child.terminate()
                await child.wait()


def sums(run: Path, journal: str) -> dict[str, int]:
    """Requests, prompt tokens and cached tokens of a journal."""
    rows = [r for r in RunDir.open(run).rows(journal) if r["outcome"] == "ok" and r.get("prompt_tokens")]
    return {
        "requests": len(rows),
        "prompt_tokens": sum(r["prompt_tokens"] for r in rows),
        "cached_tokens": sum(r.get("cached_tokens") or 0 for r in rows),
    }


def compare(name: str, folder: Path, args: argparse.Namespace, *, tagged: bool) -> dict[str, Any]:
    """Record, replay, compare."""
    label = f"{name}-{'tagged' if tagged else 'untagged'}"
    seen, again = folder / label, folder / f"{label}-replay"
    kind = replace(KINDS[name], chats=args.chats or KINDS[name].chats)
    asyncio.run(record(kind, seen, args.port, args.target, tagged=tagged))
    onto = ["--target", args.target, "--calibrate"] if args.target else ["--embedded", "h100-llama8b"]
    command = [sys.executable, "-m", "joulegraph", "replay", str(seen), *onto, "--out", str(again), "--no-report"]
    subprocess.run([*command, *args.replay_flag], check=True, stdout=subprocess.DEVNULL)
    recorded, replayed = sums(seen, "requests"), sums(again, "dispatch")
    off = replayed["cached_tokens"] / max(1, recorded["cached_tokens"]) - 1
    return {
        "kind": name,
        "tagged": tagged,
        **{f"recorded_{k}": v for k, v in recorded.items()},
        **{f"replayed_{k}": v for k, v in replayed.items()},
        "cached_off_percent": round(100 * off, 2),
        "within_bound": recorded["requests"] == replayed["requests"] > 0 and abs(off) <= BOUND,
    }


def main() -> int:
    """Parse, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", help=f"of {', '.join(KINDS)} (default: all)")
    parser.add_argument("--chats", type=int, metavar="N", help="of each kind (default: 8 to 60)")
    parser.add_argument("--clients", choices=("tagged", "untagged", "both"), default="both", help="default %(default)s")
    parser.add_argument("--target", metavar="URL", help="a running engine instead of the embedded one")
    parser.add_argument("--port", type=int, default=25_400, help="of the embedded engine (default %(default)s)")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the run directories here")
    parser.add_argument("--replay-flag", action="append", default=[], metavar="FLAG", help="handed to replay")
    args = parser.parse_args()
    if unknown := [name for name in args.kinds if name not in KINDS]:
        parser.error(f"{unknown[0]}: no such kind; choose of {', '.join(KINDS)}")
    good = True
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for name in args.kinds or KINDS:
            for tagged in {"tagged": (True,), "untagged": (False,), "both": (True, False)}[args.clients]:
                row = compare(name, folder, args, tagged=tagged)
                good = good and row["within_bound"]
                sys.stdout.write(json.dumps(row) + "\n")
                sys.stdout.flush()
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
