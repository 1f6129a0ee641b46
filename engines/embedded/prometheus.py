"""The /metrics page with vLLM's names, types, labels and buckets.

Lives here: histograms and the text format. May not know: sockets, the scheduler's insides.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from engines.embedded.shell import Engine
from engines.embedded.types import RequestStats

_SECONDS = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0,
    1920.0, 7680.0,
)  # fmt: skip
_FIRST = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
    160.0, 640.0, 2560.0,
)  # fmt: skip
_BETWEEN = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
)  # fmt: skip
_TOKENS = (
    1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000,
)  # fmt: skip
_ITERATION = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)

HISTOGRAMS: dict[str, tuple[str, Sequence[float]]] = {
    "request_prompt_tokens": ("Number of prefill tokens processed.", _TOKENS),
    "request_generation_tokens": ("Number of generation tokens processed.", _TOKENS),
    "iteration_tokens_total": ("Histogram of number of tokens per engine_step.", _ITERATION),
    "request_params_max_tokens": ("Histogram of the max_tokens request parameter.", _TOKENS),
    "time_to_first_token_seconds": ("Histogram of time to first token in seconds.", _FIRST),
    "inter_token_latency_seconds": ("Histogram of inter-token latency in seconds.", _BETWEEN),
    "request_time_per_output_token_seconds": ("Histogram of time_per_output_token_seconds per request.", _BETWEEN),
    "e2e_request_latency_seconds": ("Histogram of e2e request latency in seconds.", _SECONDS),
    "request_queue_time_seconds": ("Histogram of time spent in WAITING phase for request.", _SECONDS),
    "request_inference_time_seconds": ("Histogram of time spent in RUNNING phase for request.", _SECONDS),
    "request_prefill_time_seconds": ("Histogram of time spent in PREFILL phase for request.", _SECONDS),
    "request_decode_time_seconds": ("Histogram of time spent in DECODE phase for request.", _SECONDS),
    "request_num_preemptions": ("Histogram of the number of times a request was preempted.", (0, 1, 2, 5, 10, 20, 50)),
    "request_prefill_kv_computed_tokens": (
        "Histogram of new KV tokens computed during prefill (excluding cached tokens).",
        _TOKENS,
    ),
}


class Histogram:
    """Counts by upper bound, as Prometheus has them."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count a value, `times` times."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times


class Histograms:
    """What ended requests showed."""

    def __init__(self) -> None:
        self.by_name = {name: Histogram(bounds) for name, (_, bounds) in HISTOGRAMS.items()}

    def ended(self, stats: RequestStats) -> None:
        """One request ended by itself. Between-token times are known as their mean only."""
        see = {name: histogram.observe for name, histogram in self.by_name.items()}
        see["request_prompt_tokens"](stats.prompt_tokens)
        see["request_generation_tokens"](stats.output_tokens)
        see["request_num_preemptions"](stats.preemptions)
        see["request_prefill_kv_computed_tokens"](stats.prompt_tokens - stats.cached_tokens)
        arrival, scheduled = stats.t_arrival_ns, stats.t_scheduled_ns
        first, last = stats.t_first_token_ns, stats.t_last_token_ns
        if scheduled is None or first is None or last is None:
            return
        see["time_to_first_token_seconds"]((first - arrival) / 1e9)
        see["e2e_request_latency_seconds"]((last - arrival) / 1e9)
        see["request_queue_time_seconds"]((scheduled - arrival) / 1e9)
        see["request_inference_time_seconds"]((last - scheduled) / 1e9)
        see["request_prefill_time_seconds"]((first - scheduled) / 1e9)
        see["request_decode_time_seconds"]((last - first) / 1e9)
        if stats.output_tokens > 1:
            between = (last - first) / 1e9 / (stats.output_tokens - 1)
            see["request_time_per_output_token_seconds"](between)
            see["inter_token_latency_seconds"](between, stats.output_tokens - 1)


def _number(value: float) -> str:
    return repr(float(value))


def _labels(labels: dict[str, str]) -> str:
    inner = ",".join(f'{key}="{value}"' for key, value in sorted(labels.items()))
    return f"{{{inner}}}"


class _Page:
    def __init__(self, model: str) -> None:
        self.lines: list[str] = []
        self.model = model

    def family(self, name: str, kind: str, text: str, rows: Sequence[tuple[dict[str, str], float]]) -> None:
        self.lines += [f"# HELP vllm:{name} {text}", f"# TYPE vllm:{name} {kind}"]
        for labels, value in rows:
            self.lines.append(f"vllm:{name}{_labels(labels | {'model_name': self.model})} {_number(value)}")

    def histogram(self, name: str, text: str, histogram: Histogram) -> None:
        self.lines += [f"# HELP vllm:{name} {text}", f"# TYPE vllm:{name} histogram"]
        labels = {"engine": "0", "model_name": self.model}
        seen = 0
        for bound, count in zip([*histogram.bounds, float("inf")], histogram.counts):
            seen += count
            le = "+Inf" if bound == float("inf") else _number(bound)
            self.lines.append(f"vllm:{name}_bucket{_labels(labels | {'le': le})} {_number(seen)}")
        self.lines.append(f"vllm:{name}_count{_labels(labels)} {_number(seen)}")
        self.lines.append(f"vllm:{name}_sum{_labels(labels)} {_number(histogram.sum)}")


def page(engine: Engine, histograms: Histograms, model: str) -> bytes:
    """The page. Counters of a single frontend carry engine="0"; gauges are per replica, as with data parallelism."""
    out = _Page(model)
    one = {"engine": "0"}
    counters = engine.counters
    cores = [(str(i), replica.core) for i, replica in enumerate(engine.replicas)]

    def gauge(name: str, text: str, rows: list[tuple[dict[str, str], float]]) -> None:
        out.family(name, "gauge", text, rows)

    def counter(name: str, text: str, rows: list[tuple[dict[str, str], float]]) -> None:
        out.family(name, "counter", text, rows)

    gauge(
        "num_requests_running",
        "Number of requests in model execution batches.",
        [({"engine": i}, core.running) for i, core in cores],
    )
    gauge(
        "num_requests_waiting",
        "Number of requests waiting to be processed.",
        [({"engine": i}, core.waiting) for i, core in cores],
    )
    gauge(
        "kv_cache_usage_perc",
        "KV-cache usage. 1 means 100 percent usage.",
        [({"engine": i}, core.kv_usage) for i, core in cores],
    )
    queries, hits = counters.prompt_tokens, counters.cached_tokens
    text = "in terms of number of"
    counter("prefix_cache_queries_total", f"Prefix cache queries, {text} queried tokens.", [(one, queries)])
    counter("prefix_cache_hits_total", f"Prefix cache hits, {text} cached tokens.", [(one, hits)])
    counter(
        "num_preemptions_total",
        "Cumulative number of preemption from the engine.",
        [({"engine": i}, core.preemptions) for i, core in cores],
    )
    counter("prompt_tokens_total", "Number of prefill tokens processed.", [(one, queries)])
    counter(
        "prompt_tokens_by_source_total",
        "Number of prompt tokens by source.",
        [
            (one | {"source": "local_compute"}, queries - hits),
            (one | {"source": "local_cache_hit"}, hits),
            (one | {"source": "external_kv_transfer"}, 0),
        ],
    )
    counter("prompt_tokens_cached_total", "Number of cached prompt tokens (local + external).", [(one, hits)])
    counter("generation_tokens_total", "Number of generation tokens processed.", [(one, counters.generation_tokens)])
    counter(
        "request_success_total",
        "Count of successfully processed requests.",
        [(one | {"finished_reason": reason}, n) for reason, n in counters.finished.items()],
    )
    for name, (what, _) in HISTOGRAMS.items():
        out.histogram(name, what, histograms.by_name[name])
    limits = engine.limits
    gauge(
        "cache_config_info",
        "Information of the LLMEngine CacheConfig",
        [
            (
                {
                    "block_size": str(limits.block_size),
                    "enable_prefix_caching": str(limits.enable_prefix_caching),
                    "engine": "0",
                    "num_gpu_blocks": str(engine.replicas[0].core.kv.total),
                },
                1.0,
            )
        ],
    )
    return ("\n".join(out.lines) + "\n").encode()
