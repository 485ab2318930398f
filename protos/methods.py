"""Typed facts about the methods of a service, read from its descriptor.

The server binding and the client channels both need a method's path, message classes and direction of streams;
they take them from here, so that no generated gRPC stub is needed and neither can drift from the .proto file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from google.protobuf.descriptor import FileDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass


@dataclass(frozen=True, slots=True)
class Method:
    """One RPC method."""

    path: str
    """What travels in HTTP/2's `:path`: `/package.Service/Method`."""
    request_type: type[Message]
    response_type: type[Message]
    client_streaming: bool
    server_streaming: bool

    @property
    def name(self) -> str:
        """The method's own name: the last segment of the path."""
        return self.path.rpartition("/")[2]


class GeneratedModule(Protocol):
    """A module that was generated from a .proto file."""

    DESCRIPTOR: FileDescriptor


def methods_of(source: GeneratedModule | FileDescriptor, service_name: str) -> dict[str, Method]:
    """The methods of one service by their name, in the order of the .proto file.

    `service_name` is without its package. `google.longrunning`'s Operations is held by `operations_proto_pb2`.

    Raises:
        LookupError: the file has no such service; the text names those it has.
    """
    file = source if isinstance(source, FileDescriptor) else source.DESCRIPTOR
    service = file.services_by_name.get(service_name)
    if service is None:
        known = ", ".join(file.services_by_name) or "none"
        raise LookupError(f"{file.name} has no service {service_name!r} (services: {known})")
    return {method.name: _method(method) for method in service.methods}


def _method(method: MethodDescriptor) -> Method:
    return Method(
        path=f"/{method.containing_service.full_name}/{method.name}",
        request_type=GetMessageClass(method.input_type),
        response_type=GetMessageClass(method.output_type),
        client_streaming=method.client_streaming,
        server_streaming=method.server_streaming,
    )
