"""Fixtures every package's tests share: recorded real data (skipped with a reason where absent)."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A suite started in the background of a script ignores Ctrl-C, and so would the commands that its tests interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("joulegraph", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("joulegraph")  # how long an example takes beside other load says nothing about the code

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def data() -> Path:
    """The recorded real data beside the project (JOULEGRAPH_DATA, else ../shared/data)."""
    path = Path(os.environ.get("JOULEGRAPH_DATA", ROOT.parent / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"recorded data not found at {path}; set JOULEGRAPH_DATA to run this test")
    return path
