"""What the extender counts (docs/reference/extender.md lists the names)."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)


class Metrics:
    """The metrics of one application, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.seconds = Histogram(
            "migcompat_extender_request_seconds",
            "Time to answer a request once its body is read.",
            ["endpoint"],
            registry=self.registry,
            buckets=_SECONDS,
        )
        self.responses = Counter(
            "migcompat_extender_responses_total",
            "Responses by endpoint and HTTP status; code 200 with error=true is an extender's Error answer.",
            ["endpoint", "code", "error"],
            registry=self.registry,
        )
        self.nodes = Counter(
            "migcompat_extender_filtered_nodes_total",
            "Nodes that kube-scheduler asked about, by verdict (passed, rejected).",
            ["verdict"],
            registry=self.registry,
        )
        self.admissions = Counter(
            "migcompat_extender_admissions_total",
            "Admission reviews (dry runs left out) by outcome.",
            ["outcome"],
            registry=self.registry,
        )
        self.ready = Gauge(
            "migcompat_extender_caches_ready",
            "1 when all caches are synced and fresh.",
            registry=self.registry,
        )
        self.reloads = Counter(
            "migcompat_extender_certificate_reloads_total",
            "Certificate files that changed and were loaded (result=ok) or refused (result=error).",
            ["result"],
            registry=self.registry,
        )
        self.expiry = Gauge(
            "migcompat_extender_certificate_expiry_timestamp_seconds",
            "When the certificate that is used now expires (seconds since 1970).",
            ["certificate"],
            registry=self.registry,
        )
        self.start = Gauge(
            "migcompat_extender_certificate_start_timestamp_seconds",
            "From when on the certificate that is used now is valid (seconds since 1970).",
            ["certificate"],
            registry=self.registry,
        )
