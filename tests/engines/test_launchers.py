"""Launchers: vLLM by a scripted stand-in (health, log, flags, failure, no orphans), llama.cpp's refusals, attach."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from engines.embedded.process import EngineConfig, engine_process
from engines.launchers import attach, vllm, xllamacpp
from engines.launchers.common import decisive_line, healthy
from engines.launchers.vllm import DRAFTS, Found, VllmOptions, command
from traces.child import spawn
from traces.errors import UserError
from traces.journal import JournalReader
from traces.records import StepRecord, from_row

ROOT = Path(__file__).resolve().parent.parent.parent

SERVER = """
import argparse, json, subprocess, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
parser = argparse.ArgumentParser(prog="api_server.py")
for name in ("--host", "--model", "--served-model-name"):
    parser.add_argument(name)
parser.add_argument("--port", type=int)
parser.add_argument("--max-num-seqs", type=int)
for name in ("--enable-per-request-metrics", "--enable-request-id-headers", "--enable-prompt-tokens-details"):
    parser.add_argument(name, action="store_true")
args = parser.parse_args()
print("(APIServer pid=1) INFO 11-22 07:06:20 [api_server.py:10] vLLM API server", flush=True)
if args.model == "missing":
    raise OSError("Can't load the configuration of 'missing'")
if args.model == "big":
    prefix = "(EngineCore pid=2) ERROR 11-22 07:06:21 [core.py:9]"
    print(prefix, "torch.OutOfMemoryError: CUDA out of memory. Tried 2 GiB", flush=True)
    raise RuntimeError("Engine core initialization failed. See root cause above.")
worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(f"worker={worker.pid}", flush=True)
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        rows = {"data": [{"id": args.served_model_name or args.model}], "seqs": args.max_num_seqs}
        body = b"" if self.path == "/health" else json.dumps(rows).encode()
        self.send_response(200); self.send_header("Content-Length", str(len(body))); self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args): pass
HTTPServer((args.host, args.port), Handler).serve_forever()
"""


@pytest.fixture
def python(tmp_path: Path) -> str:
    """An interpreter whose path holds a vLLM that starts at once."""
    folder = tmp_path / "site" / "vllm" / "entrypoints" / "openai"
    folder.mkdir(parents=True)
    for path in (folder, folder.parent, folder.parent.parent):
        (path / "__init__.py").write_text("")
    (folder / "api_server.py").write_text(SERVER)
    info = tmp_path / "site" / "vllm-0.32.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0\n")
    script = tmp_path / "python"
    script.write_text(f'#!/bin/sh\nPYTHONPATH="{tmp_path}/site" exec {sys.executable} "$@"\n')
    script.chmod(0o755)
    return str(script)


def options(python: str, tmp_path: Path, model: str = "m", extra: tuple[str, ...] = ()) -> vllm.VllmOptions:
    return vllm.VllmOptions(
        model, python=python, served_model_name="tiny", max_num_seqs=7, extra=extra, log=tmp_path / "log", start_s=30
    )


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def worker_of(tmp_path: Path) -> int:
    (line,) = [row for row in (tmp_path / "log").read_text().splitlines() if row.startswith("worker=")]
    return int(line.partition("=")[2])


def gone(pid: int) -> bool:
    until = time.monotonic() + 10
    while alive(pid) and time.monotonic() < until:
        time.sleep(0.05)
    return not alive(pid)


def test_vllm_is_started_awaited_described_and_stopped_with_its_workers(python: str, tmp_path: Path) -> None:
    said: list[str] = []
    with vllm.launch(options(python, tmp_path), said.append) as running:
        assert running.model == "tiny"
        assert healthy("127.0.0.1", running.port)
        assert running.facts["version"] == "0.32.0"
        command = " ".join(running.facts["command"])
        assert "--max-num-seqs 7" in command
        assert all(flag in command for flag in vllm.OBSERVE)
        worker = worker_of(tmp_path)
        assert alive(worker)
    assert not healthy("127.0.0.1", running.port)
    assert gone(worker)
    assert said[0].startswith("starting vLLM 0.32.0 with m")


@pytest.mark.parametrize(
    ("model", "extra", "words"),
    [
        ("missing", (), "OSError: Can't load the configuration of 'missing'"),
        ("big", (), "OutOfMemoryError: CUDA out of memory"),
        ("m", ("--no-such-flag",), "error: unrecognized arguments: --no-such-flag"),
    ],
)
def test_a_vllm_that_does_not_start_is_one_sentence_with_the_decisive_line(
    python: str, tmp_path: Path, model: str, extra: tuple[str, ...], words: str
) -> None:
    with pytest.raises(UserError, match="vLLM did not start") as caught:
        vllm.launch(options(python, tmp_path, model, extra))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


STATS = """
class StatLoggerBase:
    pass
"""
DRIVE = """
import importlib.metadata as m, types
(entry,) = m.entry_points(group="vllm.stat_logger_plugins")
logger = entry.load()(None, 1)
details = types.SimpleNamespace(
    num_ctx_requests=1, num_ctx_tokens=40, num_generation_requests=2, num_generation_tokens=2
)
scheduler = types.SimpleNamespace(
    num_running_reqs=3, num_waiting_reqs=1, num_skipped_waiting_reqs=1, kv_cache_usage=0.5, iteration_details=details
)
parts = types.SimpleNamespace(cached_tokens=16, computed=40)
iteration = types.SimpleNamespace(
    num_generation_tokens=3, num_preempted_reqs=1, prompt_token_stats=parts, num_prompt_tokens=56,
    time_to_first_tokens_iter=[0.1],
)
logger.record(None, None)
logger.record(scheduler, iteration, None, 1)
scheduler.iteration_details = None
logger.record(scheduler, iteration, mm_cache_stats=None, engine_idx=1, something_new=5)
logger.record(scheduler, types.SimpleNamespace(num_tokens=3))
logger.record(scheduler, iteration)
logger.log_engine_initialized()
"""


def test_the_plugin_streams_iterations_and_says_when_the_interface_moved(python: str, tmp_path: Path) -> None:
    metrics = tmp_path / "site" / "vllm" / "v1" / "metrics"
    metrics.mkdir(parents=True)
    for folder in (metrics, metrics.parent):
        (folder / "__init__.py").write_text("")
    (metrics / "loggers.py").write_text(STATS)
    plugin, steps = vllm.plugin_folder(tmp_path), tmp_path / "engine.jsonl"
    assert vllm.stream_state(steps).startswith("none: the plugin was not loaded")
    path = f"{plugin}{os.pathsep}{tmp_path / 'site'}"
    env = os.environ | {"PYTHONPATH": path, "JOULEGRAPH_STEPS": str(steps)}
    subprocess.run([sys.executable, "-c", DRIVE], env=env, check=True, timeout=60)
    reader = JournalReader(steps)
    joined, first, second, moved = reader
    assert reader.header["journal"] == "engine"
    assert joined["text"].startswith("plugin joined vLLM")
    record = from_row(StepRecord, first)
    assert record == StepRecord(record.t_ns, 3, 2, 0.5, 1, 40, 2, 2, 56, 16, 1, 1)
    assert from_row(StepRecord, second) == StepRecord(second["t_ns"], 3, 2, 0.5, 1, 40, 2, 2, 56, 16, 1, 1)
    assert "has moved" in moved["text"]
    assert vllm.stream_state(steps).startswith("none: the stats interface of vLLM")


def test_no_vllm_and_a_taken_port(python: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no vLLM; give --python PATH"):
        vllm.find(sys.executable)
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        taken = vllm.VllmOptions("m", python=python, port=server.server_port)
        with pytest.raises(UserError, match=r"cannot listen on 127\.0\.0\.1"):
            vllm.launch(taken)


def test_the_command_takes_vllms_flags_after_two_dashes_and_leaves_no_orphans(python: str, tmp_path: Path) -> None:
    words = [
        "engine",
        "vllm",
        "--model",
        "m",
        "--python",
        python,
        "--port",
        "0",
        "--log",
        str(tmp_path / "log"),
        "--json",
    ]
    words += ["--", "--served-model-name", "named"]
    with subprocess.Popen(
        [sys.executable, "-m", "joulegraph", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=ROOT,
    ) as process:
        assert process.stdout is not None
        row = json.loads(process.stdout.readline())
        assert row["model"] == "named"
        server = row["facts"]["pid"]
        assert alive(server)
        process.send_signal(signal.SIGKILL)
    assert gone(server)
    os.kill(worker_of(tmp_path), signal.SIGKILL)  # the stand-in forgets its worker; vLLM's follow their parent


def test_the_decisive_line_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("")
    assert decisive_line(log) == "the log is empty"
    log.write_text("INFO all is well\nbye\n")
    assert decisive_line(log) == "bye"
    trace = """
        (EngineCore pid=9) ERROR 11-22 07:06:21 [core.py:9] Traceback (most recent call last):
        (EngineCore pid=9) ERROR 11-22 07:06:21 [core.py:9] ValueError: No available memory for the cache blocks.
        (APIServer pid=8) RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}
    """
    log.write_text(textwrap.dedent(trace))
    assert decisive_line(log) == "ValueError: No available memory for the cache blocks."
    log.write_text("x.ValidationError: 1 validation error for ModelConfig\n  Value error, too long\n    For further\n")
    assert decisive_line(log) == "ValidationError: 1 validation error for ModelConfig: Value error, too long"
    dead = "vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue. See stack trace (above)\n"
    log.write_text("[core_client.py:817] [shutdown] MPClient: engine core exited unexpectedly; cleanup\n" + 900 * dead)
    assert decisive_line(log) == "engine core exited unexpectedly"


def test_llama_cpp_refusals(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such model file"):
        xllamacpp.model_path(xllamacpp.XllamaOptions(model=tmp_path / "none.gguf"))


@pytest.mark.xllama
def test_llama_cpp_says_why_it_did_not_start(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    model = tmp_path / "bad.gguf"
    model.write_bytes(b"not a model")
    with pytest.raises(UserError, match=r"llama\.cpp did not start with"):
        xllamacpp.launch(xllamacpp.XllamaOptions(model=model, log=tmp_path / "log"))


# ---------------------------------------------------------------------------------------------- attach


class Scripted(BaseHTTPRequestHandler):
    """An engine that answers what its table says."""

    def do_GET(self) -> None:
        table: dict[str, str] = self.server.table  # type: ignore[attr-defined]
        body = table.get(self.path)
        self.send_response(200 if body is not None else 404)
        self.send_header("Content-Length", str(len(body or "")))
        self.end_headers()
        self.wfile.write((body or "").encode())

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Quiet."""


@pytest.fixture
def scripted() -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Scripted) as server:
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


MODELS = '{"data": [{"id": "m"}]}'


@pytest.mark.parametrize(
    ("table", "kind"),
    [
        ({"/version": '{"version":"0.32.0"}', "/metrics": 'vllm:num_requests_running{engine="0"} 0'}, "vllm"),
        ({"/metrics": "sglang:num_running_reqs 0"}, "sglang"),
        ({"/metrics": "tgi_queue_size 0", "/info": '{"model_id":"m"}'}, "tgi"),
        ({"/metrics": "llamacpp:requests_processing 0"}, "llama.cpp"),
        ({"/props": '{"default_generation_settings":{}}'}, "llama.cpp"),
        ({"/": "Ollama is running", "/api/version": '{"version":"0.9.1"}'}, "ollama"),
        ({"/get_model_info": '{"model_path":"m"}'}, "sglang"),
        ({}, "unknown OpenAI-compatible engine"),
    ],
)
def test_attach_tells_engines_apart(scripted: ThreadingHTTPServer, table: dict[str, str], kind: str) -> None:
    scripted.table = {"/v1/models": MODELS} | table  # type: ignore[attr-defined]
    seen = attach.launch(f"http://127.0.0.1:{scripted.server_port}")
    assert (seen.facts["engine"], seen.model) == (kind, "m")
    assert seen.facts["lacks"]


def test_attach_knows_the_embedded_engine_and_refuses_nonsense() -> None:
    child = spawn(engine_process, EngineConfig(), name="engine")
    port = child.lifeline.recv()
    with attach.launch(f"127.0.0.1:{port}") as seen:
        assert (seen.facts["engine"], seen.facts["lacks"]) == ("joulegraph embedded", [])
    assert healthy("127.0.0.1", port)
    assert child.stop() == 0
    for url in ("ftp://x", "http://"):
        with pytest.raises(UserError, match="give http"):
            attach.launch(url)
    with pytest.raises(UserError, match="nothing answers at"):
        attach.launch(f"http://127.0.0.1:{port}")


def test_drafts_are_asked_for_where_vllm_speculates_and_knows_how() -> None:
    asked = ("--speculative-config", '{"method": "ngram"}')
    for knows, extra, wanted in ((True, asked, 1), (False, asked, 0), (True, (), 0), (True, (*asked, *DRAFTS), 1)):
        found = Found("python", "vllm", "0.32.0", details=True, drafts=knows)
        words = command(VllmOptions(model="m", extra=extra), found, 8000)
        assert words.count(DRAFTS[0]) == wanted
