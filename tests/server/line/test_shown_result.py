"""The result that a server shows: an acknowledgement counts for that result alone."""

from server.line.outputs.server_thread import ShownResult


def test_late_acknowledgement_counts_for_no_other() -> None:
    shown = ShownResult()
    shown.acknowledge(lambda _: True)
    assert not shown.await_taken(0)
    shown.show(1)
    shown.acknowledge(lambda seq: seq == 1)
    assert shown.await_taken(0)
    cleared: list[int] = []
    shown.show(2, lambda: cleared.append(0))
    shown.acknowledge(lambda seq: seq == 1, lambda: cleared.append(1))
    assert not shown.await_taken(0)
    shown.acknowledge(lambda seq: seq == 2, lambda: cleared.append(2))
    assert shown.await_taken(0)
    assert cleared == [0, 2]
