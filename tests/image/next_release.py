"""The product's image as the next release would have it: all the same but for the version it says it is."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path, PurePosixPath

from migcompat import __version__

from tests.image.build import IMAGE

VERSION = f"{__version__}+next"
TAG = "next"
REFERENCE = f"{IMAGE.rpartition(':')[0]}:{TAG}"
_MODULE = "site-packages/migcompat/__init__.py"
_COMPILED = "site-packages/migcompat/__pycache__/__init__."


def write(image: Path, archive: Path) -> None:
    """Writes a docker-archive with the image REFERENCE: *image* under a layer that changes its version.

    Raises:
        ValueError: the image lacks the module that says its version, or says it otherwise.
    """
    with tarfile.open(image) as old, tarfile.open(archive, "w") as new:
        (manifest,) = json.loads(_read(old, "manifest.json"))
        layer = _layer(old, manifest["Layers"], image)
        digest = hashlib.sha256(layer).hexdigest()
        config = json.loads(_read(old, manifest["Config"]))
        config["rootfs"]["diff_ids"].append(f"sha256:{digest}")
        config["history"].append({"created": "1970-01-01T00:00:00Z", "created_by": Path(__file__).name})
        for name in manifest["Layers"]:
            new.addfile(old.getmember(name), old.extractfile(name))
        changed = json.dumps(config).encode()
        names = (f"{hashlib.sha256(changed).hexdigest()}.json", f"{digest}.tar")
        said = [{"Config": names[0], "RepoTags": [REFERENCE], "Layers": [*manifest["Layers"], names[1]]}]
        for name, content in zip(
            (*names, "manifest.json"), (changed, layer, json.dumps(said).encode()), strict=True
        ):
            _add(new, name, content)


def _layer(old: tarfile.TarFile, layers: list[str], image: Path) -> bytes:
    """A tar with the module as it is to be; its compiled form, which nobody would check, is taken away."""
    files: dict[str, bytes] = {}
    for name in layers:
        with tarfile.open(fileobj=old.extractfile(name)) as tar:
            for member in tar:
                if member.name.endswith(_MODULE):
                    files[member.name] = _changed(_read(tar, member.name), image)
                elif _COMPILED in member.name:
                    path = PurePosixPath(member.name)
                    files[str(path.with_name(f".wh.{path.name}"))] = b""
    if len(files) != 2:
        raise ValueError(f"{image}: has not one {_MODULE} and its compiled form, but {sorted(files)}")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        parents = {parent for name in files for parent in PurePosixPath(name).parents}
        for directory in sorted(parents - {PurePosixPath(".")}):
            member = tarfile.TarInfo(str(directory))
            member.type, member.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(member)
        for name, content in files.items():
            _add(tar, name, content)
    return buffer.getvalue()


def _changed(module: bytes, image: Path) -> bytes:
    former, said = (f'__version__ = "{version}"'.encode() for version in (__version__, VERSION))
    if former not in module:
        raise ValueError(f"{image}: {_MODULE} does not say {former.decode()}")
    return module.replace(former, said)


def _read(tar: tarfile.TarFile, name: str) -> bytes:
    file = tar.extractfile(name)
    assert file is not None
    return file.read()


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(content), 0o644
    tar.addfile(member, io.BytesIO(content))
