"""The HTTP server's threads: what they may wait for, how many for each, and their sum.

A request keeps one thread from its first line to the end of its answer. So whatever a request may
wait for is bounded by a number here, and the server has at least as many threads as all of them
together. Beside them it has some for probes: `server.http.wsgi.Reserve` lets no other request have
those, so that a probe is answered even if all else waits.

| waits for | at most | refused beyond with |
|---|---|---|
| an interpreter: it works, or waits its turn | slots + max_waiting | 503 OVERLOADED |
| its body, or room for it in memory | READING_REQUESTS_MAX | 503 OVERLOADED |
| the same frame in another request's hand | SHARING_REQUESTS_MAX | (is worked on itself) |
| a model that is loaded for it | LOADING_REQUESTS_MAX | 503 NOT_READY |
| the image at its image_url | FETCHING_REQUESTS_MAX | 503 OVERLOADED |
| its answer as a picture, drawn by one thread | DRAWING_REQUESTS_MAX | 503 OVERLOADED |
| its client to take in a journal's file | EXPORTING_REQUESTS_MAX | 503 OVERLOADED |
| its client to take in the exported samples | SAMPLE_EXPORTS_MAX | 503 OVERLOADED |
| the next event of a stream for the console | EVENTS_REQUESTS_MAX | 503 OVERLOADED |
| an interpreter that no frame needs, to be explained | EXPLAINING_REQUESTS_MAX | 503 OVERLOADED |
| the same, to compare two versions | COMPARING_REQUESTS_MAX | 503 OVERLOADED |
| files, locks, Redis: jobs, rows, samples, models, cameras | OTHER_REQUESTS_MAX | 503 OVERLOADED |
| nothing: probes | PROBE_THREADS | |

A call over gRPC has a thread of the gRPC server's from its arrival to its answer. While it is
answered it counts as one of these requests too.

| waits for | at most | refused beyond with |
|---|---|---|
| an interpreter, by a call | slots + max_waiting | RESOURCE_EXHAUSTED |
| its message, a model, a probe's answer | OTHER_CALLS_MAX | RESOURCE_EXHAUSTED |
"""

READING_REQUESTS_MAX = 56
SHARING_REQUESTS_MAX = 16
LOADING_REQUESTS_MAX = 16
FETCHING_REQUESTS_MAX = 4
DRAWING_REQUESTS_MAX = 4
EXPORTING_REQUESTS_MAX = 4
SAMPLE_EXPORTS_MAX = 2
EVENTS_REQUESTS_MAX = 12
EXPLAINING_REQUESTS_MAX = 1
COMPARING_REQUESTS_MAX = 1
# No kind of these is bounded by itself: all requests together are, by `most_requests`.
OTHER_REQUESTS_MAX = 16
PROBE_THREADS = 8
OTHER_CALLS_MAX = 32


def most_requests(slots: int, max_waiting: int) -> int:
    """Return the number of requests, probes aside, that may have a thread at the same time: `slots`
    frames are worked on, `max_waiting` wait for that."""
    bounded = (
        READING_REQUESTS_MAX
        + SHARING_REQUESTS_MAX
        + LOADING_REQUESTS_MAX
        + FETCHING_REQUESTS_MAX
        + DRAWING_REQUESTS_MAX
        + EXPORTING_REQUESTS_MAX
        + SAMPLE_EXPORTS_MAX
        + EVENTS_REQUESTS_MAX
        + EXPLAINING_REQUESTS_MAX
        + COMPARING_REQUESTS_MAX
    )
    return slots + max_waiting + bounded + OTHER_REQUESTS_MAX


def threads(slots: int, max_waiting: int) -> int:
    """Return the number of threads of the HTTP server. It starts them on demand and ends idle
    ones."""
    return most_requests(slots, max_waiting) + PROBE_THREADS


def grpc_calls(slots: int, max_waiting: int) -> int:
    """Return the number of calls over gRPC at the same time, and of the threads that answer them.
    They are started on demand, and not ended."""
    return slots + max_waiting + OTHER_CALLS_MAX
