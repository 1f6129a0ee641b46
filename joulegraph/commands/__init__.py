"""One file per command: `configure(parser)` declares its flags, `run(args) -> int` does it.

Heavy imports stay inside run.
"""
