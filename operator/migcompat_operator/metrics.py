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
        self.certificate_expiry = Gauge(
            "migcompat_operator_certificate_expiry_timestamp_seconds",
            "When a certificate of a Secret expires (seconds since 1970).",
            ["certificate"],
            registry=self.registry,
        )
        self.certificate_renewals = Counter(
            "migcompat_operator_certificate_renewals_total",
            "Certificates made anew.",
            ["certificate"],
            registry=self.registry,
        )
        self.certificate_failures = Counter(
            "migcompat_operator_certificate_failures_total",
            "Looks at the certificates that the API server kept from their end.",
            registry=self.registry,
        )
        self.certificate_problems = Gauge(
            "migcompat_operator_certificate_problems",
            "1 for a certificate, or a bundle, that is left as it is.",
            ["certificate"],
            registry=self.registry,
        )
        self.clock_skew = Gauge(
            "migcompat_operator_clock_skew_seconds",
            "How far this process's clock is ahead of kube-apiserver's.",
            registry=self.registry,
        )
        self.cycle = Histogram(
            "migcompat_operator_cycle_seconds",
            "Duration of one pass over everything that a change may have affected.",
            registry=self.registry,
        )
