"""Boxes of a frame's tiles -> boxes of the frame: an object that several tiles show is one.

Two boxes of one class from two tiles are of one object if they agree on the part of the frame that
both tiles show. So an object is put together whatever its size, also one that no tile shows whole.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from server.recognition.detection.outputs import CANDIDATES_MAX, Candidates, most_probable
from server.recognition.preprocessing import Placement

Boxes = NDArray[np.float64]
# In shares of a tile's side: a box that ends so near to an inner edge of its tile is cut by it.
EDGE_SHARE = 0.03
# Least intersection over the smaller box, in what both tiles show, of one object that is cut.
CUT_OVERLAP_MIN = 0.5


def merge_tiles(
    parts: Sequence[Candidates], placements: Sequence[Placement], iou_threshold: float
) -> Candidates:
    """Returns the objects of all tiles, with boxes in pixels of the frame, most probable first.

    parts: boxes of each tile in pixels of the model's input, no two of one object. iou_threshold:
    overlap above which boxes that no tile cuts are of one object. An object has the most probable
    box that no tile cuts, else the box about all its parts; its score is the highest of them.
    """
    together = Candidates(
        np.concatenate(
            [place.to_frame(part.boxes) for part, place in zip(parts, placements, strict=True)]
        ).astype(np.float32),
        np.concatenate([part.scores for part in parts]),
        np.concatenate([part.classes for part in parts]),
    )
    order = np.argsort(-together.scores, kind="stable")[:CANDIDATES_MAX]
    together = together.take(order)
    numbers = np.repeat(np.arange(len(parts)), [len(part.scores) for part in parts])[order]
    pieces = _Pieces(together.boxes, np.stack([place.part for place in placements]), numbers)
    left = np.ones(len(order), bool)
    boxes, first_ones = [], []
    # Whole boxes first, so that the parts of an object join its whole box.
    for first in np.argsort(pieces.cut, kind="stable"):
        if not left[first]:
            continue
        left[first] = False
        group, reached = [first], [first]
        while reached:
            others = np.flatnonzero(left & (together.classes == together.classes[first]))
            others = others[pieces.agree(reached.pop(), others, iou_threshold)]
            left[others] = False
            group += others.tolist()
            # Parts lead to further parts; a whole box needs none.
            reached += others.tolist() if pieces.cut[first] else []
        boxes.append(pieces.about(group) if pieces.cut[first] else pieces.boxes[first])
        together.scores[first] = together.scores[group].max()
        first_ones.append(first)
    if not boxes:
        return together
    merged = together.take(np.array(first_ones))._replace(boxes=np.stack(boxes).astype(np.float32))
    return most_probable(merged, len(boxes))


class _Pieces:
    """Boxes [n, 4] of objects in pixels of the frame, each with the tile [n, 4] that shows it.

    boxes: float64; `open` ones go on beyond the edges of their tile that `cut` them.
    """

    def __init__(self, boxes: NDArray[np.float32], tiles: Boxes, numbers: NDArray[np.intp]) -> None:
        """numbers: of each box's tile among `tiles`."""
        self.boxes = boxes.astype(np.float64)
        self.tiles, self.numbers = tiles[numbers], numbers
        self._near = EDGE_SHARE * (self.tiles[:, 2:] - self.tiles[:, :2])
        # The edges of all tiles together are no inner ones; tiles may differ by a pixel there.
        upper, lower = self.tiles[:, :2], self.tiles[:, 2:]
        first = upper > tiles[:, :2].min(axis=0, initial=np.inf) + self._near
        last = lower < tiles[:, 2:].max(axis=0, initial=-np.inf) - self._near
        cut_first = first & (self.boxes[:, :2] <= upper + self._near)
        cut_last = last & (self.boxes[:, 2:] >= lower - self._near)
        self.cut = (cut_first | cut_last).any(axis=1)
        self.open = self.boxes.copy()
        self.open[:, :2] -= 2 * self._near * cut_first
        self.open[:, 2:] += 2 * self._near * cut_last

    def agree(self, one: int, others: NDArray[np.intp], iou_threshold: float) -> NDArray[np.bool_]:
        """Returns which of `others` are of the object of the box `one`."""
        upper = np.maximum(self.tiles[others, :2], self.tiles[one, :2]) - self._near[one]
        lower = np.minimum(self.tiles[others, 2:], self.tiles[one, 2:]) + self._near[one]
        lower = np.maximum(lower, upper)
        mine, theirs = (
            (np.clip(part[..., :2], upper, lower), np.clip(part[..., 2:], upper, lower))
            for part in (self.open[one], self.open[others])
        )
        common = _area(np.maximum(mine[0], theirs[0]), np.minimum(mine[1], theirs[1]))
        areas = _area(*mine), _area(*theirs)
        same = np.where(
            self.cut[others] | self.cut[one],
            common >= CUT_OVERLAP_MIN * np.minimum(*areas),
            common > iou_threshold * (areas[0] + areas[1] - common),
        )
        other_tile = self.numbers[others] != self.numbers[one]
        return np.asarray(same & (common > 0) & other_tile)

    def about(self, group: Sequence[int]) -> Boxes:
        """Returns the box about the parts of an object. A tile's box may go beyond the tile: that
        is a guess, and another tile shows it."""
        if len(group) == 1:
            return np.asarray(self.boxes[group[0]])
        upper, lower = self.tiles[group, :2], self.tiles[group, 2:]
        first = np.clip(self.boxes[group, :2], upper, lower).min(axis=0)
        last = np.clip(self.boxes[group, 2:], upper, lower).max(axis=0)
        return np.concatenate([first, last])


def _area(upper: Boxes, lower: Boxes) -> NDArray[np.float64]:
    return np.asarray(np.maximum(lower - upper, 0).prod(axis=1))
