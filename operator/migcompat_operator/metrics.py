"""What the operator counts, for ``/metrics``."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


class Metrics:
    """The process's metrics, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.reconciled = Counter(
            "migcompat_operator_reconcile_total",
            "Objects and target pods looked at.",
            ["kind"],
            registry=self.registry,
        )
        self.errors = Counter(
            "migcompat_operator_reconcile_errors_total",
            "Plans that could not be carried out, and are tried again.",
            ["kind"],
            registry=self.registry,
        )
        self.written = Counter(
            "migcompat_operator_writes_total",
            "Writes to the API server that succeeded.",
            ["what"],
            registry=self.registry,
        )
        self.undecodable = Counter(
            "migcompat_operator_undecodable_objects_total",
            "Objects that do not fit their type and count as absent.",
            ["kind"],
            registry=self.registry,
        )
        self.verdicts = Gauge(
            "migcompat_operator_verdicts",
            "MigrationCompatibilities by MIGRATABLE and REASON.",
            ["migratable", "reason"],
            registry=self.registry,
        )
        self.catalogue = Gauge(
            "migcompat_operator_catalogue_policies",
            "Policies of the catalogue by what became of them.",
            ["state"],
            registry=self.registry,
        )
        self.cycle = Histogram(
            "migcompat_operator_cycle_seconds",
            "Duration of one pass over everything that a change may have affected.",
            registry=self.registry,
        )
