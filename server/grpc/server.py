"""The Open Inference Protocol over gRPC: grpcio in front of the application.

A message is taken as the bytes that it is, and read in the thread of its call: grpcio would do that
in the one thread that all calls share. Compressed messages are inflated here too, since grpcio sets
no limit to what comes out.
"""

import logging
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

# Else its core writes lines that are no JSON to the log, of each client that breaks off.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
# Else it reads connections in threads of its own. Without them a call changes threads less often,
# each time of which a busy machine may let it wait: an eighth of a frame's time
# (scripts/bench/clients/triton.py).
os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_listener,-event_engine_client")

import grpc

from server.config.settings import Settings
from server.config.thread_budget import grpc_calls
from server.errors import LinesideError, StartError
from server.grpc.calls import CALLS, Call, refused_request
from server.grpc.in_process import Answer, Sender, ask
from server.grpc.messages import SERVICE
from server.grpc.status import status_code
from server.grpc.waiting import Messages
from server.grpc.wire import read_message, write_message
from server.http.body.reading import inflate
from server.http.wsgi import VALUE_BYTES_MAX, Wsgi

logger = logging.getLogger(__name__)

# How a message begins that is compressed; none of the service's begins so otherwise.
COMPRESSED = {0x1F: "gzip", 0x78: "deflate"}
# Bytes of a message beside the frame: names, shapes, parameters.
BESIDE_BYTES = 65_536
# Letters of an error's sentence in the status, which clients limit with all metadata.
DETAILS_LETTERS = 1000
# Headers of an error's answer that are metadata here.
TRAILING = ("retry-after", "x-should-retry", "x-request-id")
# Connections at once; one more is closed. Each is an open file, of which HTTP needs the most.
CONNECTIONS_MAX = 256
# Milliseconds after which a connection on which nobody calls is closed.
IDLE_MS = 3_600_000
OnEnded = Callable[[str, str], None]


class GrpcServer:
    """Answers the protocol's calls by the WSGI application `app`, once it listens. on_ended: called
    with the method and the status code of each call."""

    def __init__(self, app: Wsgi, settings: Settings, on_ended: OnEnded) -> None:
        self._app = app
        self._on_ended = on_ended
        self._settings = settings
        self._tls = bool(settings.tls_certificate)
        self._most = int(settings.max_body_mb * 1_000_000)
        self._messages = Messages(
            int(settings.bodies_mb * 1_000_000), self._most + BESIDE_BYTES, settings.body_timeout
        )
        self._server: grpc.Server | None = None
        self._ended: threading.Event | None = None

    def listen(self, credentials: grpc.ServerCredentials | None) -> None:
        """Take calls at `grpc_port`; with TLS if there are `credentials`. Raises StartError if the
        port can't be had."""
        settings = self._settings
        most = grpc_calls(settings.slots, settings.max_waiting)
        self._server = grpc.server(
            ThreadPoolExecutor(most, thread_name_prefix="grpc"),
            maximum_concurrent_rpcs=most,
            options=(
                ("grpc.max_receive_message_length", self._most + BESIDE_BYTES),
                ("grpc.max_send_message_length", -1),
                ("grpc.max_metadata_size", VALUE_BYTES_MAX),
                ("grpc.absolute_max_metadata_size", 2 * VALUE_BYTES_MAX),
                ("grpc.max_concurrent_streams", 2 * most),
                ("grpc.max_connection_idle_ms", IDLE_MS),
                ("grpc.max_allowed_incoming_connections", CONNECTIONS_MAX),
                # A second server is refused, and does not get every second call.
                ("grpc.so_reuseport", 0),
                ("grpc.per_message_decompression", 0),
            ),
        )
        handlers = {name: self._handler(name, call) for name, call in CALLS.items()}
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE, handlers),)
        )
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        address = f"{host}:{settings.grpc_port}"
        try:
            if credentials is None:
                self._server.add_insecure_port(address)
            else:
                self._server.add_secure_port(address, credentials)
        except RuntimeError:
            raise StartError(f"can't listen on {address} (grpc_port): is it in use?") from None
        self._messages.watch()
        self._server.start()

    def begin_to_close(self) -> None:
        """Take no more calls; those in hand go on."""
        if self._server is not None and self._ended is None:
            self._ended = self._server.stop(self._settings.stop_timeout)

    def close(self) -> None:
        """Return when the calls in hand are answered, and no more are taken."""
        self.begin_to_close()
        if self._ended is not None:
            self._ended.wait()

    def _handler(self, name: str, call: Call) -> grpc.RpcMethodHandler:
        def answer(messages: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
            return self._answer(name, call, messages, context)

        # A stream of one message is the same to the client, and the wait for it can be ended.
        return grpc.stream_unary_rpc_method_handler(answer)

    def _answer(
        self, name: str, call: Call, messages: Iterator[bytes], context: grpc.ServicerContext
    ) -> bytes:
        code = grpc.StatusCode.INTERNAL
        try:
            answer = self._ask(call, messages, context)
            if answer.status < 400 or answer.status in call.statuses:
                data = write_message(call.response, call.answer(answer))
                code = grpc.StatusCode.OK
                return data
            code = status_code(answer.code, answer.status)
            details, trailing = answer.message, _trailing(answer)
        except CallEndedError:
            code = grpc.StatusCode.CANCELLED
            details, trailing = "the call's message did not come in time", ()
        except Exception:
            logger.exception("gRPC call failed", extra={"fields": {"method": name}})
            details, trailing = "the server failed; the log says why", ()
        finally:
            self._on_ended(name, code.name)
        context.set_trailing_metadata(trailing)
        context.abort(code, details[:DETAILS_LETTERS])
        raise AssertionError("abort raises")

    def _ask(self, call: Call, messages: Iterator[bytes], context: grpc.ServicerContext) -> Answer:
        """Return the application's answer to a call. Raises CallEndedError."""
        sender = Sender(context.peer(), context.invocation_metadata())
        try:
            with self._messages.coming(context) as held:
                data = _next(messages)
                held.came(len(data))
                message = read_message(call.request, self._inflated(data), self._most)
                request = call.ask(message, context.time_remaining())
                del message
                return ask(self._app, request, sender, tls=self._tls)
        except LinesideError as error:
            # Its traceback would keep the call, see `ask`.
            refused = refused_request(call, error.with_traceback(None))
        return ask(self._app, refused, sender, tls=self._tls)

    def _inflated(self, data: bytes) -> bytes:
        coding = COMPRESSED.get(data[0]) if data else None
        return inflate(data, coding, self._most + BESIDE_BYTES, {}) if coding else data


class CallEndedError(Exception):
    """The client has gone, or its message did not come in time."""


def _next(messages: Iterator[bytes]) -> bytes:
    try:
        return next(messages)
    except StopIteration:
        raise CallEndedError from None
    except grpc.RpcError:
        raise CallEndedError from None


def _trailing(answer: Answer) -> tuple[tuple[str, str], ...]:
    """Return the metadata of an error: its code, and what its headers say over HTTP."""
    found = [(name, answer.headers[name]) for name in TRAILING if name in answer.headers]
    return (("error-code", answer.code), *found)
