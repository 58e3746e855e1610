"""What travels: kube-scheduler's extender types (v1) and AdmissionReview (v1).

The extender's JSON names are the Go field names, capitalised, without ``omitempty``: nulls appear in
requests, and every field is written in answers (k8s.io/kube-scheduler/extender/v1/types.go).
"""

from __future__ import annotations

import msgspec
from migcompat.api.cluster import Pod

UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What decoding raises: malformed or of another type, not UTF-8, nested too deeply."""


class NodeList(msgspec.Struct):
    """``v1.NodeList``; nodes stay the bytes they came as, only their names are looked at."""

    items: list[msgspec.Raw] | None = None
    metadata: dict[str, str] = {}


class _Metadata(msgspec.Struct):
    name: str


class _Node(msgspec.Struct):
    metadata: _Metadata


class ExtenderArgs(msgspec.Struct, rename="pascal"):
    """``ExtenderArgs``: the pod and the nodes that are left, as names (``nodeCacheCapable``) or whole."""

    pod: Pod | None = None
    nodes: NodeList | None = None
    node_names: list[str] | None = None


class FilterResult(msgspec.Struct, rename="pascal"):
    """``ExtenderFilterResult``: the nodes that pass in the form they came in, and why each other one fails.

    An answer with neither ``Nodes`` nor ``NodeNames`` rejects every node without a reason, so only calls that
    cannot be understood (``Error``) are answered so.
    """

    nodes: NodeList | None = None
    node_names: list[str] | None = None
    failed_nodes: dict[str, str] = {}
    failed_and_unresolvable_nodes: dict[str, str] = {}
    error: str = ""


class HostPriority(msgspec.Struct, rename="pascal"):
    """``HostPriority``: 0 … 10 (``MaxExtenderPriority``)."""

    host: str
    score: int


class WireError(ValueError):
    """The request cannot be understood; the message is meant for the caller."""


_ARGS = msgspec.json.Decoder(ExtenderArgs)
_NODE = msgspec.json.Decoder(_Node)


def read_args(body: bytes) -> tuple[Pod, list[str], list[msgspec.Raw] | None]:
    """The pod, the node names, and the whole nodes in the same order (None when only names were sent).

    Raises:
        WireError: not JSON, cut short, wrong types, no pod, or neither names nor nodes.
    """
    try:
        args = _ARGS.decode(body)
        items = args.nodes.items or [] if args.nodes is not None else []
        listed = [_NODE.decode(item).metadata.name for item in items] if args.node_names is None else []
    except UNREADABLE as error:
        raise WireError(f"request is not ExtenderArgs: {error}") from error
    if args.pod is None:
        raise WireError("request is not ExtenderArgs: Pod is null or missing")
    if args.node_names is not None:
        return args.pod, args.node_names, None
    if args.nodes is None:
        raise WireError("request is not ExtenderArgs: both NodeNames and Nodes are null or missing")
    return args.pod, listed, items


class GroupVersionKind(msgspec.Struct, frozen=True):
    """``metav1.GroupVersionKind``."""

    group: str = ""
    version: str = ""
    kind: str = ""


POD = GroupVersionKind("", "v1", "Pod")


class AdmissionRequest(msgspec.Struct, rename="camel"):
    """``AdmissionRequest``, as far as we read it. ``object`` stays raw: it is patched, not rebuilt."""

    uid: str
    kind: GroupVersionKind
    operation: str
    namespace: str = ""
    sub_resource: str = ""
    dry_run: bool | None = None
    object: msgspec.Raw = msgspec.Raw(b"null")


class _AdmissionReview(msgspec.Struct, rename="camel"):
    api_version: str = ""
    kind: str = ""
    request: AdmissionRequest | None = None


class Status(msgspec.Struct, omit_defaults=True):
    """``metav1.Status`` of a denial."""

    code: int
    message: str
    reason: str = ""


class AdmissionResponse(msgspec.Struct, omit_defaults=True, rename="camel"):
    """``AdmissionResponse``. ``allowed`` has no default, so it is always there; ``patch`` becomes base64."""

    uid: str
    allowed: bool
    status: Status | None = None
    patch_type: str = ""
    patch: bytes = b""
    warnings: list[str] = []
    audit_annotations: dict[str, str] = {}


class _Answer(msgspec.Struct, rename="camel"):
    response: AdmissionResponse
    api_version: str = "admission.k8s.io/v1"
    kind: str = "AdmissionReview"


_REVIEW = msgspec.json.Decoder(_AdmissionReview)


def read_review(body: bytes) -> AdmissionRequest:
    """The request of an AdmissionReview.

    Raises:
        WireError: not JSON, cut short, wrong types, another kind or version, or no request.
    """
    try:
        review = _REVIEW.decode(body)
    except UNREADABLE as error:
        raise WireError(f"request is not an AdmissionReview: {error}") from error
    if (review.api_version, review.kind) != ("admission.k8s.io/v1", "AdmissionReview"):
        raise WireError(
            f"expected kind AdmissionReview of admission.k8s.io/v1, got {review.kind[:64]!r} of "
            f"{review.api_version[:64]!r}; set admissionReviewVersions: [v1]"
        )
    if review.request is None:
        raise WireError("AdmissionReview has no request")
    return review.request


def write_review(response: AdmissionResponse) -> bytes:
    """An AdmissionReview that holds *response*."""
    return msgspec.json.encode(_Answer(response))
