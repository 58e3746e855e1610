"""Generates the Python code of the kubelet's APIs: ``python -m tests.tools.generate_protos [DIRECTORY]``.

Without a directory it writes beside the ``.proto`` files (that is what is committed); a test generates into
an empty directory and compares. ``*_pb2_grpc.pyi`` is written from the descriptors, because grpc_tools has
no option for it and calls of untyped stubs would not pass ``mypy --strict``.
"""

from __future__ import annotations

import sys
from importlib.resources import files
from pathlib import Path

from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet, MethodDescriptorProto
from grpc_tools import protoc  # type: ignore[import-untyped]

CORE = Path(__file__).resolve().parents[2] / "core"
PROTOS = (
    "migcompat/kubelet/deviceplugin_v1beta1/deviceplugin.proto",
    "migcompat/kubelet/podresources_v1/podresources.proto",
)


def generate(destination: Path = CORE) -> list[Path]:
    """Write the generated modules and their stubs below *destination*; returns what was written.

    Raises RuntimeError when protoc refuses a file (it has then said why on standard error).
    """
    destination.mkdir(parents=True, exist_ok=True)
    written = []
    for proto in PROTOS:
        base = destination / proto.removesuffix(".proto")
        base.parent.mkdir(parents=True, exist_ok=True)
        described = base.with_name(base.name + ".descriptor")
        arguments = [
            f"--proto_path={CORE}",
            f"--proto_path={files('grpc_tools') / '_proto'}",
            f"--python_out={destination}",
            f"--pyi_out={destination}",
            f"--grpc_python_out={destination}",
            f"--descriptor_set_out={described}",
            proto,
        ]
        if protoc.main(["protoc", *arguments]) != 0:
            raise RuntimeError(f"protoc refused {proto}: see its message above")
        (file,) = FileDescriptorSet.FromString(described.read_bytes()).file
        described.unlink()
        stub = base.with_name(base.name + "_pb2_grpc.pyi")
        stub.write_text(grpc_stub(file, proto))
        written += [base.with_name(base.name + end) for end in ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py")]
        written.append(stub)
    return written


def grpc_stub(file: FileDescriptorProto, proto: str) -> str:
    """The ``.pyi`` of one file's services, for ``grpc.aio`` channels and servers."""
    package, module = proto.removesuffix(".proto").replace("/", ".").rsplit(".", 1)
    lines = [
        f"# Generated from {proto} by tests/tools/generate_protos.py. DO NOT EDIT!",
        "from collections.abc import AsyncIterator",
        "",
        "import grpc.aio",
        "",
        f"from {package} import {module}_pb2 as pb",
        "",
    ]
    for service in file.service:
        name = service.name
        lines += [f"class {name}Stub:", "    def __init__(self, channel: grpc.aio.Channel) -> None: ..."]
        for method in service.method:
            types = ", ".join(_types(method))
            call = "UnaryStreamMultiCallable" if method.server_streaming else "UnaryUnaryMultiCallable"
            lines.append(f"    {method.name}: grpc.aio.{call}[{types}]")
        lines += ["", f"class {name}Servicer:"]
        for method in service.method:
            asked, answered = _types(method)
            context = f"grpc.aio.ServicerContext[{asked}, {answered}]"
            define, result = "async def", answered
            if method.server_streaming:
                define, result = "def", f"AsyncIterator[{answered}]"
            arguments = f"self, request: {asked}, context: {context}"
            lines.append(f"    {define} {method.name}({arguments}) -> {result}: ...")
        register = f"add_{name}Servicer_to_server(servicer: {name}Servicer, server: grpc.aio.Server)"
        lines += ["", f"def {register} -> None: ...", ""]
    return "\n".join(lines)


def _types(method: MethodDescriptorProto) -> tuple[str, str]:
    """The Python types of what a method takes and answers."""
    return f"pb.{method.input_type.rpartition('.')[2]}", f"pb.{method.output_type.rpartition('.')[2]}"


if __name__ == "__main__":
    for path in generate(*map(Path, sys.argv[1:2])):
        print(path)
