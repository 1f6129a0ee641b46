"""What a real engine says beside its replies, brought into the run: /metrics at 4 Hz, OTLP spans, the iteration stream.

otlp and spans are pure readers of exports; watch scrapes and receives beside a real-time run and keeps what it got in
engine.metrics.jsonl and engine.spans.jsonl; steps cuts a run's share out of the stream that a launched vLLM writes.
"""
