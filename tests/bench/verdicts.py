"""Verdicts a second of the engine on one core, nothing remembered between them."""

from __future__ import annotations

import time

from migcompat.engine.declaration import Declaration
from migcompat.engine.verdict import decide

from tests.bench.figures import BenchError, Row
from tests.support.fleets import declared

SECONDS = 2.0
BATCH = 100


def _cases() -> list[tuple[Declaration, Declaration, bool]]:
    """Sources and targets as they occur: accepted at once, by the third entry, refused early and late."""
    source = declared("1.1.0", extra={"aggregator": "1", "features": "dma-logging,stop-copy"})
    own = dict(source.self.attributes)
    ladder = [{**own, "software_version": version} for version in ("3.0.0", "2.0.0", "1.1.0")]
    return [
        (source, source, True),
        (
            source,
            declared("1.1.0", extra={"aggregator": "1", "features": own["features"]}, accepts=ladder),
            True,
        ),
        (source, declared("1.1.0", type_="GRID-T4-2Q"), False),
        (source, declared("2.0.0", accepts=[{**own, "software_version": "2.0.0"}]), False),
    ]


def measure() -> list[Row]:
    """Verdicts a second over a mixture of cases. Raises BenchError when a verdict is wrong."""
    cases = _cases()
    for source, target, expected in cases:
        verdict = decide(source, target)
        if verdict.compatible is not expected:
            raise BenchError(
                f"decide: {verdict.reason} {verdict.message!r} where compatible={expected} is right"
            )
    done, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < SECONDS:
        for _ in range(BATCH):
            for source, target, _expected in cases:
                decide(source, target)
        done += BATCH * len(cases)
    return [Row(name="verdicts of the engine on one core", value=done / elapsed, unit="1/s")]
