"""Measures if `convert check` finds wrong labels: some are planted in a folder that is right.

    python scripts/wrong_labels.py FOLDER [--planted 20] [--listed 40] [--seeds 5]

FOLDER: labelled photographs, one sub-folder a class. For each seed so many frames, chosen at
random, get another class at random. Prints how many of them are among the frames that are listed
first, and how many are listed at all.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from convert.data.dataset import read_dataset
from convert.folder_check.checking import check_recipe
from convert.folder_check.features import read_features
from convert.folder_check.judge import Features, Indices, suspected


def planted_labels(
    labels: Indices, classes: int, count: int, seed: int
) -> tuple[Indices, set[int]]:
    """Return the labels, `count` of them changed, and the indices of those."""
    rng = np.random.default_rng(seed)
    chosen = rng.choice(len(labels), count, replace=False)
    out = labels.copy()
    for place in chosen:
        out[place] = rng.choice([c for c in range(classes) if c != labels[place]])
    return out, {int(place) for place in chosen}


def count_found(
    features: Features, labels: Indices, classes: int, planted: set[int], listed: int
) -> tuple[int, int]:
    """Return how many of the planted frames are among the first `listed`, and in the whole list."""
    order = [each.frame for each in suspected(features, labels, classes)]
    return len(planted.intersection(order[:listed])), len(planted.intersection(order))


def main() -> int:
    """Run the measurement and return the exit code."""
    parser = argparse.ArgumentParser(description="how many wrong labels are found")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--planted", type=int, default=20)
    parser.add_argument("--listed", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    dataset = read_dataset(args.folder)
    features = read_features([item.path for item in dataset.frames], check_recipe())
    labels = np.array([item.label for item in dataset.frames], np.intp)
    classes = len(dataset.classes)
    print(
        f"{len(labels)} frames; {len(suspected(features, labels, classes))} are listed as they are"
    )
    for seed in range(args.seeds):
        changed, planted = planted_labels(labels, classes, args.planted, seed)
        first, found = count_found(features, changed, classes, planted, args.listed)
        print(
            f"seed {seed}: {first} of {args.planted} planted among the first {args.listed} listed,"
            f" {found} in the whole list"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
