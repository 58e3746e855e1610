"""Command line of the operator process."""

from __future__ import annotations

import asyncio
import logging
import os
from datetime import timedelta
from typing import Annotated

import typer
from migcompat import logs
from migcompat.kube.config import ConfigError

from migcompat_operator.app import Options, StartError, run
from migcompat_operator.rotation import Times
from migcompat_operator.worker import COUNT_DELAY, COUNT_DELAY_LIMIT

log = logging.getLogger(__name__)

DAY = 24 * 3600
SHORTEST = 10
"""Seconds: certificates tell whole ones, and are renewed when a third of their life is left."""

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def operator(
    *,
    health_bind: Annotated[
        str, typer.Option(help="Address of /healthz, /readyz and /metrics.")
    ] = "0.0.0.0:8080",
    kubeconfig: Annotated[
        str, typer.Option(help="Kubeconfig file; without one $KUBECONFIG, else the pod's service account.")
    ] = "",
    allow_loosening: Annotated[
        bool, typer.Option(help="Honour annotations of VMs that make them laxer.")
    ] = False,
    count_delay: Annotated[
        float,
        typer.Option(min=0, max=COUNT_DELAY_LIMIT, help="Seconds for which mere changes of counts may wait."),
    ] = COUNT_DELAY,
    catalogue: Annotated[
        str,
        typer.Option(
            metavar="DIR", help="Keep the CompatibilityPolicies of these files in the cluster; default: none."
        ),
    ] = "",
    certificates: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Keep the certificates of the release whose objects' names begin so: <name>-extender-tls …; "
            "default: none.",
        ),
    ] = "",
    namespace: Annotated[str, typer.Option(help="Namespace of their Secrets, for --certificates.")] = "",
    server_validity: Annotated[
        float, typer.Option(min=SHORTEST, help="Seconds that a server certificate lives.")
    ] = 90 * DAY,
    client_validity: Annotated[
        float, typer.Option(min=SHORTEST, help="Seconds that kube-scheduler's certificate lives.")
    ] = 365 * DAY,
    ca_validity: Annotated[
        float, typer.Option(min=SHORTEST, help="Seconds that a certificate authority lives.")
    ] = 3650 * DAY,
    ca_overlap: Annotated[
        float,
        typer.Option(min=0, help="Seconds from an authority's being in all bundles until it signs."),
    ] = 7 * DAY,
    log_level: Annotated[str, typer.Option(help=f"One of {', '.join(logs.LEVELS)}.")] = "info",
) -> None:
    """Answer, for every VM with VFIO devices, where it could migrate and why not elsewhere."""
    try:
        logs.set_up(log_level)
    except ValueError as problem:
        raise typer.BadParameter(str(problem)) from problem
    # kopf logs every handled event of every object at this level.
    logging.getLogger("kopf.objects").setLevel(logging.WARNING)
    if kubeconfig:
        os.environ["KUBECONFIG"] = kubeconfig
    if certificates and not namespace:
        raise typer.BadParameter("--certificates needs --namespace")
    if ca_overlap >= ca_validity / 3:
        raise typer.BadParameter(
            "--ca-overlap must be less than a third of --ca-validity: that is when the next one is made"
        )
    lives = (server_validity, client_validity, ca_validity, ca_overlap)
    options = Options(
        health_bind,
        kubeconfig or None,
        allow_loosening,
        count_delay,
        catalogue,
        certificates,
        namespace,
        Times(*(timedelta(seconds=life) for life in lives)),
    )
    try:
        asyncio.run(run(options))
    except (ConfigError, StartError) as problem:
        log.error("cannot start: %s", problem)
        raise typer.Exit(2) from problem


def main() -> None:
    """Entry point of ``migcompat-operator``."""
    app()
