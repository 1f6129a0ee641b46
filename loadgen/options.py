"""How a replay is made: everything a run may set, as values that travel to other processes.

May not know: what is replayed, when it is due (loadgen.arrivals), sockets.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from loadgen.bodies import Outputs
from loadgen.totals import Bounds
from traces.workflow import Manifest

_S = 1_000_000_000


@dataclass(frozen=True, slots=True)
class ReplayOptions:
    """How to replay. Nothing here changes what is due when: that is loadgen.arrivals."""

    manifest: Manifest = field(default_factory=Manifest)
    salt: str = "0"
    """of this run: goes into every block's content and every wire id; a new one per run avoids foreign cache hits"""
    outputs: Outputs = "continued"
    """whose answers stand in prompts (loadgen.bodies.Outputs)"""
    timeout_ns: int = 600 * _S
    """per request, from due"""
    drain_ns: int = 30 * _S
    """after a stop, how long requests in flight may still take"""
    prewarm: int = 0
    """connections opened before t0"""
    bounds: Bounds = field(default_factory=Bounds)
    closed_loop_users: int | None = None
    """CLOSED LOOP instead of open: this many users, each taking the next workflow when its last one has ended (recorded
    arrivals are not used). The engine then sets the pace, and figures from due hide what waiting users would see."""
    closed_loop_think_ns: int = 0
    """a user's pause between workflows"""
    closed_loop_ramp_ns: int = 0
    """the users begin this far apart: in real time many prompts made at one instant would all be sent late"""
    cancel_share: float = 0.0
    """cancellation injection: this share of requests (chosen by id, so the same in every run of a salt) is dropped"""
    cancel_after_ns: int = 1 * _S
    """... this long after sending, unless it has ended"""
    retries: int = 0
    """how often a request may be sent again that got no answer (no connection, connection dead before the first byte)
    or a 429 or 503; the row tells of the last attempt, counts all (`attempts`), and stays due when it was due"""
    retry_wait_ns: int = _S // 10
    """before the first repetition; doubled for each further one"""
