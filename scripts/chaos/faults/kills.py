"""kill -9 and SIGSTOP of each process of the plant."""

import signal
import time
from collections.abc import Callable
from typing import Any

from chaos.faults.fault import Context, Fault
from chaos.plant import Plant
from chaos.processes import Process, await_that, send

# Seconds without a process: as long as a person or systemd takes.
AWAY_MIN_S, AWAY_MAX_S = 0.2, 3.0


def _kill_server(context: Context) -> None:
    context.kill_server()
    time.sleep(context.rng.uniform(AWAY_MIN_S, AWAY_MAX_S))
    context.start_server()


def _kill_web(context: Context) -> None:
    """Kill the process that answers; its supervisor starts another."""
    before = context.plant.web_pids()
    context.killed()
    send(before, signal.SIGKILL)
    plant = context.plant
    await_that(
        lambda: bool(plant.web_pids()) and plant.web_pids() != before, "another process that serves"
    )


def _stop_and_continue(find: Callable[[Plant], list[int]]) -> Callable[[Context], None]:
    def act(context: Context) -> None:
        pids = find(context.plant)
        send(pids, signal.SIGSTOP)
        try:
            time.sleep(context.hold_s())
        finally:
            send(pids, signal.SIGCONT)

    return act


def _kill(find: Callable[[Plant], Process | None]) -> Callable[[Context], None]:
    def act(context: Context) -> None:
        process = find(context.plant)
        assert process is not None
        process.kill()
        time.sleep(context.rng.uniform(AWAY_MIN_S, AWAY_MAX_S))
        process.start()

    return act


def _kill_worker(context: Context) -> dict[str, Any]:
    """Kill the worker; one that the server started is started again by the server."""
    worker = context.plant.worker
    if worker is not None:
        _kill(lambda plant: plant.worker)(context)
        return {}
    pids = context.plant.job_worker_pids()
    send(pids, signal.SIGKILL)
    return {"processes": len(pids)}


def _pids(find: Callable[[Plant], Process | None]) -> Callable[[Plant], list[int]]:
    def pids(plant: Plant) -> list[int]:
        process = find(plant)
        return process.pids() if process is not None else []

    return pids


FAULTS = (
    Fault("kill server", _kill_server),
    Fault("kill serving process", _kill_web),
    Fault("kill worker", _kill_worker),
    Fault("kill Redis", _kill(lambda plant: plant.redis), missing="redis"),
    Fault("kill MQTT broker", _kill(lambda plant: plant.mosquitto), missing="mosquitto"),
    Fault("kill PLC", _kill(lambda plant: plant.plc), missing="plc"),
    Fault("stop server", _stop_and_continue(lambda plant: plant.server.pids())),
    Fault("stop worker", _stop_and_continue(Plant.job_worker_pids)),
    Fault("stop Redis", _stop_and_continue(_pids(lambda plant: plant.redis)), missing="redis"),
    Fault(
        "stop MQTT broker",
        _stop_and_continue(_pids(lambda plant: plant.mosquitto)),
        missing="mosquitto",
    ),
    Fault("stop PLC", _stop_and_continue(_pids(lambda plant: plant.plc)), missing="plc"),
)
