"""SWE-agent trajectories (.traj): one JSON document per run, with history and (mostly) trajectory.

The history's assistant messages of the main agent are the calls; the trajectory's execution_time is the tool time after
each. Token totals exist only for the whole run (info.model_stats): kept in attrs of the first call.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from traces.errors import UserError
from traces.fields import Where
from traces.importers.base import Head, Imported, ImportOptions, Notes, document, objects, seconds_ns
from traces.importers.dialogue import Turn, conversation
from traces.workflow import Manifest, Workflow

TITLE = "SWE-agent trajectories (.traj, or a folder of them)"


def recognises(head: Head) -> bool:
    """A document with a history or trajectory of an agent; a folder with .traj files in it."""
    if head.is_dir:
        return any(head.path.rglob("*.traj"))
    if head.path.suffix == ".traj":
        return True
    value = head.document
    return isinstance(value, dict) and isinstance(value.get("history"), list) and "trajectory" in value


def read(path: Path, options: ImportOptions) -> Imported:
    """A trajectory -> a chain of calls with text; environment time -> tool_wait."""
    notes = Notes()
    notes.say(
        "the source has no arrival times: every workflow arrives at 0; space them with an arrival process on replay"
    )
    manifest = Manifest(content_mode="text", source=f"{path.name} (SWE-agent)")
    return Imported(manifest, _workflows(path, notes), notes)


def _workflows(path: Path, notes: Notes) -> Iterator[Workflow]:
    files = sorted(path.rglob("*.traj")) if path.is_dir() else [path]
    for file in files:
        value = document(file)
        if not isinstance(value, dict) or not isinstance(value.get("history", value.get("trajectory")), list):
            raise UserError(f"{file}: no trajectory (object with history or trajectory); give a SWE-agent .traj file")
        name = str(file.relative_to(path).with_suffix("")) if path.is_dir() else file.stem
        made = conversation(name, list(_turns(Where(str(file), 1, 1), value, notes)), notes, class_name="agentic")
        if made is None:
            notes.count("a trajectory without a reply is left out")
            continue
        info = value.get("info")
        stats = info.get("model_stats") if isinstance(info, dict) else None
        if isinstance(stats, dict):
            first = made.nodes[0]
            made = replace(made, nodes=(replace(first, attrs={**first.attrs, "model_stats": stats}), *made.nodes[1:]))
        yield made


def _turns(where: Where, value: dict[str, Any], notes: Notes) -> Iterator[Turn]:
    times = _times(where, value)
    history = value.get("history")
    if not isinstance(history, list):
        notes.say("without a history the prompts are rebuilt from responses and observations only")
        history = [
            m
            for step in value["trajectory"]
            if isinstance(step, dict)
            for m in (
                {"role": "assistant", "content": step.get("response") or step.get("thought") or ""},
                {"role": "user", "content": step.get("observation") or ""},
            )
        ]
        yield Turn({"role": "user", "content": ""})
    steps = objects(where, value, "trajectory")
    replies = sum(1 for m in history if isinstance(m, dict) and m.get("role") == "assistant" and not m.get("is_demo"))
    if replies and len(steps) == replies + 1:  # the last reply is only there
        history = [*history, {"role": "assistant", "content": steps[-1].get("response") or ""}]
    waiting, step = 0, 0
    for raw in history:
        if not isinstance(raw, dict):
            raise UserError(where.fault("history", raw, "give a list of messages"))
        if raw.get("agent", "main") != "main":
            notes.count("a message of another agent than main is left out")
            continue
        role = str(raw.get("role", "user"))
        kept = {k: raw[k] for k in ("tool_calls",) if raw.get(k)}
        ids = raw.get("tool_call_ids")
        if ids and isinstance(ids, list):
            kept["tool_call_id"] = ids[0]
        generated = role == "assistant" and not raw.get("is_demo")
        yield Turn({"role": role, "content": raw.get("content") or "", **kept}, waiting, generated)
        waiting = 0
        if generated and step < len(times):
            waiting, step = times[step], step + 1


def _times(where: Where, value: dict[str, Any]) -> list[int]:
    """Environment time after each step, ns; empty where the source has none."""
    steps = value.get("trajectory")
    if not isinstance(steps, list):
        return []
    return [
        seconds_ns(where, "execution_time", s.get("execution_time") or 0) if isinstance(s, dict) else 0 for s in steps
    ]
