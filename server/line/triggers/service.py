"""The triggers of one server, from the tables `[[trigger]]`."""

import time
from collections.abc import Callable
from functools import partial

from server.config.settings import Settings
from server.config.triggers import GpioTrigger, ModbusTrigger, MqttTrigger, TriggerTable
from server.errors import InvalidFieldError
from server.line.cameras.judge import new_trigger
from server.line.cameras.service import Cameras
from server.line.triggers.base import Listener, Signal, TriggerSource
from server.observe.metrics import Metrics

# Seconds for which the threads of the triggers may go on after a stop.
STOP_TIMEOUT_S = 5.0


def make_source(table: TriggerTable, ignored: Callable[[str], object]) -> TriggerSource:
    """Return the source that `table` describes. Its package is imported now. ignored: called with
    the reason why something that came is no trigger."""
    match table:
        case MqttTrigger():
            from server.line.triggers.mqtt import MqttSource

            return MqttSource(table, ignored)
        case ModbusTrigger():
            from server.line.triggers.modbus import ModbusSource

            return ModbusSource(table)
        case GpioTrigger():
            from server.line.triggers.gpio import GpioSource

            return GpioSource(table)
    raise AssertionError(f"no trigger of the type {type(table).__name__}")


class Triggers:
    """Triggers `cameras` by the sources of `settings`."""

    def __init__(self, settings: Settings, metrics: Metrics, cameras: Cameras) -> None:
        self._cameras = cameras
        self._listeners = []
        for table in settings.trigger:
            source = make_source(table, partial(cameras.ignore, table.camera))
            listener = Listener(table.name, source, partial(self._fire, table.camera))
            metrics.trigger_connected.labels(table.name).set_function(listener.listens)
            self._listeners.append(listener)

    def _fire(self, camera: str, signal: Signal) -> None:
        trigger = new_trigger(signal.part, signal.product, signal.batch)
        if signal.fault:
            self._cameras.refuse(camera, trigger, InvalidFieldError(signal.fault))
        else:
            self._cameras.fire(camera, trigger)

    def start(self) -> None:
        for listener in self._listeners:
            listener.start()

    def close(self) -> None:
        """Stop to listen."""
        until = time.monotonic() + STOP_TIMEOUT_S
        for listener in self._listeners:
            listener.stop()
        for listener in self._listeners:
            listener.join(max(0.0, until - time.monotonic()))
