"""The catalogue: CompatibilityPolicies for known drivers, as files that the chart brings along.

helm cannot install objects of a kind that the same release defines, and as hooks they would be deleted and
made anew. So the chosen files are mounted (a ConfigMap), and the operator keeps the cluster as they say, by
server-side apply under a name of its own. It touches no policy that it has not made
(docs/reference/catalogue.md).
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable
from typing import Any

import msgspec
import yaml
from migcompat.api import names
from migcompat.api.compatibilitypolicy import CompatibilityPolicy, CompatibilityPolicySpec
from migcompat.engine.policy import PolicyError, check_policy
from migcompat.kube.backoff import Backoff
from migcompat.kube.client import Client
from migcompat.kube.errors import ApiError, NotFound
from migcompat.kube.kinds import POLICIES

from migcompat_operator.metrics import Metrics

log = logging.getLogger(__name__)

FIELD_MANAGER = "migcompat-catalogue"
EVERY = 60.0
"""Seconds between two looks at files and cluster; a mounted ConfigMap takes the kubelet as long to change."""
BACKOFF_FIRST = 1.0
BACKOFF_LIMIT = 60.0
MOST_BYTES = 64 * 1024
MOST_FILES = 256
SUFFIX = ".yaml"


class Entry(msgspec.Struct, frozen=True):
    """What a file of the catalogue wants: ``spec`` as it is written, and as it is understood."""

    name: str
    spec: dict[str, Any]
    meaning: CompatibilityPolicySpec


class Shelf(msgspec.Struct, frozen=True):
    """All files: what they want, and what is wrong with the others; both by the policy's name."""

    entries: dict[str, Entry]
    problems: dict[str, str]


class _Meta(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """A whole object; labels and the like are the operator's."""

    api_version: str
    kind: str
    metadata: _Meta
    spec: dict[str, Any]


def read_shelf(directory: str) -> Shelf:
    """The files ``<name>.yaml`` of *directory*, each the policy ``catalogue-<name>``; bad ones as problems.

    Raises OSError when the directory cannot be listed: then nothing is known of what is chosen.
    """
    shelf = Shelf({}, {})
    found = sorted(name for name in os.listdir(directory) if name.endswith(SUFFIX) and name[0] != ".")
    for number, file in enumerate(found):
        name = names.CATALOGUE_PREFIX + file.removesuffix(SUFFIX)
        path = os.path.join(directory, file)
        try:
            if number >= MOST_FILES:
                raise ValueError(f"there are more than {MOST_FILES} files")
            shelf.entries[name] = _read(path, name)
        except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
            shelf.problems[name] = f"{path}: {_one_line(error)}"
    return shelf


def _read(path: str, name: str) -> Entry:
    """Raises OSError, YAMLError, or ValueError saying what is wrong."""
    if not os.path.isfile(path):
        raise ValueError("is no regular file")
    with open(path, "rb") as file:
        raw = file.read(MOST_BYTES + 1)
    if len(raw) > MOST_BYTES:
        raise ValueError(f"is larger than {MOST_BYTES} bytes")
    whole = msgspec.convert(yaml.safe_load(raw.decode()), _File)
    if (whole.api_version, whole.kind) != (names.API_VERSION, "CompatibilityPolicy"):
        raise ValueError(f"is a {whole.kind} of {whole.api_version}, not a CompatibilityPolicy")
    if whole.metadata.name != name:
        raise ValueError(f"metadata.name is {whole.metadata.name!r}, which for this file must be {name!r}")
    try:
        meaning = msgspec.convert(whole.spec, CompatibilityPolicySpec)
        check_policy(meaning)
    except (msgspec.ValidationError, PolicyError) as error:
        raise ValueError(f"spec: {error}") from error
    return Entry(name, whole.spec, meaning)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


class Catalogue:
    """Keeps the catalogue's policies in the cluster as the files of *directory* say."""

    def __init__(self, client: Client, directory: str, metrics: Metrics) -> None:
        self._client = client
        self._directory = directory
        self._metrics = metrics
        self._settled: dict[str, tuple[CompatibilityPolicySpec, int]] = {}
        """What was applied last, and the generation that it gave: others may have added keys of their own."""
        self._told: dict[str, str] = {}

    async def run(self) -> None:
        """Look at files and cluster for ever; after a failure sooner."""
        backoff = Backoff(BACKOFF_FIRST, BACKOFF_LIMIT)
        while True:
            if await self.pass_once():
                backoff.reset()
                await asyncio.sleep(EVERY)
            else:
                await asyncio.sleep(backoff.delay())

    async def pass_once(self) -> bool:
        """Apply what differs, delete what is not chosen any more; whether nothing has to be tried again."""
        problems: dict[str, str] = {}
        failed: set[str] = set()
        try:
            shelf = read_shelf(self._directory)
            listed = {item.metadata.name: item for item in (await self._client.list(POLICIES)).items}
        except OSError as error:
            self._tell({self._directory: f"the catalogue cannot be read, and nothing is changed: {error}"})
            return False
        except ApiError as error:
            self._tell({"": f"the policies cannot be listed, trying again: {error}"})
            return False
        problems |= {name: f"ignored: {text}" for name, text in shelf.problems.items()}
        foreign = {name for name in shelf.entries if name in listed and not listed[name].is_of_catalogue}
        for name in foreign:
            problems[name] = (
                f"there is a CompatibilityPolicy {name} that the operator has not made: it is left as it is. "
                "Give it another name, or take this one out of the chart value catalogue.policies"
            )
        for name in shelf.entries.keys() - foreign:
            await self._attempt(name, self._put(shelf.entries[name], listed.get(name)), problems, failed)
        for name, item in listed.items():
            if item.is_of_catalogue and name not in shelf.entries and name not in shelf.problems:
                await self._attempt(name, self._delete(item), problems, failed)
        self._tell(problems)
        self._count(shelf, foreign, failed)
        return not failed

    async def _attempt(
        self, name: str, work: Awaitable[None], problems: dict[str, str], failed: set[str]
    ) -> None:
        try:
            await work
        except ApiError as error:
            problems[name] = f"trying again: {error}"
            failed.add(name)

    async def _put(self, entry: Entry, item: CompatibilityPolicy | None) -> None:
        """Make *item*, which is there now, what *entry* wants. Raises ApiError."""
        if item is not None and (item.metadata.deletion_timestamp or self._is_settled(entry, item)):
            return
        meta: dict[str, Any] = {"labels": {names.MANAGED_BY: names.OPERATOR}}
        if item is not None:
            meta["uid"] = item.metadata.uid
        written = await self._client.apply(
            POLICIES,
            {"metadata": meta, "spec": entry.spec},
            entry.name,
            field_manager=FIELD_MANAGER,
            # What somebody else has made under this name since the list is theirs.
            force=item is not None,
        )
        self._settled[entry.name] = (entry.meaning, written.metadata.generation)
        self._metrics.written.labels("catalogue").inc()
        log.info("%s: %s", entry.name, "made" if item is None else "put back to what the catalogue says")

    def _is_settled(self, entry: Entry, item: CompatibilityPolicy) -> bool:
        if self._settled.get(entry.name) == (entry.meaning, item.metadata.generation):
            return True
        try:
            return msgspec.json.decode(bytes(item.spec), type=CompatibilityPolicySpec) == entry.meaning
        except msgspec.DecodeError:
            return False

    async def _delete(self, item: CompatibilityPolicy) -> None:
        """Raises ApiError."""
        try:
            await self._client.delete(POLICIES, item.metadata.name, uid=item.metadata.uid)
        except NotFound:
            return
        self._settled.pop(item.metadata.name, None)
        self._metrics.written.labels("catalogue").inc()
        log.info("%s: deleted, the catalogue does not have it any more", item.metadata.name)

    def _tell(self, problems: dict[str, str]) -> None:
        """Say each problem once, as long as it stays the same."""
        for name, text in sorted(problems.items()):
            if self._told.get(name) != text:
                log.warning("%s: %s", name or "catalogue", text)
        self._told = problems

    def _count(self, shelf: Shelf, foreign: set[str], failed: set[str]) -> None:
        in_force = shelf.entries.keys() - foreign - failed
        for state, number in (
            ("in-force", len(in_force)),
            ("foreign", len(foreign)),
            ("bad-file", len(shelf.problems)),
            ("failed", len(failed)),
        ):
            self._metrics.catalogue.labels(state).set(number)
