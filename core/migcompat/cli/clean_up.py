"""``migcompat clean-up``: take out of the cluster what migcompat has put into it, before it is uninstalled.

The chart runs it when the release is uninstalled, by hand it does the same. It can be repeated: what is gone
already is passed over.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Annotated, TypeVar

import typer

from migcompat.api import names
from migcompat.api.cluster import Node
from migcompat.kube.client import Client
from migcompat.kube.config import ConfigError
from migcompat.kube.errors import ApiError, Forbidden, NotFound, Unauthorized, Unreachable
from migcompat.kube.kinds import (
    COMPATIBILITIES,
    DAEMONSETS,
    DEPLOYMENTS,
    NODES,
    PODS,
    POLICIES,
    VFIONODES,
    Resource,
)

EXIT_INCOMPLETE = 1
EXIT_UNUSABLE_ARGUMENTS = 2

DEADLINE = 240.0
"""Seconds; helm gives its hooks 300."""
WRITES_PER_SECOND = 100.0
"""5,000 Nodes and 5,000 VFIONodes then take 100 s."""
AT_ONCE = 16
POLL = 1.0
PAUSE = 3.0
"""Seconds between two attempts at what could not be done."""
TOLD = 5
"""Problems that are named; of many nodes most fail for the same reason."""

T = TypeVar("T")


def command(app: typer.Typer) -> None:
    """Add ``clean-up`` to *app*."""
    app.command("clean-up")(clean_up)


def clean_up(
    namespace: Annotated[str, typer.Option(help="Namespace in which migcompat is installed.")],
    name: Annotated[
        str, typer.Option(help="What the names of its objects begin with: <name>-device-plugin …")
    ] = "migcompat",
    deadline: Annotated[float, typer.Option(min=1, help="Seconds for all of it.")] = DEADLINE,
    kubeconfig: Annotated[
        str | None, typer.Option(help="How to reach the API server; default: $KUBECONFIG, else in-cluster.")
    ] = None,
) -> None:
    """Stop the agents and the operator for good, then remove what they wrote: before an uninstall.

    Removes the labels of migcompat from all Nodes, all VFIONodes, and the MigrationCompatibility objects and
    catalogue policies that the operator made. What people made stays: policies and questions of their own.
    Running VMs do not notice.
    Can be repeated. Exit status: 0 done, 1 not all of it, 2 unusable arguments.
    """
    try:
        client = Client.from_environment(kubeconfig, WRITES_PER_SECOND)
    except ConfigError as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(EXIT_UNUSABLE_ARGUMENTS) from error
    problem = asyncio.run(_run(client, namespace, name, deadline))
    if problem:
        typer.echo(f"Error: {problem}", err=True)
        raise typer.Exit(EXIT_INCOMPLETE)


async def _run(client: Client, namespace: str, name: str, deadline: float) -> str:
    """Everything, until it is done or *deadline* seconds are over; what went wrong, or nothing."""
    last = "the API server is slow, or there is much to do: run it again"
    ends = time.monotonic() + deadline
    job = CleanUp(client, typer.echo)
    try:
        async with client, asyncio.timeout(deadline):
            while True:
                try:
                    await job.stop(namespace, name, (ends - time.monotonic()) / 2)
                    await job.remove()
                    return ""
                except (Forbidden, Unauthorized) as error:
                    return f"{error}: whoever runs this needs that right"
                except ApiError as error:
                    last = str(error)
                    typer.echo(f"trying again in {PAUSE:g} s: {error}", err=True)
                await asyncio.sleep(PAUSE)
    except TimeoutError:
        return f"not done within {deadline:g} s: {last}"


class CleanUp:
    """The steps, each of which may be repeated. *say* tells what was done."""

    def __init__(self, client: Client, say: Callable[[str], object]) -> None:
        self._client = client
        self._say = say

    async def stop(self, namespace: str, name: str, wait: float) -> None:
        """End whoever would write again, the agents and the operator, and wait until their pods have gone.

        They go while they still have their rights, so that an agent can find out that it leaves for good. It
        does not wait longer than *wait* seconds: the pod of a node that does not answer never goes. Raises
        ApiError.
        """
        until = time.monotonic() + wait
        workloads = ((DAEMONSETS, f"{name}-device-plugin"), (DEPLOYMENTS, f"{name}-operator"))
        for resource, workload in workloads:
            try:
                # In the foreground: the object stays, being deleted, until the last of its pods has gone.
                await self._client.delete(resource, workload, namespace, propagation="Foreground")
                self._say(f"stopping {resource.kind} {namespace}/{workload}")
            except NotFound:
                self._say(f"there is no {resource.kind} {namespace}/{workload} (any more)")
        for resource, workload in workloads:
            while await self._exists(resource, workload, namespace):
                if time.monotonic() > until:
                    self._say(
                        f"{resource.kind} {namespace}/{workload} does not end: "
                        f"{await self._pods(namespace, workload)}; going on without waiting for it"
                    )
                    break
                await asyncio.sleep(POLL)

    async def remove(self) -> None:
        """Remove labels and objects. Raises ApiError; what can be done has been done then."""
        labelled = self._items(NODES, wanted=lambda node: any(_ours(node)))
        cleaned = await self._each(labelled, self._unlabel)
        self._say(f"labels of migcompat removed from {cleaned} Node(s)")
        gone = await self._each(
            self._items(VFIONODES), lambda item: self._client.delete(VFIONODES, item.metadata.name)
        )
        self._say(f"{gone} VFIONode(s) deleted")
        made = f"{names.MANAGED_BY}={names.OPERATOR}"
        gone = await self._each(
            self._items(COMPATIBILITIES, made, lambda item: item.is_made_by_operator),
            lambda item: self._client.delete(
                COMPATIBILITIES, item.metadata.name, item.metadata.namespace, uid=item.metadata.uid
            ),
        )
        self._say(f"{gone} MigrationCompatibility object(s) of the operator deleted")
        gone = await self._each(
            self._items(POLICIES, made, lambda item: item.is_of_catalogue),
            lambda item: self._client.delete(POLICIES, item.metadata.name, uid=item.metadata.uid),
        )
        self._say(f"{gone} CompatibilityPolicy object(s) of the catalogue deleted")

    async def _unlabel(self, node: Node) -> None:
        labels = dict.fromkeys(_ours(node))
        await self._client.patch(NODES, node.metadata.name, {"metadata": {"labels": labels}})

    async def _items(
        self, resource: Resource[T], labels: str = "", wanted: Callable[[T], bool] = lambda _: True
    ) -> AsyncIterator[T]:
        """The *wanted* objects; none where the kind itself is gone. Raises ApiError."""
        try:
            async for page in self._client.pages(resource, labels=labels):
                for item in page.items:
                    if wanted(item):
                        yield item
        except NotFound:
            return

    async def _each(self, items: AsyncIterator[T], work: Callable[[T], Awaitable[object]]) -> int:
        """Do *work* with all *items*, some at once; how many. Raises Unreachable naming some of what failed.

        Forbidden and Unauthorized are raised at once: they would be said of every item.
        """
        problems: list[ApiError] = []

        async def one(item: T) -> int:
            async with room:
                try:
                    await work(item)
                except NotFound:
                    return 0
                except (Forbidden, Unauthorized):
                    raise
                except ApiError as error:
                    problems.append(error)
                    return 0
                return 1

        room = asyncio.Semaphore(AT_ONCE)
        done = sum(await asyncio.gather(*[one(item) async for item in items]))
        if problems:
            raise Unreachable(_told(problems))
        return done

    async def _exists(self, resource: Resource[T], name: str, namespace: str) -> bool:
        try:
            await self._client.get(resource, name, namespace)
        except NotFound:
            return False
        return True

    async def _pods(self, namespace: str, workload: str) -> str:
        """The pods that are left, with their nodes."""
        found = await self._client.list(PODS, namespace, labels="app.kubernetes.io/name=migcompat")
        pods = [pod for pod in found.items if pod.metadata.name.startswith(f"{workload}-")]
        told = [f"{pod.metadata.name} on {pod.spec.node_name or 'no node'}" for pod in pods[:TOLD]]
        more = [f"{len(pods) - TOLD} more"] if len(pods) > TOLD else []
        return f"{', '.join(told + more) or 'no pod'} left (does the node answer?)"


def _ours(node: Node) -> Iterable[str]:
    return (key for key in node.metadata.labels or {} if names.is_node_label(key))


def _told(problems: list[ApiError]) -> str:
    told = [str(problem) for problem in problems[:TOLD]]
    more = [f"and {len(problems) - TOLD} more"] if len(problems) > TOLD else []
    return "; ".join(told + more)
