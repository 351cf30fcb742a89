"""The HTTP server's threads: what they may wait for, how many for each, and their sum.

A request keeps one thread from its first line to the end of its answer. So whatever a request may
wait for is bounded by a number here, and the server has at least as many threads as all of them
together. Beside them it has some for probes: `server.http.wsgi.Reserve` lets no other request have
those, so that a probe is answered even if all else waits.

| waits for | at most | refused beyond with |
|---|---|---|
| an interpreter: it works, or waits its turn | slots + max_waiting | 503 OVERLOADED |
| its body, or room for it in memory | MOST_READING | 503 OVERLOADED |
| the same frame in another request's hand | MOST_SHARING | (is worked on itself) |
| a model that is loaded for it | MOST_LOADING | 503 NOT_READY |
| the image at its image_url | MOST_FETCHING | 503 OVERLOADED |
| its client to take in a journal's file | MOST_EXPORTING | 503 OVERLOADED |
| files, locks, Redis: jobs, journal, samples, cache, changes of version | OTHERS | 503 OVERLOADED |
| nothing: probes | PROBES | |
"""

MOST_READING = 56
MOST_SHARING = 16
MOST_LOADING = 16
MOST_FETCHING = 4
MOST_EXPORTING = 4
# No kind of these is bounded by itself: all requests together are, by `most_requests`.
OTHERS = 16
PROBES = 8


def most_requests(slots: int, max_waiting: int) -> int:
    """Requests that are no probes and may have a thread at the same time; `slots` frames are worked
    on at once, `max_waiting` wait for that."""
    bounded = MOST_READING + MOST_SHARING + MOST_LOADING + MOST_FETCHING + MOST_EXPORTING
    return slots + max_waiting + bounded + OTHERS


def threads(slots: int, max_waiting: int) -> int:
    """Threads of the HTTP server. It starts them on demand and ends idle ones."""
    return most_requests(slots, max_waiting) + PROBES
