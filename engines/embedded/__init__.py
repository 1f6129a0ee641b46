"""The embedded engine: a pure continuous-batching model that knows each request's true joules, and its server.

Pure modules (core, kvcache, power, truth, sensors) take events and now_ns and return values; server.py is the shell.
"""
