"""The run directory: which file holds what, and run.json. The only place with these names.

    run.json  trace.jsonl  requests.<worker>.jsonl  dispatch.<shard>.jsonl  power.<host>.jsonl
    engine.jsonl  truth.jsonl  bridge.<name>.jsonl (a Parrot's calls as its engine served them)
    *.parquet  attribution.parquet  workflows.parquet  ledger.json  report.html  report.json

Several writers, one file each; readers merge by `journals(name)`. run.json is replaced atomically.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from traces.errors import UserError
from traces.journal import JournalReader, JournalWriter

JOURNALS = ("requests", "bridge", "dispatch", "power", "engine", "truth")


class RunDir:
    """Paths of one run and its run.json (a plain dict: `info`)."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, path: Path) -> RunDir:
        """A new run directory. UserError when it exists with a run inside or cannot be written."""
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"{path}: cannot create the run directory ({error.strerror}); choose another folder"
            ) from error
        if (path / "run.json").exists():
            raise UserError(f"{path}: already holds a run; choose another folder or remove it")
        run = cls(path)
        run.write_info({"state": "running"})
        return run

    @classmethod
    def open(cls, path: Path) -> RunDir:
        """An existing run directory. UserError when there is none."""
        if not (path / "run.json").is_file():
            raise UserError(f"{path}: not a run directory (no run.json); give the folder that replay or demo printed")
        return cls(path)

    def file(self, name: str) -> Path:
        """Path of a file of this run."""
        return self.path / name

    def journal(self, name: str, writer: str | None = None) -> Path:
        """Path of one writer's journal: journal("requests", "0") -> requests.0.jsonl."""
        return self.path / (f"{name}.{writer}.jsonl" if writer is not None else f"{name}.jsonl")

    def power_journal(self) -> Path:
        """The sampler's journal on this host."""
        return self.journal("power", socket.gethostname().split(".")[0] or "host")

    def writer(self, name: str, writer: str | None = None, *, mono_ns: int, wall_ns: int) -> JournalWriter:
        """Open one journal for appending."""
        return JournalWriter(self.journal(name, writer), name, mono_ns=mono_ns, wall_ns=wall_ns)

    def journals(self, name: str) -> list[Path]:
        """All writers' files of one journal, sorted."""
        return sorted({*self.path.glob(f"{name}.jsonl"), *self.path.glob(f"{name}.*.jsonl")})

    def rows(self, name: str) -> Iterator[dict[str, Any]]:
        """All rows of one journal, file after file (not in time order across files)."""
        for path in self.journals(name):
            yield from JournalReader(path)

    @property
    def info(self) -> dict[str, Any]:
        """run.json. UserError when it is damaged."""
        try:
            value = orjson.loads(self.file("run.json").read_bytes())
        except (OSError, orjson.JSONDecodeError) as error:
            raise UserError(
                f"{self.file('run.json')}: cannot be read ({error}); restore it or start the run again"
            ) from error
        if not isinstance(value, dict):
            raise UserError(f"{self.file('run.json')}: not a JSON object; restore it or start the run again")
        return value

    def write_info(self, info: dict[str, Any]) -> None:
        """Replace run.json atomically."""
        self.write_json("run.json", info)

    def update_info(self, **changes: Any) -> None:
        """Merge top-level keys into run.json."""
        self.write_info({**self.info, **changes})

    def write_json(self, name: str, value: Any) -> None:
        """Write one JSON file of the run atomically, indented."""
        part = self.file(name + ".part")
        try:
            part.write_bytes(orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY))
            os.replace(part, self.file(name))
        except OSError as error:
            raise UserError(
                f"{self.file(name)}: cannot be written ({error.strerror}); free space or choose another folder"
            ) from error
