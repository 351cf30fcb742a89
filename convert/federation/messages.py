"""The messages of a federation as Flower has them: their records, and how they are sent."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from convert.errors import ConvertError

# Names of records, and of the count by which an average is weighted.
ARRAYS, CONFIG, METRICS, EXAMPLES = "arrays", "config", "metrics", "num-examples"


def answers_of(replies: Iterable[Any], names: Mapping[int, str]) -> dict[int, Any]:
    """Return each site's answer by its number, in their order.

    Raises ConvertError if one is missing or says that it failed.
    """
    found = {reply.metadata.src_node_id: reply for reply in replies}
    for node, name in names.items():
        reply = found.get(node)
        if reply is None:
            raise ConvertError(f"the site {name} did not answer")
        if reply.has_error():
            raise ConvertError(f"the site {name} failed: {reply.error.reason}")
    return {node: found[node].content for node in sorted(names)}


def ask(
    grid: Any, nodes: Iterable[int], kind: str, timeout: float | None = None, **records: Any
) -> list[Any]:
    """Send one message to each site and return the replies that came within `timeout` seconds;
    None waits as long as the sites are there. records: by their names."""
    content = RecordDict(records)
    messages = [Message(content=content, message_type=kind, dst_node_id=node) for node in nodes]
    return list(grid.send_and_receive(messages, timeout=timeout))


def arrays_record(arrays: Iterable[Any]) -> Any:
    """Return an ArrayRecord whose names are the arrays' places."""
    return ArrayRecord({str(place): Array(np.asarray(a)) for place, a in enumerate(arrays)})


def vector_of(content: Any) -> Any:
    """Return the only array of a message's record of arrays.

    Raises ConvertError if there is none, or several.
    """
    arrays = content.array_records[ARRAYS].to_numpy_ndarrays() if ARRAYS in content else []
    if len(arrays) != 1:
        raise ConvertError(f"a message has {len(arrays)} arrays instead of one")
    return arrays[0]


def config_record(**values: Any) -> Any:
    """Return a ConfigRecord."""
    return ConfigRecord(values)
