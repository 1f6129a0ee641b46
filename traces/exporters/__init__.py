"""Traces out to public formats, one module each."""
