"""A container's spec as a host process: mounts become directories, addresses the pod's, variables values.

What a container runtime does with namespaces is done by rewriting: every argument and variable that is a path
in or above a mount becomes the path on the host, and 0.0.0.0 becomes the pod's own loopback address.
"""

from __future__ import annotations

import base64
import json
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from tests.cluster.api import Api, Object

TOKEN_SECONDS = 24 * 3600


class NotReadyYet(Exception):
    """A volume or key is missing; the kubelet says so and tries again."""


@dataclass
class Volumes:
    """The volumes of one pod, materialised on the host."""

    paths: dict[str, Path] = field(default_factory=dict)
    has_token: bool = False
    """Whether the pod gets a token of its service account (``automountServiceAccountToken``)."""


@dataclass
class Start:
    """What to run."""

    command: list[str]
    environment: dict[str, str]


async def materialise(api: Api, pod: Object, node_root: Path, directory: Path) -> Volumes:
    """Makes the pod's volumes.

    Args:
        api: reads secrets and config maps, and asks for the pod's token.
        pod: the pod.
        node_root: what ``/`` is to the node's hostPath volumes.
        directory: where everything else goes.

    Raises:
        NotReadyYet: something is missing.
    """
    volumes = Volumes()
    namespace = pod["metadata"]["namespace"]
    for volume in pod["spec"].get("volumes", ()):
        path = directory / "volumes" / volume["name"]
        if "hostPath" in volume:
            path = node_root / volume["hostPath"]["path"].lstrip("/")
            _check_host_path(path, volume["hostPath"])
        elif "emptyDir" in volume:
            path.mkdir(parents=True, exist_ok=True)
        elif "secret" in volume:
            source = {**volume["secret"], "name": volume["secret"]["secretName"]}
            _write(path, await _secret(api, namespace, source))
        elif "configMap" in volume:
            _write(path, await _config_map(api, namespace, volume["configMap"]))
        elif "projected" in volume:
            for source in volume["projected"]["sources"]:
                if "serviceAccountToken" in source:
                    volumes.has_token = True
                    wanted = source["serviceAccountToken"]
                    _write(path, {wanted["path"]: (await token(api, pod)).encode()})
                elif "configMap" in source:
                    _write(path, await _config_map(api, namespace, source["configMap"]))
                elif "secret" in source:
                    _write(path, await _secret(api, namespace, source["secret"]))
                elif "downwardAPI" in source:
                    _write(path, _downward(pod, source["downwardAPI"]["items"]))
                else:
                    raise ValueError(f"the stand-in knows no projected source {sorted(source)}")
        elif "downwardAPI" in volume:
            _write(path, _downward(pod, volume["downwardAPI"]["items"]))
        else:
            raise ValueError(f"the stand-in knows no volume like {volume}")
        volumes.paths[volume["name"]] = path
    return volumes


async def token(api: Api, pod: Object) -> str:
    """A token of the pod's service account, bound to this pod (it names the node and dies with the pod)."""
    meta, account = pod["metadata"], pod["spec"]["serviceAccountName"]
    bound = {"apiVersion": "v1", "kind": "Pod", "name": meta["name"], "uid": meta["uid"]}
    answer = await api.create(
        f"/api/v1/namespaces/{meta['namespace']}/serviceaccounts/{account}/token",
        {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"expirationSeconds": TOKEN_SECONDS, "boundObjectRef": bound},
        },
    )
    text: str = answer["status"]["token"]
    return text


async def start(
    api: Api, pod: Object, container: Object, *, volumes: Volumes, root: Path, base: Mapping[str, str]
) -> Start:
    """The process of a container.

    Args:
        api: reads secrets and config maps that variables come from.
        pod: the pod, with ``status.podIP``.
        container: its container.
        volumes: of the pod.
        root: a new directory in which paths *above* a mount are rebuilt with links.
        base: variables every container has (PATH, HOME, KUBECONFIG …).

    Raises:
        NotReadyYet: a variable's source is missing.
        ValueError: the container names no command (there is no image to take one from).
    """
    mounts = _mounts(container, volumes, root)
    address = pod["status"]["podIP"]
    environment = await _environment(api, pod, container)
    arguments = [*container.get("command", ()), *container.get("args", ())]
    if not container.get("command"):
        raise ValueError(f"container {container['name']} has no command, and there is no image to run")
    expanded = [rewrite(expand(a, environment), mounts, root, address) for a in arguments]
    own = {name: rewrite(value, mounts, root, address) for name, value in environment.items()}
    return Start(expanded, {**base, **own})


def expand(text: str, variables: Mapping[str, str]) -> str:
    """Replaces ``$(NAME)`` by the variable; ``$$`` is a dollar; unknown names stay (as in Kubernetes)."""

    def replace(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        return variables.get(match[1], match[0])

    return re.sub(r"\$\$|\$\(([^()]*)\)", replace, text)


def rewrite(text: str, mounts: Mapping[PurePosixPath, Path], root: Path, address: str) -> str:
    """A value, or the value after ``--flag=``, as it is to be on the host."""
    flag, equals, value = text.rpartition("=") if text.startswith("--") else ("", "", text)
    for everywhere in ("0.0.0.0", "[::]"):
        if value == everywhere or value.startswith(f"{everywhere}:"):
            return flag + equals + address + value.removeprefix(everywhere)
    if value.startswith("/"):
        path = PurePosixPath(value)
        inside = [m for m in mounts if path == m or m in path.parents]
        if inside:
            mount = max(inside, key=lambda m: len(m.parts))
            return flag + equals + str(mounts[mount] / path.relative_to(mount))
        if any(path in m.parents for m in mounts) and path != PurePosixPath("/"):
            return flag + equals + str(root / str(path).lstrip("/"))
    return text


def base_environment(directory: Path, program_dirs: list[Path]) -> dict[str, str]:
    """Variables of every container: programs come from the virtual environment and `program_dirs`."""
    here = Path(sys.executable).parent
    path = [str(here), *map(str, program_dirs), os.environ.get("PATH", "")]
    return {
        "PATH": ":".join(path),
        "HOME": str(directory),
        "TMPDIR": str(directory),
        "PYTHONUNBUFFERED": "1",
        "LANG": "C.UTF-8",
    }


def _mounts(container: Object, volumes: Volumes, root: Path) -> dict[PurePosixPath, Path]:
    mounts: dict[PurePosixPath, Path] = {}
    for mount in container.get("volumeMounts", ()):
        where = PurePosixPath(mount["mountPath"])
        target = volumes.paths[mount["name"]] / mount.get("subPath", "")
        mounts[where] = target
        link = root / str(where).lstrip("/")
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink():
            link.symlink_to(target)
    return mounts


def _check_host_path(path: Path, source: Object) -> None:
    kind = source.get("type", "")
    if kind == "DirectoryOrCreate":
        path.mkdir(parents=True, exist_ok=True)
    elif kind == "FileOrCreate":
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    right = {"Directory": path.is_dir, "File": path.is_file, "Socket": path.is_socket}.get(kind, path.exists)
    if kind and not right():
        raise NotReadyYet(f"hostPath type check failed: {source['path']} is not a {kind.lower()}")


def _write(directory: Path, files: Mapping[str, bytes]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_bytes() != content:
            new = path.with_name(f".{path.name}.new")
            new.write_bytes(content)
            new.rename(path)


async def _keyed(api: Api, namespace: str, plural: str, source: Object) -> dict[str, bytes]:
    """All keys of a secret or config map, or the selected ``items``."""
    name = source["name"]
    item = await api.find(f"/api/v1/namespaces/{namespace}/{plural}/{name}")
    if item is None:
        if source.get("optional"):
            return {}
        raise NotReadyYet(f'{plural[:-1]} "{name}" not found')
    data = {k: base64.b64decode(v) for k, v in item.get("binaryData", {}).items()}
    if plural == "secrets":
        data |= {k: base64.b64decode(v) for k, v in item.get("data", {}).items()}
    else:
        data |= {k: v.encode() for k, v in item.get("data", {}).items()}
    if "items" not in source:
        return data
    missing = [i["key"] for i in source["items"] if i["key"] not in data]
    if missing and not source.get("optional"):
        raise NotReadyYet(f"references non-existent {plural[:-1]} key: {name}/{', '.join(missing)}")
    return {i["path"]: data[i["key"]] for i in source["items"] if i["key"] in data}


async def _secret(api: Api, namespace: str, source: Object) -> dict[str, bytes]:
    return await _keyed(api, namespace, "secrets", source)


async def _config_map(api: Api, namespace: str, source: Object) -> dict[str, bytes]:
    return await _keyed(api, namespace, "configmaps", source)


def _downward(pod: Object, items: list[Object]) -> dict[str, bytes]:
    return {item["path"]: field_of(pod, item["fieldRef"]["fieldPath"]).encode() for item in items}


def field_of(pod: Object, path: str) -> str:
    """A field of the downward API."""
    match = re.fullmatch(r"metadata\.(labels|annotations)\['(.+)'\]", path)
    if match:
        return str(pod["metadata"].get(match[1], {}).get(match[2], ""))
    value: Any = pod
    for part in path.split("."):
        value = value.get(part, "") if isinstance(value, dict) else ""
    if isinstance(value, dict):
        return "\n".join(f"{k}={json.dumps(v)}" for k, v in sorted(value.items()))
    return str(value)


async def _environment(api: Api, pod: Object, container: Object) -> dict[str, str]:
    namespace = pod["metadata"]["namespace"]
    result: dict[str, str] = {}
    for source in container.get("envFrom", ()):
        plural, reference = next(
            (p, source[k])
            for k, p in (("secretRef", "secrets"), ("configMapRef", "configmaps"))
            if k in source
        )
        for key, content in (await _keyed(api, namespace, plural, reference)).items():
            result[source.get("prefix", "") + key] = content.decode()
    for variable in container.get("env", ()):
        origin = variable.get("valueFrom", {})
        if "fieldRef" in origin:
            value = field_of(pod, origin["fieldRef"]["fieldPath"])
        elif "secretKeyRef" in origin or "configMapKeyRef" in origin:
            kind = "secretKeyRef" if "secretKeyRef" in origin else "configMapKeyRef"
            plural = "secrets" if kind == "secretKeyRef" else "configmaps"
            key = origin[kind]["key"]
            data = await _keyed(api, namespace, plural, origin[kind])
            if key not in data:
                if origin[kind].get("optional"):
                    continue
                raise NotReadyYet(f"couldn't find key {key} in {plural[:-1]} {origin[kind]['name']}")
            value = data[key].decode()
        elif origin:
            raise ValueError(f"the stand-in knows no variable source {sorted(origin)}")
        else:
            value = expand(variable.get("value", ""), result)
        result[variable["name"]] = value
    return result
