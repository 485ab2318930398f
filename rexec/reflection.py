"""gRPC server reflection: which services the server has and how their messages look, for grpcurl and its like.

All it tells is in the .proto files of this project. The answers come from the descriptors that the generated code
registers, limited to the files that the served services need. The published package for this is tied to the contexts of
gRPC's own servicers, which our services never see.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator

from google.protobuf.descriptor import Descriptor, FileDescriptor, ServiceDescriptor

from cas.context import RequestContext
from cas.errors import Code, MalformedRequest
from protos.grpc.reflection.v1 import reflection_pb2 as v1
from protos.grpc.reflection.v1alpha import reflection_pb2 as v1alpha

MAX_REQUEST_BYTES = 64 << 10
"""An answer repeats its request, and no name is as long."""


class Reflection:
    """grpc.reflection.v1.ServerReflection over these services."""

    def __init__(self, services: Iterable[ServiceDescriptor]) -> None:
        self._services = tuple(sorted(services, key=lambda service: service.full_name))
        self._files = {file.name: file for service in self._services for file in _with_imports(service.file)}
        self._file_of = {symbol: file for file in self._files.values() for symbol in _symbols(file)}

    async def ServerReflectionInfo(
        self, requests: AsyncIterator[v1.ServerReflectionRequest], _context: RequestContext
    ) -> AsyncGenerator[v1.ServerReflectionResponse, None]:
        """Raises MalformedRequest for a request that is too long; a name that is not known is an answer."""
        async for request in requests:
            yield self.answer(request)

    def answer(self, request: v1.ServerReflectionRequest) -> v1.ServerReflectionResponse:
        """The answer to one request. Raises MalformedRequest."""
        if request.ByteSize() > MAX_REQUEST_BYTES:
            raise MalformedRequest(f"request of {request.ByteSize()} bytes, expected at most {MAX_REQUEST_BYTES}")
        response = v1.ServerReflectionResponse(valid_host=request.host, original_request=request)
        try:
            self._fill(response, request)
        except LookupError as missing:
            response.error_response.error_code = Code.NOT_FOUND
            response.error_response.error_message = str(missing.args[0])
        return response

    def _fill(self, response: v1.ServerReflectionResponse, request: v1.ServerReflectionRequest) -> None:
        match request.WhichOneof("message_request"):
            case "list_services":
                for service in self._services:
                    response.list_services_response.service.add(name=service.full_name)
            case "file_by_filename":
                file = self._files.get(request.file_by_filename)
                _give(response, file, f"no file {request.file_by_filename[:200]!r}")
            case "file_containing_symbol":
                file = self._file_of.get(request.file_containing_symbol)
                _give(response, file, f"no symbol {request.file_containing_symbol[:200]!r}")
            case "file_containing_extension":  # proto3 declares none
                _give(response, None, f"no extensions of {request.file_containing_extension.containing_type[:200]!r}")
            case "all_extension_numbers_of_type":
                name = request.all_extension_numbers_of_type
                if name not in self._file_of:
                    raise LookupError(f"no message {name[:200]!r}")
                response.all_extension_numbers_response.base_type_name = name
            case _:
                response.error_response.error_code = Code.INVALID_ARGUMENT
                response.error_response.error_message = "the request asks for nothing that is known here"


class ReflectionAlpha:
    """grpc.reflection.v1alpha.ServerReflection: equal messages under another package."""

    def __init__(self, reflection: Reflection) -> None:
        self._reflection = reflection

    async def ServerReflectionInfo(
        self, requests: AsyncIterator[v1alpha.ServerReflectionRequest], _context: RequestContext
    ) -> AsyncGenerator[v1alpha.ServerReflectionResponse, None]:
        """See Reflection."""
        async for request in requests:
            answer = self._reflection.answer(v1.ServerReflectionRequest.FromString(request.SerializeToString()))
            yield v1alpha.ServerReflectionResponse.FromString(answer.SerializeToString())


def _give(response: v1.ServerReflectionResponse, file: FileDescriptor | None, otherwise: str) -> None:
    if file is None:
        raise LookupError(otherwise)
    response.file_descriptor_response.file_descriptor_proto.extend(
        imported.serialized_pb for imported in _with_imports(file)
    )


def _with_imports(file: FileDescriptor) -> list[FileDescriptor]:
    """The file and all that it imports, directly or not, each once; the file first."""
    found = {file.name: file}
    todo = [file]
    while todo:
        for imported in todo.pop().dependencies:
            if imported.name not in found:
                found[imported.name] = imported
                todo.append(imported)
    return list(found.values())


def _symbols(file: FileDescriptor) -> Iterator[str]:
    """The full names of what the file declares."""
    for service in file.services_by_name.values():
        yield service.full_name
        yield from (method.full_name for method in service.methods)
    for enum in file.enum_types_by_name.values():
        yield enum.full_name
    for message in file.message_types_by_name.values():
        yield from _symbols_in(message)


def _symbols_in(message: Descriptor) -> Iterator[str]:
    yield message.full_name
    yield from (field.full_name for field in message.fields)
    for enum in message.enum_types:
        yield enum.full_name
    for nested in message.nested_types:
        yield from _symbols_in(nested)
