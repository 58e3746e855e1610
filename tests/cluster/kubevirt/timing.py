"""How long KubeVirt waits for what."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Timing:
    """Seconds, as KubeVirt 1.9 has them; tests may shorten them."""

    first_retry: float = 0.005
    longest_retry: float = 1000.0
    unschedulable: float = 300.0
    pending: float = 900.0
    evacuation_backoff: float = 20.0
    copying: float = 0.3
    """How long a migration runs once its target pod is ready."""
