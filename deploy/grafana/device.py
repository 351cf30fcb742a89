"""The dashboard of the device: time by stage, and the machine's resources."""

from grafana_foundation_sdk.builders.dashboard import Dashboard
from grafana_foundation_sdk.models import units
from panels import Panel, bars, board, figure, graph, heat, states

HERE = 'instance=~"$instance"'
MODEL = f'{HERE}, model=~"$model"'
RATE = "[$__rate_interval]"
STAGE = "lineside_stage_duration_seconds"


def _time() -> list[Panel]:
    return [
        heat(
            "Time to the answer",
            "Requests with one frame, a second, whose time is between a line and the one below",
            units.Seconds,
            f"sum by (le) (instance_le:lineside_request_duration_seconds_bucket:rate5m{{{HERE}}})",
        ),
        heat(
            "Time of the stage $stage",
            "Frames whose time in the stage is between a line and the one below",
            units.Seconds,
            f'sum by (le) (increase({STAGE}_bucket{{{HERE}, stage=~"$stage"}}{RATE}))',
        ),
        graph(
            "Mean time by stage",
            "Time of a frame in each stage",
            units.Seconds,
            (
                f"sum by (stage) (rate({STAGE}_sum{{{HERE}}}{RATE}))"
                f" / sum by (stage) (rate({STAGE}_count{{{HERE}}}{RATE}))",
                "{{stage}}",
            ),
            stacked=True,
        ),
        graph(
            "Slowest 1 of 100 by stage",
            "99 of 100 frames pass the stage in this time, over five minutes",
            units.Seconds,
            (
                f"max by (stage) (instance_stage:{STAGE}:p99_5m{{{HERE}}})",
                "{{stage}}",
            ),
        ),
        graph(
            "Queue",
            "Frames that wait; if there are more than max_waiting, they are refused",
            units.NoUnit,
            (f"lineside_waiting_frames{{{HERE}}}", "{{instance}}"),
        ),
        graph(
            "Interpreters",
            "Interpreters that are busy, and all interpreters",
            units.NoUnit,
            (f"lineside_busy_interpreters{{{HERE}}}", "busy {{instance}}"),
            (f"lineside_interpreters{{{HERE}}}", "all {{instance}}"),
        ),
    ]


def _machine() -> list[Panel]:
    return [
        graph(
            "Temperature",
            "By thermal zone; a Raspberry Pi slows down from 80 °C",
            units.Celsius,
            (f"lineside_device_temperature_celsius{{{HERE}}}", "{{zone}} {{instance}}"),
            limit=80,
        ),
        states(
            "Throttled",
            "Reasons that slowed the device down in the last five minutes",
            {"0": "no", "1": "yes"},
            (
                f"instance_reason:lineside_device_throttled:bool5m{{{HERE}}}",
                "{{reason}} {{instance}}",
            ),
        ),
        graph(
            "Processor",
            "Cores that the server keeps busy",
            units.NoUnit,
            (f'rate(process_cpu_seconds_total{{job="lineside", {HERE}}}{RATE})', "{{instance}}"),
        ),
        graph(
            "Memory used, of the limit",
            "Of the server's cgroup if it has a limit, and of the machine",
            units.PercentUnit,
            (f"instance_scope:lineside_memory_used:ratio{{{HERE}}}", "{{scope}} {{instance}}"),
            limit=0.8,
        ),
        graph(
            "Memory of the server",
            "The whole process, and the memory of each model",
            units.BytesIEC,
            (f'process_resident_memory_bytes{{job="lineside", {HERE}}}', "process {{instance}}"),
            (f"lineside_model_memory_bytes{{{MODEL}}}", "{{model}} {{instance}}"),
        ),
        bars(
            "Disk in use",
            "Of the disk that holds each folder",
            units.PercentUnit,
            (f"1 - instance_folder:lineside_disk_free:ratio{{{HERE}}}", "{{folder}} {{instance}}"),
            {"yellow": 0.8, "red": 0.9},
        ),
    ]


def _storage() -> list[Panel]:
    return [
        graph(
            "Cache",
            "Lookups a second by result",
            units.CountsPerSecond,
            (f"sum by (result) (rate(lineside_cache_lookups_total{{{HERE}}}{RATE}))", "{{result}}"),
            stacked=True,
        ),
        graph(
            "Cache hits",
            "Answers without running a model, of all lookups",
            units.PercentUnit,
            (
                f'sum(rate(lineside_cache_lookups_total{{{HERE}, result=~"hit|shared"}}{RATE}))'
                f" / sum(rate(lineside_cache_lookups_total{{{HERE}}}{RATE}))",
                "hits",
            ),
        ),
        graph(
            "Jobs",
            "Jobs a second by their final state",
            units.CountsPerSecond,
            (f"sum by (state) (rate(lineside_jobs_total{{{HERE}}}{RATE}))", "{{state}}"),
        ),
        graph(
            "Jobs pending",
            "Jobs that wait or run",
            units.NoUnit,
            (f"lineside_jobs_pending{{{HERE}}}", "{{instance}}"),
        ),
        graph(
            "Journal",
            "Rows a second that were written, and that were lost",
            units.RowsPerSecond,
            (f"rate(lineside_journal_rows_total{{{HERE}}}{RATE})", "written {{instance}}"),
            (f"rate(lineside_journal_lost_total{{{HERE}}}{RATE})", "lost {{instance}}"),
        ),
        graph(
            "Samples",
            "Bytes of the frames kept for training",
            units.BytesIEC,
            (f"lineside_samples_bytes{{{HERE}}}", "{{instance}}"),
        ),
    ]


def _models() -> list[Panel]:
    return [
        bars(
            "Models that serve",
            "Seconds that loading, warming up and checking took",
            units.Seconds,
            (
                f"lineside_model_load_seconds{{{MODEL}}}"
                f" and on (instance, job, model, version) lineside_model_info{{{MODEL}}}",
                "{{model}}/{{version}} {{instance}}",
            ),
            {"yellow": 1.5, "red": 3},
            span=12,
        ),
        figure(
            "Running since",
            "Start of the server that was started last",
            units.DateTimeFromNow,
            f'max(process_start_time_seconds{{job="lineside", {HERE}}}) * 1000',
        ),
        figure(
            "Versions of the server",
            "If there is more than one, a device was not upgraded",
            units.NoUnit,
            f"count(count by (version) (lineside_build_info{{{HERE}}}))",
            {"yellow": 2},
        ),
    ]


def device() -> Dashboard:
    """Make the dashboard for the integrator."""
    return board(
        "lineside-device",
        "Lineside device",
        "Time of a frame by stage, and the machine's resources",
        ("instance", "model", "stage"),
        {
            "Time": _time(),
            "Machine": _machine(),
            "Cache, jobs, journal": _storage(),
            "Models": _models(),
        },
    )
