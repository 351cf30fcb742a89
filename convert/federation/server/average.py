"""Flower's FedAvg with momentum, for few sites: all of them answer, and each answer is checked."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from flwr.app import MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvgM
from numpy.typing import NDArray

from convert.errors import ConvertError
from convert.federation.messages import (
    ARRAYS,
    CONFIG,
    EXAMPLES,
    METRICS,
    answers_of,
    arrays_record,
    vector_of,
)
from convert.federation.weights import check_update, rate_of_round


class SiteAverage(FedAvgM):
    """The average of all sites' weights, each by its frames to train on.

    names: of the sites by Flower's number of them. frames: that each said it trains on. fixed:
    which values no site trains, [values]; they come back from the average bit by bit as they were.
    peak: highest learning rate. momentum: share of the last change of the average that is added to
    the next, 0 for none.
    """

    def __init__(
        self,
        names: Mapping[int, str],
        frames: Mapping[int, int],
        fixed: NDArray[np.bool_],
        peak: float,
        rounds: int,
        momentum: float,
        say: Callable[[str], None],
    ) -> None:
        super().__init__(
            fraction_evaluate=0.0,
            min_train_nodes=len(names),
            min_available_nodes=len(names),
            server_momentum=momentum,
        )
        self.names, self.frames, self.fixed, self.say = dict(names), dict(frames), fixed, say
        self.peak, self.rounds = peak, rounds
        self.sent = np.zeros(0, np.float32)

    def configure_train(
        self, server_round: int, arrays: Any, config: Any, grid: Any
    ) -> Iterable[Any]:
        """Send the weights and this round's rate to every site of the federation."""
        config["rate"] = rate_of_round(self.peak, server_round, self.rounds)
        config["round"] = server_round
        record = RecordDict({ARRAYS: arrays, CONFIG: config})
        self.sent = vector_of(record)
        # FedAvgM adds to it what the sites change.
        self.current_arrays = arrays
        messages: Iterable[Any] = self._construct_messages(record, sorted(self.names), "train")
        return messages

    def aggregate_train(self, server_round: int, replies: Iterable[Any]) -> tuple[Any, Any]:
        """Return the average and the sums of the sites' figures.

        Raises ConvertError if a site did not answer, or sent what can't be averaged.
        """
        replies = list(replies)
        answers = answers_of(replies, self.names)
        for node, content in answers.items():
            check_update(self.names[node], self.sent, vector_of(content))
            count = int(content.metric_records[METRICS][EXAMPLES])
            if count != self.frames[node]:
                raise ConvertError(
                    f"the site {self.names[node]} says that it trains on {count} frames, and said"
                    f" {self.frames[node]} before"
                )
        average, _ = super().aggregate_train(server_round, replies)
        [values] = average.to_numpy_ndarrays()
        kept = np.where(self.fixed, self.sent, values.astype(np.float32))
        if not np.isfinite(kept).all():
            raise ConvertError("the average of what the sites sent is not finite")
        figures = [content.metric_records[METRICS] for content in answers.values()]
        right, frames = (sum(int(f[name]) for f in figures) for name in ("right", "held"))
        self.say(
            f"round {server_round} of {self.rounds}: the average before it names"
            f" {right} of {frames} held-back frames right ({right / max(frames, 1):.2%})"
        )
        return arrays_record([kept]), MetricRecord({"right": right, "held": frames})
