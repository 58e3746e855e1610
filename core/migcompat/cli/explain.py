"""``migcompat explain``: where a VM could go, and attribute by attribute why not elsewhere.

Evaluated here, by the code that filter and webhook use, from what the API server lists: no access to the
extender is needed.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
import typer
import yaml

from migcompat.api.cluster import VirtualMachineInstance
from migcompat.api.names import LAUNCHER_LABEL, LAUNCHER_VALUE
from migcompat.cli.explanation_text import write
from migcompat.fleet.explanation import Explanation
from migcompat.fleet.explanation import explain as explained
from migcompat.fleet.fleet import Fleet
from migcompat.kube.client import Client
from migcompat.kube.config import ConfigError, Connection, connection, context_namespace
from migcompat.kube.errors import ApiError, Forbidden, NotFound, Unauthorized
from migcompat.kube.kinds import NODES, PODS, POLICIES, VFIONODES, VMIS, Resource

EXIT_FREE = 0
EXIT_NOT = 1
EXIT_UNUSABLE = 2

DEADLINE = 120.0
"""Seconds for all of it; 5,000 nodes take a few."""
HOME_CONFIG = Path(".kube/config")
NOT_KNOWN = (
    "not known here: nodes that a replica of the extender avoids for a minute, because they refused the VM"
)

T = TypeVar("T")


class Output(enum.StrEnum):
    """How the explanation is written."""

    TEXT = "text"
    JSON = "json"
    YAML = "yaml"


class CannotExplainError(Exception):
    """There is no answer: what is wrong, and what to do."""


def command(app: typer.Typer) -> None:
    """Add ``explain`` to *app*."""
    app.command("explain")(explain)


def explain(  # noqa: PLR0917 - typer makes flags of them
    vm: Annotated[str, typer.Argument(metavar="[NAMESPACE/]VM", help="The running VM.")],
    node: Annotated[
        str, typer.Argument(help="One node, in detail; default: all that offer such devices.")
    ] = "",
    namespace: Annotated[
        str, typer.Option("--namespace", "-n", help="Default: the kubeconfig's, else 'default'.")
    ] = "",
    output: Annotated[Output, typer.Option("--output", "-o", help="Output format.")] = Output.TEXT,
    allow_loosening: Annotated[
        bool,
        typer.Option(
            "--allow-loosening", help="As the chart's allowLoosening: let annotations loosen the rules."
        ),
    ] = False,
    kubeconfig: Annotated[
        str | None, typer.Option(help="Default: $KUBECONFIG, else ~/.kube/config, else in-cluster.")
    ] = None,
    server: Annotated[
        str, typer.Option(help="URL of the API server instead of a kubeconfig, such as kubectl proxy's.")
    ] = "",
) -> None:
    """Tell where a VM with VFIO devices could migrate to, and why not elsewhere.

    Exit status: 0 some node (or NODE) accepts its devices and has them free, 1 not, 2 no answer: unusable
    arguments, no such VM or node, no access.
    """
    try:
        client, usual = _reach(kubeconfig, server)
        given, name = _named(vm, namespace)
        found = asyncio.run(
            _asked(client, given or usual, name, node, Fleet(allow_loosening=allow_loosening))
        )
    except (CannotExplainError, ConfigError) as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(EXIT_UNUSABLE) from error
    if output is Output.TEXT:
        write(found, detailed=bool(node))
    elif output is Output.JSON:
        typer.echo(msgspec.json.format(msgspec.json.encode(found), indent=2).decode())
    else:
        typer.echo(yaml.safe_dump(_plain(found), sort_keys=False, allow_unicode=True), nl=False)
    free = not found.asks or any(view.free for view in found.nodes)
    raise typer.Exit(EXIT_FREE if free else EXIT_NOT)


def _plain(found: Explanation) -> Any:
    return msgspec.json.decode(msgspec.json.encode(found))


def _named(vm: str, namespace: str) -> tuple[str, str]:
    """Namespace (empty: none is given) and name. Raises CannotExplainError."""
    given, _, name = vm.rpartition("/")
    if not name or "/" in given:
        raise CannotExplainError(f"{vm!r} is no VM: give VM or NAMESPACE/VM")
    if given and namespace and given != namespace:
        raise CannotExplainError(f"two namespaces are given: {given} in {vm!r}, and --namespace {namespace}")
    return given or namespace, name


def _reach(kubeconfig: str | None, server: str) -> tuple[Client, str]:
    """A client, and the namespace that is usual there. Raises CannotExplainError and ConfigError."""
    if server:
        if kubeconfig:
            raise CannotExplainError("--server and --kubeconfig exclude each other")
        if not server.startswith(("http://", "https://")):
            raise CannotExplainError(f"--server {server!r} is not an http(s) URL")
        return Client(Connection(server.rstrip("/"))), "default"
    config = _kubeconfig(kubeconfig)
    client = Client(connection(config))
    return client, (context_namespace(Path(config)) if config else "") or "default"


def _kubeconfig(given: str | None) -> str | None:
    """The file to use: as given, of the environment, or of the home directory as kubectl has it."""
    home = Path.home() / HOME_CONFIG
    return given or os.environ.get("KUBECONFIG") or (str(home) if home.is_file() else None)


async def _asked(client: Client, namespace: str, name: str, node: str, fleet: Fleet) -> Explanation:
    """Fill *fleet* and ask it. Raises CannotExplainError and ConfigError."""
    try:
        async with client, asyncio.timeout(DEADLINE):
            vmi = await _vmi(client, namespace, name)
            nodes, vfionodes, policies, pods = await asyncio.gather(
                _all(client, NODES),
                _all(client, VFIONODES),
                _all(client, POLICIES),
                _all(client, PODS, f"{LAUNCHER_LABEL}={LAUNCHER_VALUE}"),
            )
    except (Forbidden, Unauthorized) as error:
        raise CannotExplainError(f"{error}: whoever runs this needs that right") from error
    except ApiError as error:
        raise CannotExplainError(str(error)) from error
    except TimeoutError as error:
        raise CannotExplainError(f"the API server did not answer all within {DEADLINE:g} s") from error
    for item in nodes:
        fleet.put_node(item)
    for published in vfionodes:
        fleet.put_vfionode(published)
    for policy in policies:
        fleet.put_policy(policy)
    for pod in pods:
        fleet.put_pod(pod)
    fleet.put_vmi(vmi)
    if node and fleet.node(node) is None:
        raise CannotExplainError(f"there is no Node {node}")
    found = explained(fleet, vmi, node)
    found.notes += [*(fleet.policies.problems[key] for key in sorted(fleet.policies.problems)), NOT_KNOWN]
    return found


async def _vmi(client: Client, namespace: str, name: str) -> VirtualMachineInstance:
    try:
        return await client.get(VMIS, name, namespace)
    except NotFound:
        with contextlib.suppress(Forbidden):
            await _all(client, VMIS, namespace=namespace)  # says so where the kind itself is not there
    raise CannotExplainError(f"there is no VirtualMachineInstance {namespace}/{name}: does the VM run?")


async def _all(client: Client, kind: Resource[T], labels: str = "", namespace: str = "") -> Sequence[T]:
    try:
        return (await client.list(kind, namespace, labels=labels)).items
    except NotFound as error:
        owner = "KubeVirt" if kind is VMIS else "migcompat"
        raise CannotExplainError(
            f"the cluster knows no {kind!r}: its CustomResourceDefinition is missing; is {owner} installed?"
        ) from error
