"""The outputs of one server: which frames go to which of them, and the state of each."""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from server.config.outputs import (
    GpioOutput,
    ModbusClientOutput,
    ModbusServerOutput,
    MqttOutput,
    OpcUaOutput,
    OutputTable,
    WebhookOutput,
)
from server.config.settings import Settings
from server.config.tables import Table
from server.errors import (
    OutputNotFoundError,
    OutputUnavailableError,
    OutputUntestableError,
    SettingsError,
)
from server.line.cameras.judge import Trigger
from server.line.outputs.base import Delivery, Output, OutputState
from server.line.outputs.messages import (
    Event,
    is_wanted,
    of_answer,
    of_refusal,
    of_test,
    why_untestable,
)
from server.line.outputs.outbox import FILE, Bounds, Outbox
from server.observe.metrics import Metrics
from server.recognition.answers import FrameAnswered, FrameRefused
from server.system.extras import install_command

# The module and the requirements file of each kind of output or trigger that needs a package of
# its own.
EXTRAS: Mapping[str, str] = {
    "mqtt": "paho",
    "modbus": "pymodbus",
    "opcua": "asyncua",
    "gpio": "gpiod",
}
# Seconds for which the threads of the outputs may go on after a stop.
STOP_TIMEOUT_S = 5.0
RESULTS = ("delivered", "failed", "dropped", "expired")


def kind_of(table: Table) -> str:
    return str(table.__struct_config__.tag)


def check_installed(settings: Settings) -> None:
    """Raise SettingsError, with the command that installs it, if an output or a trigger needs a
    package that is not there."""
    arrays = {"output": settings.output, "trigger": settings.trigger}
    for array, table in ((array, table) for array, tables in arrays.items() for table in tables):
        kind = kind_of(table)
        extra = kind.partition("-")[0]
        if extra in EXTRAS and find_spec(EXTRAS[extra]) is None:
            raise SettingsError(
                f"[[{array}]] {table.name}: kind {kind} needs a package that is not installed:"
                f" {install_command(extra)}"
            )


def make_output(
    table: OutputTable, busy: Callable[[], bool], trigger: Callable[[str, Trigger], object]
) -> Output:
    """Return the other side that `table` describes. Its package is imported now. busy: whether
    a frame is in hand. trigger: has a frame of the camera of a name judged."""
    match table:
        case MqttOutput():
            from server.line.outputs.mqtt import Mqtt

            return Mqtt(table)
        case ModbusServerOutput():
            from server.line.outputs.modbus import ModbusServer

            return ModbusServer(table, busy, trigger)
        case ModbusClientOutput():
            from server.line.outputs.modbus import ModbusClient

            return ModbusClient(table, busy)
        case OpcUaOutput():
            from server.line.outputs.opcua import OpcUa

            return OpcUa(table)
        case GpioOutput():
            from server.line.outputs.gpio import Gpio

            return Gpio(table)
        case WebhookOutput():
            from server.line.outputs.webhook import Webhook

            return Webhook(table)
    raise AssertionError(f"no output of kind {kind_of(table)}")


class Outputs:
    """Sends how each frame ended to the outputs of `settings`.

    `answered` is called before a frame is answered, `refused` after it. ready: whether the server
    can judge. busy: whether a frame is in hand. trigger: has a frame of the camera of a name
    judged.
    """

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        ready: Callable[[], bool],
        busy: Callable[[], bool],
        trigger: Callable[[str, Trigger], object],
    ) -> None:
        self._tables = settings.output
        bounds = {table.name: Bounds(table.max_waiting, table.max_age_s) for table in self._tables}

        def count(name: str, result: str, messages: int) -> None:
            metrics.output_messages.labels(name, result).inc(messages)

        self._outbox = Outbox(Path(settings.data) / FILE, bounds, count)
        self._deliveries = {
            table.name: Delivery(
                table.name,
                kind_of(table),
                make_output(table, busy, trigger),
                self._outbox,
                table.heartbeat_s,
                partial(count, table.name),
                ready,
            )
            for table in self._tables
        }
        for name, delivery in self._deliveries.items():
            # There from the start, so that Prometheus sees the first one as an increase.
            for result in RESULTS:
                metrics.output_messages.labels(name, result)
            metrics.output_waiting.labels(name).set_function(partial(self._outbox.count, name))
            metrics.output_connected.labels(name).set_function(delivery.is_connected)

    def start(self) -> None:
        """Connect, and send what an earlier process left."""
        for delivery in self._deliveries.values():
            delivery.start()

    def answered(self, frame: FrameAnswered) -> None:
        """Send a frame's verdict, unless its vote has one for all."""
        if frame.answer.vote is None:
            self.put(of_answer(frame))

    def refused(self, frame: FrameRefused) -> None:
        if frame.let_in:
            self.put(of_refusal(frame))

    def put(self, event: Event) -> None:
        names = [table.name for table in self._tables if is_wanted(table, event)]
        if names:
            self._outbox.put(names, event)
            for name in names:
                self._deliveries[name].wake()

    def test(self, name: str, request_id: str) -> OutputState:
        """Send a message that is no verdict, behind those that wait. Raises OutputNotFoundError,
        OutputUntestableError, and OutputUnavailableError if the other side is not there: it would
        come when nobody expects it, in place of a verdict if too many wait."""
        table = next((each for each in self._tables if each.name == name), None)
        if table is None:
            raise OutputNotFoundError("there is no output of this name")
        if why := why_untestable(table):
            raise OutputUntestableError(f"the output {name} can't be tested: {why}")
        delivery = self._deliveries[name]
        if not delivery.is_connected():
            why = delivery.state().last_error or "it is not connected"
            raise OutputUnavailableError(f"the other side of {name} is not there: {why}")
        self._outbox.put([name], of_test(request_id))
        delivery.wake()
        return delivery.state()

    def states(self) -> Sequence[OutputState]:
        return [delivery.state() for delivery in self._deliveries.values()]

    def close(self) -> None:
        """Send what can be sent at once, disconnect, and keep the rest for the next start."""
        until = time.monotonic() + STOP_TIMEOUT_S
        for delivery in self._deliveries.values():
            delivery.stop()
        for delivery in self._deliveries.values():
            delivery.join(max(0.0, until - time.monotonic()))
        self._outbox.close()
