"""What the tests in the booted machine share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator

import pytest
import pytest_asyncio

from tests.kernel.figures import KEY
from tests.kernel.guest import hardware
from tests.kernel.guest.node import Node, running_node

Figure = Callable[[str, float, str], None]


@pytest.fixture
def figure(record_property: Callable[[str, object], None]) -> Figure:
    """Notes a measured value: name, value, unit."""
    return lambda name, value, unit: record_property(KEY, [name, value, unit])


@pytest.fixture(autouse=True)
def bare() -> Iterator[None]:
    """Each test begins with the devices of a fresh boot, and leaves them so."""
    hardware.reset()
    yield
    hardware.reset()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def running() -> AsyncIterator[Node]:
    """The node that the tests share: the agent takes seconds to start here."""
    async with running_node() as node:
        yield node


@pytest_asyncio.fixture(loop_scope="session")
async def node(bare: None, running: Node) -> AsyncIterator[Node]:
    """This machine as a node without devices, its agent running and hearing events only."""
    await running.settled()
    running.agent.news()
    yield running
    print(f"the agent said:\n{running.agent.news()}")
