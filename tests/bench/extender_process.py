"""The extender's real HTTP application over a fleet made up in memory, as a process of its own.

``python -m tests.bench.extender_process``: prints its address on the first line of standard output and ends
with its standard input. ``POST /change`` alters one VFIONode, so that no remembered verdict may be used.
"""

from __future__ import annotations

import asyncio
import sys

from aiohttp import web
from migcompat.fleet.fleet import Fleet
from migcompat_extender.server import make_app

from tests.bench.large_fleet import POOL, declared, fleet
from tests.support.fleets import vfionode


def _change_route(cluster: Fleet) -> web.RouteDef:
    """Each call makes the devices of node-0001 others than before."""
    calls = 0

    async def change(_: web.Request) -> web.Response:
        nonlocal calls
        calls += 1
        devices = {"node-0001-0": declared(f"1.0.{calls}")}
        if not cluster.put_vfionode(vfionode("node-0001", devices, resource=POOL)):
            raise RuntimeError("the fleet did not take the change")
        return web.Response()

    return web.post("/change", change)


async def serve() -> None:
    """Serve until standard input ends."""
    cluster = fleet()
    app = make_app(cluster, lambda: None)
    app.router.add_routes([_change_route(cluster)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(f"http://127.0.0.1:{runner.addresses[0][1]}", flush=True)
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin.fileno(), ended.set)
    await ended.wait()
    await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(serve())
