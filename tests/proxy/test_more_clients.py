"""LangChain's ChatOpenAI and the litellm library through the proxy, from an environment of their own (they pull a lot).

python3 -m venv V; V/bin/pip install langchain-openai litellm; JOULEGRAPH_CLIENTS_PYTHON=V/bin/python pytest ...
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from engines.embedded.process import EngineConfig, engine_process
from proxy.config import ProxyConfig
from proxy.process import ProcessConfig, proxy_process
from traces.child import spawn
from traces.records import RequestRecord, from_row
from traces.rundir import RunDir

LANGCHAIN = """
import sys
from langchain_openai import ChatOpenAI
chat = ChatOpenAI(base_url=sys.argv[1] + "/v1", api_key="k", model="h100-llama8b", max_tokens=5,
                  default_headers={"X-Workflow-Id": "chain"})
assert chat.invoke("hello").response_metadata["token_usage"]["prompt_tokens"] > 0
assert list(chat.stream("hello again"))
"""
LITELLM = """
import sys
import litellm
say = dict(model="openai/h100-llama8b", api_base=sys.argv[1] + "/v1", api_key="k", max_tokens=5,
           messages=[{"role": "user", "content": "hello"}], extra_headers={"x-litellm-session-id": "lite"})
assert litellm.completion(**say).usage.prompt_tokens > 0
assert list(litellm.completion(**say, stream=True))
"""


@pytest.mark.parametrize(
    ("script", "source", "workflow"),
    [(LANGCHAIN, "x-workflow", "chain"), (LITELLM, "litellm", "lite")],
    ids=["langchain", "litellm"],
)
def test_client(tmp_path: Path, script: str, source: str, workflow: str) -> None:
    python = os.environ.get("JOULEGRAPH_CLIENTS_PYTHON")
    if python is None:
        pytest.skip("set JOULEGRAPH_CLIENTS_PYTHON to a Python with langchain-openai and litellm")
    run = RunDir.create(tmp_path / "run")
    engine = spawn(engine_process, EngineConfig(), name="engine")
    upstream = f"http://127.0.0.1:{engine.lifeline.recv()}"
    config = ProcessConfig(ProxyConfig((upstream,), run_key=b"k" * 32), "127.0.0.1", 0, run.path)
    proxy = spawn(proxy_process, config, name="proxy")
    url = f"http://127.0.0.1:{proxy.lifeline.recv()['port']}"
    try:
        done = subprocess.run([python, "-c", script, url], capture_output=True, text=True, timeout=100)
    finally:
        codes = (proxy.stop(), engine.stop())
    assert done.returncode == 0, done.stderr[-2000:]
    assert codes == (0, 0)
    records = [from_row(RequestRecord, row) for row in run.rows("requests")]
    assert [(r.outcome, r.tag_source, r.workflow_id, r.stream) for r in records] == [
        ("ok", source, workflow, False),
        ("ok", source, workflow, True),
    ]
    assert all(r.prompt_tokens for r in records)
