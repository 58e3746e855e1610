"""How we dial a kubelet: a unix socket, the authority it accepts, a deadline, one kind of error."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
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


def identity(socket: Path) -> Identity | None:
    """Which file a socket is, None where none is; one made anew differs in inode or at least in time."""
    try:
        found = socket.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_ctime_ns


@contextlib.asynccontextmanager
async def connected(socket: Path) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to *socket*, for a call or two.

    Channels are not kept: a restarted kubelet makes a new socket, and a kept channel would first have to
    notice and then sit out its own backoff. Nor do channels share connections, as they do by default: a new
    one would inherit the backoff of one that failed. ``grpc.default_authority``: grpcio would send the path
    as authority, which Go's server refuses.

    Raises KubeletError, for calls that fail too.
    """
    if identity(socket) is None:
        raise KubeletError(f"{socket} does not exist")
    options = (
        ("grpc.default_authority", "localhost"),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    )
    channel = grpc.aio.insecure_channel(f"unix:{socket}", options=options)
    try:
        yield channel
    except grpc.aio.AioRpcError as error:
        said = f"{socket}: {error.code().name}: {error.details()}"
        if error.code() is grpc.StatusCode.UNIMPLEMENTED or _OTHER_VERSION in (error.details() or ""):
            raise KubeletTooOldError(said) from error
        raise KubeletError(said) from error
    finally:
        await channel.close(None)
