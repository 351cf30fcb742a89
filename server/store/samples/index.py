"""The index of a folder of samples, in memory: to filter them, and to choose which go first."""

import msgspec

from server.recognition.sample import SUFFIXES, Reason, Sample

# Most file systems give files disk in multiples of this.
BLOCK_BYTES = 4096


def on_disk(size: int) -> int:
    """Returns the bytes of disk that a file of `size` bytes takes."""
    return -(-size // BLOCK_BYTES) * BLOCK_BYTES


class Filter(msgspec.Struct, frozen=True, kw_only=True):
    """The samples that are wanted; a field that is None admits all.

    predicted: the most probable label. label: what a person said. labelled: whether one has.
    request_id: of the request that it came with.
    """

    reason: Reason | None = None
    model: str | None = None
    camera: str | None = None
    predicted: str | None = None
    label: str | None = None
    labelled: bool | None = None
    request_id: str | None = None


class Entry(msgspec.Struct, frozen=True):
    """A sample in the index. size: bytes of disk that its two files take."""

    size: int
    suffix: str
    reason: Reason
    model: str
    camera: str | None
    predicted: str
    label: str | None
    request_id: str

    @property
    def labelled(self) -> bool:
        return self.label is not None

    def passes(self, wanted: Filter) -> bool:
        return all(
            getattr(wanted, name) in (None, getattr(self, name))
            for name in Filter.__struct_fields__
        )


class SampleIndex:
    """Samples by ID, oldest first. Not for several threads at once.

    bytes: of disk that they take together. labelled: how many a person has labelled. last: the
    highest number of an ID.
    """

    def __init__(self) -> None:
        self.bytes = self.labelled = self.last = 0
        self._entries: dict[str, Entry] = {}
        self._digests: set[str] = set()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def __getitem__(self, name: str) -> Entry:
        return self._entries[name]

    def holds(self, digest: str) -> bool:
        """Returns whether a sample's ID ends in `digest`."""
        return digest in self._digests

    def enter(self, sample: Sample, json_size: int) -> None:
        """Adds a sample, newer than all others, whose ID.json has `json_size` bytes; or changes
        the one of its ID, in its place."""
        if (old := self._entries.get(sample.id)) is not None:
            self._count(old, -1)
        entry = Entry(
            on_disk(sample.bytes) + on_disk(json_size),
            SUFFIXES[sample.image],
            sample.reason,
            sample.model,
            sample.camera,
            sample.best.label if sample.best else "",
            sample.label,
            sample.request_id,
        )
        self._entries[sample.id] = entry
        self._count(entry, 1)
        number, _, digest = sample.id.partition("-")
        self._digests.add(digest)
        self.last = max(self.last, int(number))

    def forget(self, name: str) -> None:
        self._count(self._entries.pop(name), -1)
        self._digests.discard(name.partition("-")[2])

    def _count(self, entry: Entry, sign: int) -> None:
        self.bytes += sign * entry.size
        self.labelled += sign * entry.labelled

    def labels(self) -> dict[str, dict[str, int]]:
        """Returns how many samples a person gave each label, by model and label."""
        counts: dict[str, dict[str, int]] = {}
        for entry in self._entries.values():
            if entry.label is not None:
                of_model = counts.setdefault(entry.model, {})
                of_model[entry.label] = of_model.get(entry.label, 0) + 1
        return counts

    def next_out(self, spare: str = "") -> str | None:
        """Returns the sample that goes first if room is needed: the oldest without a label, since a
        label is a person's work; if all have one, the oldest. Never `spare`."""
        oldest = None
        for name, entry in self._entries.items():
            if name == spare:
                continue
            if entry.label is None:
                return name
            oldest = oldest or name
        return oldest

    def find(self, wanted: Filter, before: str = "") -> list[str]:
        """Returns the IDs that `wanted` admits, newest first; only those older than the ID
        `before`, if one is given."""
        return [
            name
            for name in reversed(self._entries)
            if (not before or name < before) and self._entries[name].passes(wanted)
        ]
