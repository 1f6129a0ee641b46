"""Composition: command line, run directory, live view, report, sweep. May import every part; nothing imports it."""

JOULEGRAPH_PACKAGE = "joulegraph"
__version__ = "0.1.0"
