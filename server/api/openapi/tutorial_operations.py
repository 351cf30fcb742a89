"""The operations of the source tutorials' routes."""

from typing import Any

from server.api.compat.tutorial_jobs import Task, TaskBody, TaskInfo, TaskStarted, TaskState
from server.api.compat.tutorials import (
    Classification,
    FeaturePrediction,
    ModelInfo,
    PredictBody,
    Predicted,
    Recent,
    RecognizedThree,
)
from server.api.openapi.operation import (
    FRAME_ERRORS,
    JSON,
    MULTIPART,
    Files,
    Operation,
    getting,
    posting,
)

TAG = "Tutorials"


def tutorial_operations() -> list[Operation]:
    """All of them."""
    return [*_at_once(), *_later()]


def _at_once() -> list[Operation]:
    return [
        posting(
            "/classify",
            TAG,
            "The five best labels",
            (Classification,),
            {MULTIPART: Files(("image",))},
        ),
        posting(
            "/api/recognize",
            TAG,
            "The three best labels",
            (RecognizedThree,),
            {MULTIPART: Files(("file",))},
        ),
        Operation(
            "post",
            "/predict",
            TAG,
            "The best label of `file`; `image` is answered later; a model's outputs for `input`;"
            " labels for `features`",
            {JSON: (Predicted, FeaturePrediction, dict[str, Any])},
            True,
            {MULTIPART: Files(("file", "image")), JSON: PredictBody},
            FRAME_ERRORS,
            True,
            (TaskStarted,),
        ),
        posting(
            "/api/recognize_cached",
            TAG,
            "The three best labels, kept for 60 seconds",
            (RecognizedThree,),
            {MULTIPART: Files(("file",))},
        ),
        Operation(
            "get",
            "/recent",
            TAG,
            "The kept answer that the request of this id got",
            {JSON: (RecognizedThree,)},
            errors=(400, 404),
            foreign=True,
            query=True,
            asks=Recent,
        ),
        getting("/api/model/info", TAG, "The default model", ModelInfo, 503, foreign=True),
    ]


def _later() -> list[Operation]:
    start = (
        ("/api/recognize_async", {MULTIPART: Files(("file",))}, Task),
        ("/start-task", {JSON: TaskBody}, TaskStarted),
    )
    ask = (("/results/{job}", TaskState), ("/task-status/{job}", TaskInfo))
    return [
        *(
            Operation(
                "post",
                path,
                TAG,
                "A frame to be answered later",
                {},
                True,
                bodies,
                FRAME_ERRORS,
                True,
                (answer,),
            )
            for path, bodies, answer in start
        ),
        *(
            getting(path, TAG, "How a task goes", answer, 404, 503, foreign=True)
            for path, answer in ask
        ),
    ]
