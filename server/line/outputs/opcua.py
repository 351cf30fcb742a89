"""Verdicts as nodes of an OPC UA server, named as in OPC 40100-1 (Machine Vision).

Browse names are those of VisionSystemType and ResultDataType (reference.opcfoundation.org,
MachineVision v100); the node set itself is not loaded. asyncua is under LGPL-3.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial
from operator import eq
from typing import Any

import msgspec
from asyncua import Node, Server, ua
from asyncua.common.callback import CallbackType
from asyncua.common.connection import TransportLimits

from server.config.outputs import OpcUaOutput
from server.line.outputs.base import OutputError
from server.line.outputs.messages import Message
from server.line.outputs.server_thread import ServerThread, ShownResult

NAMESPACE = "urn:lineside:machine-vision"
WRITE_TIMEOUT_S = 3.0
# Of clients: connections at once, and the bytes of what one sends.
CONNECTIONS_MAX = 32
LIMITS = TransportLimits(
    max_recv_buffer=65_535, max_send_buffer=65_535, max_chunk_count=16, max_message_size=1 << 20
)
# States of VisionStateMachineType.
OPERATIONAL, ERROR = "Operational", "Error"
# The variables of a result: field of a message by browse name.
RESULT: dict[str, tuple[str, ua.VariantType]] = {
    "resultId": ("request_id", ua.VariantType.String),
    "partId": ("part", ua.VariantType.String),
    "productId": ("product", ua.VariantType.String),
    "batchId": ("batch", ua.VariantType.String),
    "creationTime": ("at", ua.VariantType.String),
    "verdict": ("verdict", ua.VariantType.String),
    "label": ("label", ua.VariantType.String),
    "probability": ("probability", ua.VariantType.Double),
    "camera": ("camera", ua.VariantType.String),
    "error": ("error", ua.VariantType.String),
    "sequence": ("seq", ua.VariantType.UInt32),
}

# Its lines would go to standard error as plain text.
logging.getLogger("asyncua").addHandler(logging.NullHandler())
logging.getLogger("asyncua").propagate = False


class OpcUa:
    """A server for clients that read or subscribe. A result stays until it is acknowledged, if
    `table` says so."""

    window = 1

    def __init__(self, table: OpcUaOutput) -> None:
        self._table = table
        self._thread: ServerThread | None = None
        self._server: Server | None = None
        self._nodes: dict[str, Node] = {}
        self._shown = ShownResult()
        self._beats = 0

    @property
    def connected(self) -> bool:
        server = self._server
        return server is not None and server.bserver is not None and bool(server.bserver.clients)

    def open(self) -> None:
        self._shown = ShownResult()
        self._thread = ServerThread("opcua", self._serve)
        self._thread.start()

    async def _serve(self, listens: Callable[[], None], stop: asyncio.Event) -> None:
        table = self._table
        server = Server()
        await server.init()
        server.set_endpoint(f"opc.tcp://{table.host}:{table.port}/lineside")
        server.set_server_name("Lineside")
        server.set_security_policy([ua.SecurityPolicyType.NoSecurity])
        server.allow_remote_admin(False)
        server.iserver.max_connections = CONNECTIONS_MAX
        server.limits = LIMITS
        await self._make_nodes(server, await server.register_namespace(NAMESPACE))
        server.subscribe_server_callback(CallbackType.PostWrite, self._written)
        try:
            await server.start()
        except OSError:
            raise OutputError(f"can't listen on {table.host}:{table.port}") from None
        self._server = server
        listens()
        try:
            await stop.wait()
        finally:
            self._server = None
            await server.stop()

    async def _make_nodes(self, server: Server, space: int) -> None:
        system = await server.nodes.objects.add_object(space, "VisionSystem")
        machine = await system.add_object(space, "VisionStateMachine")
        management = await system.add_object(space, "ResultManagement")
        results = await management.add_object(space, "Results")
        result = await results.add_object(space, "Result")
        self._nodes = {
            "CurrentState": await machine.add_variable(space, "CurrentState", ERROR),
            "Heartbeat": await system.add_variable(space, "Heartbeat", 0, ua.VariantType.UInt32),
        }
        for name, (_, kind) in RESULT.items():
            empty = "" if kind == ua.VariantType.String else 0
            self._nodes[name] = await result.add_variable(space, name, empty, kind)
        # All of one result at once, as JSON: written last.
        self._nodes["resultContent"] = await result.add_variable(space, "resultContent", "")
        acknowledged = await management.add_variable(
            space, "Acknowledged", 0, ua.VariantType.UInt32
        )
        await acknowledged.set_writable()
        self._nodes["Acknowledged"] = acknowledged

    def _written(self, event: Any, _: Any) -> None:
        """Take what a client has written."""
        for written in event.request_params.NodesToWrite:
            value, node = written.Value.Value, self._nodes["Acknowledged"].nodeid
            if written.NodeId == node and value is not None:
                self._shown.acknowledge(partial(eq, value.Value))

    def _run(self, work: Any) -> None:
        if self._thread is None:
            raise OutputError("its server has ended")
        self._thread.run(work, WRITE_TIMEOUT_S)

    def deliver(self, messages: Sequence[Message], timeout_s: float) -> int:
        (message,) = messages
        if message.seq != self._shown.seq:
            self._shown.show(message.seq)
            self._run(self._show(message))
        if self._table.acknowledge and not self._shown.await_taken(timeout_s):
            return 0
        return message.seq

    async def _show(self, message: Message) -> None:
        fields = message.fields()
        for name, (field, kind) in RESULT.items():
            value = fields[field]
            if value is None:
                value = "" if kind == ua.VariantType.String else 0
            await self._write(name, ua.Variant(value, kind))
        content = msgspec.json.encode(fields).decode()
        await self._write("resultContent", ua.Variant(content, ua.VariantType.String))

    async def _write(self, name: str, value: ua.Variant) -> None:
        assert self._server is not None
        await self._server.write_attribute_value(self._nodes[name].nodeid, ua.DataValue(value))

    def beat(self, ready: bool) -> None:
        self._run(self._beat(ready))

    async def _beat(self, ready: bool) -> None:
        state = OPERATIONAL if ready else ERROR
        await self._write("CurrentState", ua.Variant(state, ua.VariantType.String))
        if ready:
            self._beats = (self._beats + 1) & 0xFFFF_FFFF
            await self._write("Heartbeat", ua.Variant(self._beats, ua.VariantType.UInt32))

    def close(self) -> None:
        if self._thread is not None:
            self._thread.stop()
