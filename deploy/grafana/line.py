"""The dashboard of the line: labels, verdicts and refusals, by camera."""

from grafana_foundation_sdk.builders.dashboard import Dashboard
from grafana_foundation_sdk.models import units
from panels import Panel, bars, board, figure, graph, heat

HERE = 'instance=~"$instance"'
MODEL = f'{HERE}, model=~"$model"'
CAMERA = f'{HERE}, camera=~"$camera"'
RATE = "[$__rate_interval]"


def _health() -> list[Panel]:
    return [
        figure(
            "Ready",
            "Ready if every device serves its default model",
            units.NoUnit,
            f"min(lineside_ready{{{HERE}}})",
            {"green": 1},
            base="red",
            texts={"1": "ready", "0": "not ready"},
        ),
        figure(
            "Alerts",
            "Alerts that are firing now; Prometheus lists them under /alerts",
            units.NoUnit,
            f'count(ALERTS{{alertstate="firing", {HERE}}}) or vector(0)',
            {"red": 1},
        ),
    ]


def _now() -> list[Panel]:
    return [
        figure(
            "Frames a second",
            "Frames that got labels",
            units.CountsPerSecond,
            f"sum(rate(lineside_predictions_total{{{MODEL}}}{RATE}))",
        ),
        figure(
            "Slowest 1 of 100",
            "99 of 100 frames are answered in this time, on the slowest device",
            units.Seconds,
            f"max(instance:lineside_request_duration_seconds:p99_5m{{{HERE}}})",
            {"yellow": 1.0, "red": 1.5},
        ),
        figure(
            "Errors",
            "Frames answered with an error, on the device with the most",
            units.PercentUnit,
            f"max(instance:lineside_request_errors:ratio_rate5m{{{HERE}}})",
            {"yellow": 0.01, "red": 0.05},
        ),
        figure(
            "Refused",
            "Frames refused because there was no room or time, on the device with the most",
            units.PercentUnit,
            f"max(instance:lineside_requests_refused:ratio_rate5m{{{HERE}}})",
            {"yellow": 0.01, "red": 0.05},
        ),
        figure(
            "Cameras sending",
            "Cameras that sent frames in the last two minutes",
            units.NoUnit,
            "count(sum by (instance, camera)"
            f" (increase(lineside_camera_frames_total{{{CAMERA}}}[2m])) > 0) or vector(0)",
        ),
        figure(
            "Drift",
            "The largest distance of a model from the baseline in its bundle",
            units.NoUnit,
            f"max(lineside_drift_ratio{{{MODEL}}})",
            {"yellow": 0.1, "red": 0.2},
        ),
    ]


def _labels() -> list[Panel]:
    return [
        graph(
            "Frames by label",
            "Frames a second by their most probable label",
            units.CountsPerSecond,
            (f"sum by (label) (rate(lineside_predictions_total{{{MODEL}}}{RATE}))", "{{label}}"),
            stacked=True,
        ),
        graph(
            "Frames by verdict",
            "Frames a second by the verdict of the bundle's policy",
            units.CountsPerSecond,
            (f"sum by (verdict) (rate(lineside_verdicts_total{{{MODEL}}}{RATE}))", "{{verdict}}"),
            stacked=True,
        ),
        graph(
            "Share of each verdict",
            "Over ten minutes, of the frames that got a verdict",
            units.PercentUnit,
            (
                f"sum by (verdict) (rate(lineside_verdicts_total{{{MODEL}}}[10m]))"
                f" / scalar(sum(rate(lineside_verdicts_total{{{MODEL}}}[10m])))",
                "{{verdict}}",
            ),
        ),
    ]


def _without_labels() -> list[Panel]:
    return [
        graph(
            "Frames without labels",
            "Frames a second that were answered with an error, by its code",
            units.CountsPerSecond,
            (
                f"sum by (reason) (rate(lineside_frames_refused_total{{{HERE}}}{RATE}))",
                "{{reason}}",
            ),
            stacked=True,
        ),
        graph(
            "Time to the answer",
            "From a request's arrival to its answer, requests of one frame, over five minutes",
            units.Seconds,
            (f"instance:lineside_request_duration_seconds:p50_5m{{{HERE}}}", "median {{instance}}"),
            (
                f"instance:lineside_request_duration_seconds:p99_5m{{{HERE}}}",
                "99 of 100 {{instance}}",
            ),
            limit=1.5,
        ),
        graph(
            "Requests by status",
            "All requests a second, without probes and scrapes",
            units.RequestsPerSecond,
            (
                "sum by (status) (rate(lineside_requests_total"
                f'{{{HERE}, route!~"/metrics|/livez|/readyz"}}{RATE}))',
                "{{status}}",
            ),
        ),
    ]


def _confidence() -> list[Panel]:
    return [
        heat(
            "Confidence",
            "Probability of the best label: number of frames between a line and the one below",
            units.PercentUnit,
            f"sum by (le) (increase(lineside_confidence_bucket{{{MODEL}}}{RATE}))",
        ),
        graph(
            "Confidence, lowest and middle",
            "One of ten frames is below the lower line, half of them below the upper one",
            units.PercentUnit,
            (
                "histogram_quantile(0.1, sum by (le, model)"
                f" (rate(lineside_confidence_bucket{{{MODEL}}}{RATE})))",
                "1 of 10 {{model}}",
            ),
            (
                "histogram_quantile(0.5, sum by (le, model)"
                f" (rate(lineside_confidence_bucket{{{MODEL}}}{RATE})))",
                "half {{model}}",
            ),
        ),
        graph(
            "Drift",
            "Distance of recent frames from the baseline in the bundle, by signal",
            units.NoUnit,
            (
                f"max by (instance, model, signal) (lineside_drift_ratio{{{MODEL}}})",
                "{{signal}} {{model}} {{instance}}",
            ),
            limit=0.2,
        ),
        graph(
            "Golden checks missed in a row",
            "Checks of a serving model's golden frames; from 3 on its frames are refused",
            units.NoUnit,
            (
                f"max by (instance, model) (lineside_golden_misses{{{MODEL}}})",
                "{{model}} {{instance}}",
            ),
            limit=3,
        ),
        graph(
            "Delegates that failed",
            "Serving models that run on the CPU, since their delegate failed",
            units.NoUnit,
            (
                f"max by (instance, model) (lineside_delegate_failed{{{MODEL}}})",
                "{{model}} {{instance}}",
            ),
        ),
        graph(
            "Golden checks",
            "Checks an hour by result; skipped: no slot was free",
            units.NoUnit,
            (
                f"sum by (model, result) (increase(lineside_golden_checks_total{{{MODEL}}}[1h]))",
                "{{model}} {{result}}",
            ),
        ),
        graph(
            "Samples kept",
            "Frames kept for training, an hour, by reason",
            units.NoUnit,
            (
                f"sum by (reason) (rate(lineside_samples_total{{{HERE}}}{RATE})) * 3600",
                "{{reason}}",
            ),
        ),
    ]


def _cameras() -> list[Panel]:
    return [
        graph(
            "Frames by camera",
            "Frames a second of each camera that sends its name, answered or not",
            units.CountsPerSecond,
            (
                f"sum by (camera) (rate(lineside_camera_frames_total{{{CAMERA}}}{RATE}))",
                "{{camera}}",
            ),
            stacked=True,
        ),
        graph(
            "Frames by camera and result",
            "Frames a second that got no labels: bad (the sender's error), refused (no room or"
            " time), failed (the server's error)",
            units.CountsPerSecond,
            (
                "sum by (camera, result) (rate(lineside_camera_frames_total"
                f'{{{CAMERA}, result!="answered"}}{RATE}))',
                "{{camera}} {{result}}",
            ),
        ),
        graph(
            "Why frames of a camera fail",
            "Frames a second without labels, by error; STALE_FRAME, CLOCK_AHEAD: wrong clocks",
            units.CountsPerSecond,
            (
                f"sum by (camera, reason) (rate(lineside_camera_refused_total{{{CAMERA}}}{RATE}))",
                "{{camera}} {{reason}}",
            ),
        ),
        graph(
            "Verdicts by camera",
            "Verdicts a second of each camera",
            units.CountsPerSecond,
            (
                "sum by (camera, verdict)"
                f" (rate(lineside_camera_verdicts_total{{{CAMERA}}}{RATE}))",
                "{{camera}} {{verdict}}",
            ),
            stacked=True,
        ),
        graph(
            "Runs of fails",
            "How often one part after the other of a camera failed, in five minutes (fail_run)",
            units.NoUnit,
            (
                "sum by (instance, camera)"
                f" (increase(lineside_camera_fail_runs_total{{{CAMERA}}}[5m]))",
                "{{camera}} {{instance}}",
            ),
        ),
        bars(
            "Share of unsure frames",
            "Over 15 minutes, of each camera's verdicts",
            units.PercentUnit,
            (
                "max by (instance, camera)"
                f" (instance_camera:lineside_camera_unsure:ratio_rate15m{{{CAMERA}}})",
                "{{camera}} {{instance}}",
            ),
            {"yellow": 0.05, "red": 0.2},
        ),
        graph(
            "Drift by camera",
            "Distance of a camera's recent frames from the baseline in the bundle, by signal",
            units.NoUnit,
            (
                f"max by (instance, camera, signal) (lineside_camera_drift_ratio{{{CAMERA}}})",
                "{{camera}} {{signal}} {{instance}}",
            ),
            limit=0.2,
        ),
        graph(
            "Problems of pictures",
            "Frames a second whose picture has a problem; their verdict is unsure",
            units.CountsPerSecond,
            (
                "sum by (camera, problem)"
                f" (rate(lineside_camera_image_problems_total{{{CAMERA}}}{RATE}))",
                "{{camera}} {{problem}}",
            ),
        ),
        bars(
            "Share of frames that fail",
            "Over five minutes, of each camera; an alert fires if no frame gets labels",
            units.PercentUnit,
            (
                "max by (instance, camera)"
                f" (instance_camera:lineside_camera_failed:ratio_rate5m{{{CAMERA}}})",
                "{{camera}} {{instance}}",
            ),
            {"yellow": 0.05, "red": 0.999},
        ),
        bars(
            "Since the last frame",
            "Time since the newest frame of each camera, by the device's clock",
            units.Seconds,
            (
                "time() - max by (instance, camera)"
                f" (lineside_camera_last_frame_timestamp_seconds{{{CAMERA}}})",
                "{{camera}} {{instance}}",
            ),
            {"yellow": 60, "red": 600},
        ),
    ]


def _read_cameras() -> list[Panel]:
    return [
        graph(
            "Cameras connected",
            "1 while a camera that the server reads gives frames",
            units.NoUnit,
            (f"lineside_camera_connected{{{CAMERA}}}", "{{camera}} {{instance}}"),
        ),
        graph(
            "Age of the newest frame",
            "Time since the newest frame that was taken from a camera was captured",
            units.Seconds,
            (f"lineside_camera_frame_age_seconds{{{CAMERA}}}", "{{camera}} {{instance}}"),
        ),
        graph(
            "Triggers",
            "Triggers a second of cameras that the server reads, by result",
            units.CountsPerSecond,
            (
                f"sum by (camera, result) (rate(lineside_camera_triggers_total{{{CAMERA}}}{RATE}))",
                "{{camera}} {{result}}",
            ),
        ),
        graph(
            "Triggers connected",
            "1 while the source of a trigger (broker, PLC, GPIO chip) is there",
            units.NoUnit,
            (f"lineside_trigger_connected{{{HERE}}}", "{{trigger}} {{instance}}"),
        ),
    ]


def _outputs() -> list[Panel]:
    return [
        graph(
            "Votes by verdict",
            "Votes over several frames that ended, a second, by their verdict",
            units.CountsPerSecond,
            (
                f"sum by (vote, verdict) (rate(lineside_votes_total{{{HERE}}}{RATE}))",
                "{{vote}} {{verdict}}",
            ),
        ),
        graph(
            "Messages by result",
            "Messages a second of each output: delivered, tries that failed, dropped, expired",
            units.CountsPerSecond,
            (
                f"sum by (output, result) (rate(lineside_output_messages_total{{{HERE}}}{RATE}))",
                "{{output}} {{result}}",
            ),
        ),
        graph(
            "Messages waiting",
            "Messages that the other side of an output does not have yet",
            units.NoUnit,
            (f"lineside_output_waiting{{{HERE}}}", "{{output}} {{instance}}"),
        ),
        graph(
            "Outputs connected",
            "1 while the other side of an output is there",
            units.NoUnit,
            (f"lineside_output_connected{{{HERE}}}", "{{output}} {{instance}}"),
        ),
    ]


def line() -> Dashboard:
    """Make the dashboard for the operator on shift and the engineer of the model."""
    return board(
        "lineside-line",
        "Lineside line",
        "Frames of the cameras, their labels, and the refused ones",
        ("instance", "model", "camera"),
        {
            "Now": [*_health(), *_now()],
            "Results": [*_labels(), *_without_labels()],
            "Confidence": _confidence(),
            "Cameras": _cameras(),
            "Cameras that the server reads": _read_cameras(),
            "Votes and outputs": _outputs(),
        },
    )
