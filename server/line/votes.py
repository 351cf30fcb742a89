"""Votes: one verdict for several frames of a part, or of a camera, if one frame is not trusted.

A vote ends with its last frame, by its time-out, as the oldest of too many, or with the server.
Each has exactly one verdict; without all frames it is `unsure`. Votes are in memory only: after
kill -9 there is no verdict of those that were open, and further frames of their parts begin votes
that time out.
"""

import logging
import math
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence

import msgspec

from server.config.products import Rule, VoteTable
from server.line.outputs.messages import Event, of_answer, of_refusal
from server.recognition.answers import Answer, FrameAnswered, FrameRefused, RefusalListener, Vote
from server.recognition.tasks.task import find_task

logger = logging.getLogger(__name__)

# Votes that may be open at once, and results of parts that are remembered for late frames.
OPEN_VOTES_MAX, RESULTS_MAX = 1000, 1000
# Seconds for which the result of a part's vote holds for its late frames.
RESULT_LIFETIME_S = 60.0


class Key(msgspec.Struct, frozen=True):
    """The key that frames share that vote together. is_part: `name` is a part's, else a camera's.
    Parts of two products, or batches, may have the same name."""

    table: str
    is_part: bool
    name: str
    product: str
    batch: str


class Ballot(msgspec.Struct, frozen=True):
    """One frame of a vote. verdict: `unsure` of a frame that was refused, failed or not judged.
    quality: by which the rule `best` chooses; None if the frame has no labels. event: what the
    outputs would have got of it. sharpness: in relation to the usual, None if it is not measured.
    healthy: its picture has no problem."""

    verdict: str
    quality: float | None
    event: Event
    sharpness: float | None = None
    healthy: bool = True


class _OpenVote(msgspec.Struct):
    """One vote. ends: its time-out, in seconds of the clock; gap: the latest moment of its next
    frame."""

    table: VoteTable
    ends: float
    ballots: list[Ballot]
    gap: float = math.inf

    @property
    def due(self) -> float:
        return min(self.ends, self.gap)


class _Ended(msgspec.Struct, frozen=True):
    key: Key
    result: Vote
    ballots: Sequence[Ballot]


def decide(rule: Rule, ballots: Sequence[Ballot]) -> tuple[str, str]:
    """Return the verdict of all frames of a part, and the reason."""
    verdicts = Counter(ballot.verdict for ballot in ballots)
    passed, failed = verdicts["pass"], verdicts["fail"]
    if rule == "majority":
        for verdict in ("fail", "pass"):
            if 2 * verdicts[verdict] > len(ballots):
                return verdict, "majority"
        return "unsure", "no_majority"
    if rule == "all":
        if passed == len(ballots):
            return "pass", "all_passed"
        return ("fail" if failed else "unsure"), "not_all_passed"
    if rule == "any":
        if passed:
            return "pass", "one_passed"
        return ("fail" if failed == len(ballots) else "unsure"), "none_passed"
    best = _best_of([ballot for ballot in ballots if ballot.quality is not None])
    return (best.verdict, "best") if best else ("unsure", "none_judged")


def _best_of(judged: Sequence[Ballot]) -> Ballot | None:
    """Return the best of frames with a quality: the sharpest if the sharpness of all is known, else
    the one of the highest quality. One whose picture has a problem is not better than one without,
    one that is sharper than usual not than one as sharp as that; of equals the worst verdict
    counts."""
    measured = all(ballot.sharpness is not None for ballot in judged)
    severity = {"pass": 0, "unsure": 1, "fail": 2}

    def rank(ballot: Ballot) -> tuple[bool, float, float, int]:
        sharpness = min(ballot.sharpness or 0.0, 1.0) if measured else 0.0
        return ballot.healthy, sharpness, ballot.quality or 0.0, severity[ballot.verdict]

    return max(judged, key=rank, default=None)


def quality_of(answer: Answer) -> float:
    """Return the familiarity of a frame if its model says it, else the best label's probability."""
    familiarity = find_task(answer.task).answer_fields(answer).get("familiarity")
    return familiarity if isinstance(familiarity, float) else answer.probability


class Votes:
    """The votes of `tables`. For any thread; `_changed` guards `_open`, the oldest first,
    `_results`, the results of parts with their time, and `_closed`. The callbacks are called
    without it."""

    def __init__(
        self,
        tables: Sequence[VoteTable],
        on_result: Callable[[Event], object],
        on_refused: RefusalListener,
        on_row: RefusalListener,
        count: Callable[[str, str], object] = lambda *_: None,
        *,
        open_max: int = OPEN_VOTES_MAX,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Set up without the thread that ends votes by their time-outs.

        Args:
            on_result: called once for each vote, with its verdict.
            on_refused: called with refused frames that belong to no vote.
            on_row: called with each refused frame, with the vote that it ended, and with each vote
                that ended without all of its frames.
            count: called with the table's name and the verdict of each vote.
        """
        self._tables = tables
        self._on_result = on_result
        self._on_refused = on_refused
        self._on_row = on_row
        self._count = count
        self._open_max = open_max
        self._clock = clock
        self._changed = threading.Condition()
        self._open: OrderedDict[Key, _OpenVote] = OrderedDict()
        self._results: OrderedDict[Key, tuple[float, Vote]] = OrderedDict()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="votes", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def answered(self, frame: FrameAnswered) -> Vote | None:
        """Count a frame. Return the state of its vote; None if it belongs to none."""
        options, answer = frame.options, frame.answer
        table = self._table_of(options.camera, options.product)
        if table is None:
            return None
        quality = quality_of(answer) if answer.best else None
        health = answer.health
        ballot = Ballot(
            answer.verdict or "unsure",
            quality,
            of_answer(frame),
            health.sharpness if health else None,
            health.ok if health else True,
        )
        part, camera = options.part, options.camera
        key = Key(table.name, bool(part), part or camera, options.product, options.batch)
        if not key.name:
            # Frames of nobody knows which parts must not vote together.
            result = Vote("unsure", "no_name", 1, table.frames, final=True)
            self._report([_Ended(key, result, [ballot])])
            return result
        return self._add(table, key, ballot)

    def refused(self, frame: FrameRefused) -> None:
        """Count a frame that was refused or failed as `unsure`; pass it on to the outputs if it
        belongs to no vote, or its sender may be a stranger."""
        vote = self._count_refused(frame)
        self._on_row(msgspec.structs.replace(frame, vote=vote) if vote and vote.final else frame)

    def _count_refused(self, frame: FrameRefused) -> Vote | None:
        name, is_part = frame.part or frame.camera, bool(frame.part)
        key = self._open_of(is_part, name) if not frame.product else None
        table = next((each for each in self._tables if key and each.name == key.table), None)
        table = table or self._table_of(
            frame.camera, frame.product, product_known=bool(frame.product)
        )
        if table is None or not frame.let_in or not name:
            self._on_refused(frame)
            return None
        key = key or Key(table.name, is_part, name, frame.product, frame.batch)
        return self._add(table, key, Ballot("unsure", None, of_refusal(frame)))

    def _open_of(self, is_part: bool, name: str) -> Key | None:
        """Return the newest open vote of a part or camera, for a frame that was refused before its
        product was known."""
        with self._changed:
            keys = [key for key in self._open if (key.is_part, key.name) == (is_part, name)]
        return keys[-1] if keys else None

    def _table_of(
        self, camera: str, product: str, *, product_known: bool = True
    ) -> VoteTable | None:
        for table in self._tables:
            of_product = not table.products or product in table.products or not product_known
            if of_product and (not table.cameras or camera in table.cameras):
                return table
        return None

    def _add(self, table: VoteTable, key: Key, ballot: Ballot) -> Vote:
        now = self._clock()
        ended: list[_Ended] = []
        with self._changed:
            vote = self._open.get(key)
            if vote is not None and vote.due <= now:
                # The thread that ends votes was held up; this frame is too late for it.
                ended.append(self._end(key, now, "vote_timeout"))
                vote = None
            at, result = self._results.get(key, (0.0, None))
            late = result is not None and now - at < RESULT_LIFETIME_S
        if late and result is not None:
            self._report(ended)
            return result
        state = self._vote(table, key, ballot, now, ended)
        self._report(ended)
        return state

    def _vote(
        self, table: VoteTable, key: Key, ballot: Ballot, now: float, ended: list[_Ended]
    ) -> Vote:
        """Count a ballot. Return the state of its vote, or its result; add those that ended to
        `ended`."""
        with self._changed:
            before = len(ended)
            vote = self._open.get(key)
            if vote is None:
                vote = self._open[key] = _OpenVote(table, now + table.timeout_s, [])
                self._changed.notify_all()
            vote.ballots.append(ballot)
            if table.gap_s and not key.is_part:
                vote.gap = now + table.gap_s
                self._changed.notify_all()
            state = Vote("unsure", "vote_open", len(vote.ballots), table.frames, final=False)
            if self._closed:
                ended.append(self._end(key, now, "server_stopped"))
            elif len(vote.ballots) == table.frames:
                ended.append(self._end(key, now))
            elif len(self._open) > self._open_max:
                ended.append(self._end(next(iter(self._open)), now, "too_many_votes"))
        return next((each.result for each in ended[before:] if each.key == key), state)

    def _end(self, key: Key, now: float, incomplete: str = "") -> _Ended:
        """End a vote. incomplete: why it has not all of its frames. The caller holds the lock."""
        vote = self._open.pop(key)
        table, ballots = vote.table, vote.ballots
        verdict, reason = ("unsure", incomplete) if incomplete else decide(table.rule, ballots)
        result = Vote(verdict, reason, len(ballots), table.frames, final=True)
        if key.is_part:
            self._results[key] = now, result
            self._results.move_to_end(key)
            if len(self._results) > RESULTS_MAX:
                self._results.popitem(last=False)
        return _Ended(key, result, ballots)

    def _report(self, ended: Sequence[_Ended]) -> None:
        for each in ended:
            result, events = each.result, [ballot.event for ballot in each.ballots]
            agreeing = [b.event for b in each.ballots if b.verdict == result.verdict]
            event = agreeing[-1] if agreeing else events[-1]
            # A frame may have been refused before its model was known.
            known = event if event.model else next((e for e in events if e.model), event)
            event = msgspec.structs.replace(
                event,
                model=known.model,
                version=known.version,
                product=event.product or known.product,
                at=time.time(),
                # Who asked for the last frame waits for this result.
                request_id=events[-1].request_id,
                trace=events[-1].trace,
                verdict=result.verdict,
                reason=result.reason,
                error=None,
            )
            self._count(each.key.table, result.verdict)
            if result.frames < result.of:
                self._report_incomplete(event, result)
            self._on_result(event)

    def _report_incomplete(self, event: Event, result: Vote) -> None:
        self._on_row(
            FrameRefused(
                at=event.at,
                request_id=event.request_id,
                status=503,
                code=result.reason.upper(),
                model=event.model,
                version=event.version,
                camera=event.camera,
                part=event.part,
                product=event.product,
                batch=event.batch,
                reason=f"the vote is unsure: it has {result.frames} of {result.of} frames",
                let_in=True,
                trace=event.trace,
                vote=result,
            )
        )

    def end_due(self, now: float) -> None:
        """End the votes whose time is over at `now`."""
        with self._changed:
            due = [key for key, vote in self._open.items() if vote.due <= now]
            ended = [self._end(key, now, "vote_timeout") for key in due]
        self._report(ended)

    def _run(self) -> None:
        while not self._closed:
            try:
                self.end_due(self._clock())
            except Exception:
                # Else no vote would time out any more.
                logger.exception("votes could not be ended")
            with self._changed:
                due = min((vote.due for vote in self._open.values()), default=None)
                if not self._closed:
                    self._changed.wait(None if due is None else max(0.0, due - self._clock()))

    def close(self) -> None:
        """End the votes that are open, as `unsure`, and each later one at once."""
        with self._changed:
            self._closed = True
            now = self._clock()
            ended = [self._end(key, now, "server_stopped") for key in list(self._open)]
            self._changed.notify_all()
        self._report(ended)
        if self._thread.ident is not None:
            self._thread.join()
