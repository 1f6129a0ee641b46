"""The one exception that means "you, not we": bad input, a missing port, an unwritable place.

A UserError carries one sentence that names the file, line or field, the value and the remedy. The command line
prints it and exits with 2; anything else that escapes is a bug and crashes with its traceback.
"""

from __future__ import annotations


class UserError(Exception):
    """One clear sentence for the person at the keyboard (exit code 2, no traceback)."""


class InvalidRun(Exception):
    """The run finished and its records are kept, but its figures must not be believed (exit code 1)."""
