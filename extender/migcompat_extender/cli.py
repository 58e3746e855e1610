"""The command ``migcompat-extender``."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Annotated

import typer
from migcompat.kube.config import ConfigError
from migcompat.kube.reflector import STALE_AFTER
from migcompat.logs import LEVELS, set_up

from migcompat_extender.app import Options, run
from migcompat_extender.settings import DEFAULT_MAX_NAMES, DEFAULT_MAX_REQUEST_BYTES, Settings

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def extender(
    *,
    tls_cert: Annotated[Path, typer.Option(help="Server certificate chain, PEM. Reloaded when it changes.")],
    tls_key: Annotated[Path, typer.Option(help="Key of the server certificate, PEM.")],
    client_ca: Annotated[
        Path | None,
        typer.Option(
            help="CA of client certificates, PEM. With it /filter, /prioritize and /explain need one; "
            "/mutate does not."
        ),
    ] = None,
    bind: Annotated[
        str, typer.Option(help="host:port of /filter, /prioritize, /mutate and /explain.")
    ] = "0.0.0.0:8443",
    health_bind: Annotated[
        str, typer.Option(help="host:port of /healthz, /readyz and /metrics, without TLS.")
    ] = "0.0.0.0:8080",
    kubeconfig: Annotated[
        str | None, typer.Option(help="Default: $KUBECONFIG, else the pod's service account.")
    ] = None,
    allow_loosening: Annotated[
        bool,
        typer.Option("--allow-loosening", help="Let a VM's annotations make it laxer."),
    ] = False,
    preemptible_rejections: Annotated[
        bool,
        typer.Option(
            "--preemptible-rejections",
            help="Reject nodes in FailedNodes: kube-scheduler may then delete other pods to make room.",
        ),
    ] = False,
    max_names: Annotated[
        int, typer.Option(min=1, max=1000, help="Most nodes named in a target pod's affinity.")
    ] = DEFAULT_MAX_NAMES,
    max_request_bytes: Annotated[
        int, typer.Option(min=1024, help="Larger request bodies are refused.")
    ] = DEFAULT_MAX_REQUEST_BYTES,
    fail_closed: Annotated[
        bool,
        typer.Option(
            "--fail-closed",
            help="Deny target pods while caches are missing or stale (default: let them pass).",
        ),
    ] = False,
    scheduler_name: Annotated[
        str,
        typer.Option(
            help="Scheduler to name in target pods that name none but the default one. Empty: none."
        ),
    ] = "",
    stale_after: Annotated[
        float,
        typer.Option(
            min=90.0, help="Seconds without news from kube-apiserver after which nothing is trusted."
        ),
    ] = STALE_AFTER,
    log_level: Annotated[str, typer.Option(help=f"One of {', '.join(LEVELS)}.")] = "info",
) -> None:
    """Scheduler extender and admission webhook for live migration of VMs with VFIO devices."""
    try:
        set_up(log_level)
        asyncio.run(
            run(
                Options(
                    bind=bind,
                    health_bind=health_bind,
                    tls_cert=tls_cert,
                    tls_key=tls_key,
                    client_ca=client_ca,
                    kubeconfig=kubeconfig,
                    stale_after=stale_after,
                    settings=Settings(
                        max_request_bytes=max_request_bytes,
                        preemptible_rejections=preemptible_rejections,
                        max_names=max_names,
                        fail_closed=fail_closed,
                        allow_loosening=allow_loosening,
                        scheduler_name=scheduler_name,
                        client_certificates=client_ca is not None,
                    ),
                )
            )
        )
    except (ConfigError, OSError, ValueError) as error:
        print(f"migcompat-extender: cannot run: {error}", file=sys.stderr)
        raise typer.Exit(2) from error


def main() -> None:
    """Run the command."""
    app()
