"""How we dial a kubelet: a unix socket, the authority it accepts, a deadline, one kind of error."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import grpc.aio

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
_OTHER_VERSION = "is not supported by kubelet"
"""How Register refuses an API version (pkg/kubelet/cm/devicemanager/plugin/v1beta1/api.go)."""

MINIMUM_KUBELET = "1.28"
"""The oldest kubelet that serves all we call and cannot be told not to: PodResources v1 is GA since then
(KEP-606). The device plugin API v1beta1 is older."""

Identity = tuple[int, int, int]


class KubeletError(Exception):
    """A kubelet did not answer, or refused; the text says which socket and why."""


class KubeletTooOldError(KubeletError):
    """A kubelet does not know what it was asked for."""

    def __init__(self, problem: str) -> None:
        super().__init__(f"{problem}; Kubernetes {MINIMUM_KUBELET} or newer is needed on the node")


def identity(file: Path) -> Identity | None:
    """Which file it is, None where none is; one made anew differs in inode or at least in time."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_ctime_ns


@contextlib.asynccontextmanager
async def connected(socket: Path) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to *socket*, for a call or two. Raises KubeletError, for calls that fail too."""
    line = _dial(socket)
    try:
        with _translated(socket):
            yield line.channel
    finally:
        await line.channel.close(None)


class Kept:
    """A channel to *socket* that is kept from call to call, for who calls every few seconds.

    It is made anew where the socket is another file, which a restarted kubelet's is, and after a call that
    failed: a channel that lost its kubelet would have to notice, and to sit out a backoff of its own.
    """

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self._line: _Line | None = None

    @contextlib.asynccontextmanager
    async def channel(self) -> AsyncIterator[grpc.aio.Channel]:
        """The channel, for one call. Raises KubeletError, for a call that fails too."""
        line = self._line
        if line is None or line.identity != identity(self._socket):
            await self._give_up()
            line = self._line = _dial(self._socket)
        line.calls += 1
        try:
            with _translated(self._socket):
                yield line.channel
        except KubeletError:
            if self._line is line:
                self._line = None
            raise
        finally:
            line.calls -= 1
            if self._line is not line:
                await line.hang_up()

    async def close(self) -> None:
        """Keep it no longer; calls under way end first."""
        await self._give_up()

    async def _give_up(self) -> None:
        line, self._line = self._line, None
        if line is not None:
            await line.hang_up()


@dataclass
class _Line:
    """A channel. ``calls``: how many are under way; closing it would cancel them, and who waits for them."""

    channel: grpc.aio.Channel
    identity: Identity
    calls: int = 0

    async def hang_up(self) -> None:
        if not self.calls:
            await self.channel.close(None)


def _dial(socket: Path) -> _Line:
    """A new channel; its calls connect it.

    Channels do not share connections, as they do by default: a new one would inherit the backoff of one that
    failed. ``grpc.default_authority``: grpcio would send the path as authority, which Go's server refuses.
    """
    found = identity(socket)
    if found is None:
        raise KubeletError(f"{socket} does not exist")
    options = (
        ("grpc.default_authority", "localhost"),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    )
    return _Line(grpc.aio.insecure_channel(f"unix:{socket}", options=options), found)


@contextlib.contextmanager
def _translated(socket: Path) -> Iterator[None]:
    try:
        yield
    except grpc.aio.AioRpcError as error:
        said = f"{socket}: {error.code().name}: {error.details()}"
        if error.code() is grpc.StatusCode.UNIMPLEMENTED or _OTHER_VERSION in (error.details() or ""):
            raise KubeletTooOldError(said) from error
        raise KubeletError(said) from error
