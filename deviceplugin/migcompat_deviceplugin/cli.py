"""The command ``migcompat-device-plugin``."""

from __future__ import annotations

import asyncio
import enum
import logging
from pathlib import Path
from typing import Annotated

import typer
from migcompat import logs
from migcompat.api.names import RESOURCE_DOMAIN
from migcompat.api.vfionode import Mode
from migcompat.httpserver import parse_bind
from migcompat.kube.config import ConfigError
from migcompat.resources.naming import check_domain

from migcompat_deviceplugin.app import Settings, run
from migcompat_deviceplugin.devnodes import DevDir
from migcompat_deviceplugin.probes import Whom

log = logging.getLogger(__name__)


class UseNvml(enum.StrEnum):
    """Whether NVIDIA's library is asked about GPUs."""

    AUTO = "auto"
    OFF = "off"


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def serve(  # noqa: PLR0917 - typer makes flags of them
    node_name: Annotated[str, typer.Option(envvar="NODE_NAME", help="Name of this node's Node object.")],
    mode: Annotated[
        Mode,
        typer.Option(
            help="serve: this is the device plugin. observe: another one is, and devices are only"
            " published, under its names."
        ),
    ] = Mode.SERVE,
    sysfs_root: Annotated[Path, typer.Option(help="Where the host's sysfs is mounted.")] = Path("/sys"),
    dev_root: Annotated[Path, typer.Option(help="Where the host's /dev is visible.")] = Path("/dev"),
    host_dev: Annotated[
        Path,
        typer.Option(help="Where that /dev lies on the host: containers get their device nodes from it."),
    ] = Path("/dev"),
    boot_id_file: Annotated[Path, typer.Option(help="File with the boot id of the running kernel.")] = Path(
        "/proc/sys/kernel/random/boot_id"
    ),
    kubelet_dir: Annotated[
        Path, typer.Option(help="Directory that holds device-plugins/ and pod-resources/.")
    ] = Path("/var/lib/kubelet"),
    namespace: Annotated[
        str, typer.Option(envvar="POD_NAMESPACE", help="Namespace that the agent runs in.")
    ] = "",
    daemonset: Annotated[
        str,
        typer.Option(
            help="DaemonSet there that runs the agent: when that goes, it leaves its node for good."
        ),
    ] = "",
    resource_domain: Annotated[
        str, typer.Option(help="Domain of the extended resources' names.")
    ] = RESOURCE_DOMAIN,
    config: Annotated[
        Path | None, typer.Option(help="File that says which resource takes which device; default: none.")
    ] = None,
    scan_interval: Annotated[float, typer.Option(min=0.1, help="Seconds between two scans of sysfs.")] = 5.0,
    health_bind: Annotated[
        str, typer.Option(help="host:port of /healthz, /readyz and /metrics.")
    ] = "0.0.0.0:8080",
    kubeconfig: Annotated[
        str | None, typer.Option(help="How to reach the API server; default: $KUBECONFIG, else in-cluster.")
    ] = None,
    allow_loosening: Annotated[
        bool, typer.Option(help="Let annotations of VMs make the checks laxer (mode: ignore, cross-type).")
    ] = False,
    probe: Annotated[
        Whom,
        typer.Option(
            help="Ask devices, before they are advertised, whether they can migrate: auto: all but NVIDIA's"
            " vGPUs, all, or off."
        ),
    ] = Whom.AUTO,
    nvml: Annotated[
        UseNvml, typer.Option(help="Ask NVIDIA's library about GPUs, where it is there, or never.")
    ] = UseNvml.AUTO,
    nvml_library: Annotated[
        str, typer.Option(help="Path of libnvidia-ml.so.1; default: where the dynamic linker finds it.")
    ] = "",
    log_level: Annotated[str, typer.Option(help=f"One of {', '.join(logs.LEVELS)}.")] = "info",
) -> None:
    """Serve this node's VFIO devices to the kubelet, publish what they are, and guard migration targets."""
    try:
        logs.set_up(log_level)
        parse_bind(health_bind)
        check_domain(resource_domain)
        check_absolute("--host-dev", host_dev)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    settings = Settings(
        node_name=node_name,
        mode=mode,
        boot_id_file=boot_id_file,
        namespace=namespace,
        daemonset=daemonset,
        sysfs_root=sysfs_root,
        dev=DevDir(dev_root, host_dev),
        kubelet_dir=kubelet_dir,
        resource_domain=resource_domain,
        config=config,
        scan_interval=scan_interval,
        health_bind=health_bind,
        allow_loosening=allow_loosening,
        probe=probe,
        nvml=nvml is UseNvml.AUTO,
        nvml_library=nvml_library,
    )
    try:
        asyncio.run(run(settings, kubeconfig))
    except (ConfigError, OSError) as error:
        log.error("%s", error)
        raise typer.Exit(1) from error


def check_absolute(flag: str, path: Path) -> None:
    """Raises ValueError for a *path* that nobody but this process could make sense of."""
    if not path.is_absolute():
        raise ValueError(f"{flag} {path} is not an absolute path")


def main() -> None:
    """Entry point of the console script."""
    app()


if __name__ == "__main__":
    main()
