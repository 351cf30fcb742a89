"""The dashboard of the device: where the time goes, and what the machine has left."""

from grafana_foundation_sdk.builders.dashboard import Dashboard
from panels import Panel, bars, board, figure, graph, heat, states

HERE = 'instance=~"$instance"'
MODEL = f'{HERE}, model=~"$model"'
RATE = "[$__rate_interval]"
STAGE = "lineside_stage_duration_seconds"


def _time() -> list[Panel]:
    return [
        heat(
            "Time to the answer",
            "Requests of one frame a second that took between a line and the one below",
            "s",
            f"sum by (le) (instance_le:lineside_request_duration_seconds_bucket:rate5m{{{HERE}}})",
        ),
        heat(
            "Time of the stage $stage",
            "Frames whose stage took between a line and the one below",
            "s",
            f'sum by (le) (increase({STAGE}_bucket{{{HERE}, stage=~"$stage"}}{RATE}))',
        ),
        graph(
            "Mean time by stage",
            "Where the time of a frame goes",
            "s",
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
            "s",
            (
                f"max by (stage) (instance_stage:{STAGE}:p99_5m{{{HERE}}})",
                "{{stage}}",
            ),
        ),
        graph(
            "Queue",
            "Frames that wait for their turn; beyond max_waiting they are refused",
            "none",
            (f"lineside_waiting_frames{{{HERE}}}", "{{instance}}"),
        ),
        graph(
            "Interpreters",
            "Frames being worked on, and interpreters there are",
            "none",
            (f"lineside_busy_interpreters{{{HERE}}}", "busy {{instance}}"),
            (f"lineside_interpreters{{{HERE}}}", "all {{instance}}"),
        ),
    ]


def _machine() -> list[Panel]:
    return [
        graph(
            "Temperature",
            "By thermal zone; a Raspberry Pi slows down from 80 °C",
            "celsius",
            (f"lineside_device_temperature_celsius{{{HERE}}}", "{{zone}} {{instance}}"),
            limit=80,
        ),
        states(
            "Throttled",
            "What slowed the device down in the five minutes before",
            {"0": "no", "1": "yes"},
            (
                f"instance_reason:lineside_device_throttled:bool5m{{{HERE}}}",
                "{{reason}} {{instance}}",
            ),
        ),
        graph(
            "Processor",
            "Cores that the server keeps busy",
            "none",
            (f'rate(process_cpu_seconds_total{{job="lineside", {HERE}}}{RATE})', "{{instance}}"),
        ),
        graph(
            "Memory of its limit",
            "Of the server's cgroup where that is limited, and of the machine",
            "percentunit",
            (f"instance_scope:lineside_memory_used:ratio{{{HERE}}}", "{{scope}} {{instance}}"),
            limit=0.8,
        ),
        graph(
            "Memory of the server",
            "The whole process, and what each model took when it was loaded",
            "bytes",
            (f'process_resident_memory_bytes{{job="lineside", {HERE}}}', "process {{instance}}"),
            (f"lineside_model_memory_bytes{{{MODEL}}}", "{{model}} {{instance}}"),
        ),
        bars(
            "Disk in use",
            "Of the disk that holds each folder",
            "percentunit",
            (f"1 - instance_folder:lineside_disk_free:ratio{{{HERE}}}", "{{folder}} {{instance}}"),
            {"yellow": 0.8, "red": 0.9},
        ),
    ]


def _kept() -> list[Panel]:
    return [
        graph(
            "Cache",
            "Look-ups a second by what came of them",
            "reqps",
            (f"sum by (result) (rate(lineside_cache_lookups_total{{{HERE}}}{RATE}))", "{{result}}"),
            stacked=True,
        ),
        graph(
            "Cache hits",
            "Answers that no model was run for, of all look-ups",
            "percentunit",
            (
                f'sum(rate(lineside_cache_lookups_total{{{HERE}, result=~"hit|shared"}}{RATE}))'
                f" / sum(rate(lineside_cache_lookups_total{{{HERE}}}{RATE}))",
                "hits",
            ),
        ),
        graph(
            "Jobs",
            "Jobs a second by the state they came to",
            "reqps",
            (f"sum by (state) (rate(lineside_jobs_total{{{HERE}}}{RATE}))", "{{state}}"),
        ),
        graph(
            "Jobs waiting",
            "Jobs that were taken on and not yet started",
            "none",
            (f"lineside_jobs_pending{{{HERE}}}", "{{instance}}"),
        ),
        graph(
            "Journal",
            "Rows a second that were written, and that were lost",
            "reqps",
            (f"rate(lineside_journal_rows_total{{{HERE}}}{RATE})", "written {{instance}}"),
            (f"rate(lineside_journal_lost_total{{{HERE}}}{RATE})", "lost {{instance}}"),
        ),
        graph(
            "Samples",
            "Bytes of the frames kept for training",
            "bytes",
            (f"lineside_samples_bytes{{{HERE}}}", "{{instance}}"),
        ),
    ]


def _models() -> list[Panel]:
    return [
        bars(
            "Models that serve",
            "Seconds that loading, warming up and checking took",
            "s",
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
            "When the server that was started last was started",
            "dateTimeFromNow",
            f'max(process_start_time_seconds{{job="lineside", {HERE}}}) * 1000',
        ),
        figure(
            "Versions of the server",
            "More than one: some device was not brought up to date",
            "none",
            f"count(count by (version) (lineside_build_info{{{HERE}}}))",
            {"yellow": 2},
        ),
    ]


def device() -> Dashboard:
    """What the integrator looks at."""
    return board(
        "lineside-device",
        "Lineside device",
        "Where the time of a frame goes, and what the machine has left",
        ("instance", "model", "stage"),
        {
            "Time": _time(),
            "Machine": _machine(),
            "Cache, jobs, journal": _kept(),
            "Models": _models(),
        },
    )
