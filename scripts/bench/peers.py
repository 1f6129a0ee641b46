"""Other load generators, each from a virtual environment of its own, against the C server: one burst round each.

Why: they are measured by what arrives at the server, not by what they say of themselves. One worker where they can be
told so; they are made for many cores, so one core penalises them, and the CPU per request beside it is what scales.
Nothing is downloaded: the tokenizer that all of them insist on is made here. May not know: our own client.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

USERS, PROMPT, OUTPUT = 64, 32, 16
LIMIT_S = 900
TOKENIZER = """
import glob, json, os, sys
from tokenizers import ByteLevelBPETokenizer
from transformers import PreTrainedTokenizerFast
tokenizer = ByteLevelBPETokenizer()
tokenizer.train(glob.glob(os.path.dirname(os.__file__) + "/*.py")[:60], vocab_size=4096, special_tokens=["</s>"])
PreTrainedTokenizerFast(tokenizer_object=tokenizer._tokenizer, eos_token="</s>").save_pretrained(sys.argv[1])
json.dump({"model_type": "llama"}, open(sys.argv[1] + "/config.json", "w"))
"""
INFERENCE_PERF = """
api: {{type: completion, streaming: true}}
data:
  type: random
  input_distribution: {{min: {prompt}, max: {prompt}, mean: {prompt}, std_dev: 0, total_count: {count}}}
  output_distribution: {{min: {output}, max: {output}, mean: {output}, std_dev: 0, total_count: {count}}}
load:
  type: concurrent
  num_workers: 1
  worker_max_concurrency: {users}
  stages: [{{num_requests: {count}, concurrency_level: {users}}}]
server: {{type: vllm, model_name: bench, base_url: "{url}", ignore_eos: true}}
tokenizer: {{pretrained_model_name_or_path: "{tokenizer}"}}
storage: {{local_storage: {{path: "{out}"}}}}
"""


@dataclass(frozen=True)
class Peer:
    """One peer's set-up."""

    venv: Path
    folder: Path
    """scratch: tokenizer, results"""

    def tokenizer(self) -> Path:
        """The local tokenizer, made on first use."""
        path = self.folder / "tokenizer"
        if not path.exists():
            command = [str(self.venv / "bin/python"), "-c", TOKENIZER, str(path)]
            subprocess.run(command, check=True, capture_output=True)
        return path

    def aiperf(self, url: str, count: int) -> list[str]:
        """NVIDIA AIPerf."""
        return [
            str(self.venv / "bin/aiperf"), "profile", "--url", url, "--endpoint-type", "chat", "--streaming",
            "--model", "bench", "--tokenizer", str(self.tokenizer()), "--concurrency", str(USERS),
            "--request-count", str(count), "--ui", "none", "--synthetic-input-tokens-mean", str(PROMPT),
            "--output-tokens-mean", str(OUTPUT), "--artifact-dir", str(self.folder / "aiperf"),
        ]  # fmt: skip

    def guidellm(self, url: str, count: int) -> list[str]:
        """GuideLLM."""
        return [
            str(self.venv / "bin/guidellm"), "run", "--disable-console-interactive",
            "--backend", f"kind=openai_http,target={url},model=bench,validate_backend=false",
            "--profile", f"kind=concurrent,streams={USERS}", "--constraint", f"kind=max_requests,count={count}",
            "--tokenizer", f"kind=huggingface_auto,model={self.tokenizer()}",
            "--data", f"kind=synthetic_text,prompt_tokens={PROMPT},output_tokens={OUTPUT}",
            "--output", f"kind=json,path={self.folder / 'guidellm.json'}",
        ]  # fmt: skip

    def inference_perf(self, url: str, count: int) -> list[str]:
        """inference-perf (Python 3.12 or newer)."""
        config = self.folder / "inference-perf.yml"
        config.write_text(
            INFERENCE_PERF.format(
                url=url, count=count, users=USERS, prompt=PROMPT, output=OUTPUT, tokenizer=self.tokenizer(),
                out=self.folder / "inference-perf",
            )
        )  # fmt: skip
        return [str(self.venv / "bin/inference-perf"), "-c", str(config)]


COMMANDS: dict[str, Callable[[Peer, str, int], list[str]]] = {
    "aiperf": Peer.aiperf,
    "guidellm": Peer.guidellm,
    "inference-perf": Peer.inference_perf,
}


def run(name: str, peer: Peer, url: str, count: int) -> tuple[int, float]:
    """Run one to its end: when it was started (CLOCK_MONOTONIC ns) and its CPU seconds, start-up included.

    RuntimeError with its last words when it fails.
    """
    command = COMMANDS[name](peer, url, count)
    environment = {**os.environ, "GUIDELLM__MAX_WORKER_PROCESSES": "1"}
    before, started = os.times(), time.monotonic_ns()
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=peer.folder, timeout=LIMIT_S, env=environment
    )
    after = os.times()
    if done.returncode:
        raise RuntimeError(f"{name} ended with {done.returncode}: {(done.stderr or done.stdout)[-500:]}")
    cpu_s = after.children_user + after.children_system - before.children_user - before.children_system
    return started, cpu_s
