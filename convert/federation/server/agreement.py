"""Agree on the classes of all sites, before the training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from convert.data.dataset import fits_a_line
from convert.data.labels import similar_classes
from convert.errors import ConvertError

# To train on, over all sites.
MIN_FRAMES = 2


@dataclass(frozen=True, slots=True)
class SiteFrames:
    """Counts the frames of each class that a site says it trains on and holds back."""

    name: str
    trained: Mapping[str, int]
    held: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Agreement:
    """The classes of all sites in output order, and the frames of each that are trained on."""

    classes: tuple[str, ...]
    counts: tuple[int, ...]


def agree(sites: Sequence[SiteFrames], *, allow_similar: bool = False) -> Agreement:
    """Return the classes that the sites have together, sorted by name.

    allow_similar: names such as good and Good are two classes.

    Raises ConvertError for names and counts that can't be, two sites of one name, fewer than two
    classes, a class with fewer than MIN_FRAMES frames to train on or with none held back, and names
    that look like one class.
    """
    for site in sites:
        said = (*site.trained, *site.held)
        counts = (*site.trained.values(), *site.held.values())
        if not all(map(fits_a_line, (site.name, *said))) or min(counts, default=0) < 0:
            raise ConvertError(
                f"the site {site.name!r} sent names or counts that can't be: {said!r}"
            )
    names = [site.name for site in sites]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConvertError(f"two sites are called {', '.join(twice)}: give each its own by --site")
    classes = sorted({name for site in sites for name in (*site.trained, *site.held)})
    trained = {name: sum(site.trained.get(name, 0) for site in sites) for name in classes}
    held = {name: sum(site.held.get(name, 0) for site in sites) for name in classes}
    problems = []
    if len(classes) < 2:
        problems.append("the sites have one class together: a classifier needs at least two")
    for name in classes:
        if trained[name] < MIN_FRAMES:
            problems.append(
                f"class {name} has {trained[name]} frames to train on at all sites together: at"
                f" least {MIN_FRAMES} are needed"
            )
        if not held[name]:
            problems.append(f"class {name} has no frame that a site holds back to judge by")
    if not allow_similar:
        problems += [
            f"{one!r} ({_owners(one, sites)}) and {other!r} ({_owners(other, sites)}) look like one"
            " class: rename one of them, or give --allow-similar-classes"
            for one, other in similar_classes(trained)
        ]
    if problems:
        raise ConvertError("The sites don't fit together:\n" + "\n".join(problems))
    return Agreement(tuple(classes), tuple(trained.values()))


def _owners(name: str, sites: Sequence[SiteFrames]) -> str:
    return ", ".join(site.name for site in sites if name in site.trained or name in site.held)
