"""One target in a process of its own, which may crash: by atheris, which looks for inputs that
reach new code, or by our own mutator.

Imports nothing of the server at its top, since atheris marks what is imported after it.
"""

import faulthandler
import importlib
import json
import math
import mmap
import os
import random
import resource
import struct
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fuzz.target import Target

ROOT = Path(__file__).resolve().parents[2]
# The state that the parent sees whatever happens: inputs begun, peak MB, bytes of the input in
# hand, and the input.
HEAD = struct.Struct("<QQQ")
INPUT_BYTES_MAX = 1 << 20
STATE_BYTES = HEAD.size + INPUT_BYTES_MAX
# libFuzzer's own limits are out of reach: the parent sees what takes too long or too much. With a
# time-out of 0, atheris would end a process that stalls for a second.
NUMBER_MAX = 2**31 - 1
LIBFUZZER = ("-timeout=3600", "-rss_limit_mb=0", "-detect_leaks=0", "-print_final_stats=0")


class Runner:
    """Gives inputs to a target and reports findings, a line of JSON each, one for each place in the
    code."""

    def __init__(self, target: "Target", state: mmap.mmap, report: Callable[[str], object]) -> None:
        self._target = target
        self._state = state
        self._report = report
        self._seen: set[str] = set()
        self._count = 0
        self._first_mb = self._peak_mb = _peak_mb()

    def run(self, data: bytes) -> None:
        """Give one input to the target. Raises nothing."""
        from fuzz.target import SECONDS_MAX

        target = self._target
        data = target.repair(data[: target.size_max])
        self._count += 1
        self._state[HEAD.size : HEAD.size + len(data)] = data
        self._note(len(data))
        began = time.process_time()
        try:
            target.run(data)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is reported
            if not target.is_refusal(error):
                self._found(f"raised {type(error).__name__}", _place(error), str(error)[:300], data)
        took, peak = time.process_time() - began, _peak_mb()
        if took > SECONDS_MAX:
            self._found("slow", "", f"{took:.1f} s", data)
        if peak - self._peak_mb > target.memory_mb:
            self._found("memory", "", f"{peak - self._peak_mb} MB more", data)
        if peak > self._peak_mb:
            self._peak_mb = peak
            self._note(len(data))

    def _note(self, size: int) -> None:
        HEAD.pack_into(self._state, 0, self._count, self._peak_mb - self._first_mb, size)

    def _found(self, fault: str, place: str, detail: str, data: bytes) -> None:
        if f"{fault} {place}" in self._seen:
            return
        self._seen.add(f"{fault} {place}")
        finding = {"fault": fault, "place": place, "detail": detail, "input": data.hex()}
        self._report(json.dumps(finding))


def _peak_mb() -> int:
    # Not ru_maxrss, which a program inherits from the process that started it.
    status = Path("/proc/self/status").read_text("utf-8", "replace")
    return int(status.partition("VmHWM:")[2].split(maxsplit=1)[0]) >> 10


def _place(error: Exception) -> str:
    """Return the innermost line of the project's own code that raised, as FILE:LINE."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [each for each in frames if Path(each.filename).is_relative_to(ROOT)]
    last = next((each for each in reversed(own) if ".venv" not in each.filename), frames[-1])
    return f"{Path(last.filename).name}:{last.lineno}"


def load(group: str, name: str) -> "Target":
    """Return the target `name` of the module `group`."""
    made: tuple[Target, ...] = importlib.import_module(group).targets()
    return next(target for target in made if target.name == name)


def main() -> None:
    """Run as `python -m fuzz.child` with a JSON object as its argument: group, name, engine,
    inputs, seconds, seed, folder. Findings go to standard output."""
    ask = json.loads(sys.argv[1])
    folder = Path(ask["folder"])
    out = os.fdopen(os.dup(1), "w", buffering=1)
    log = (folder / "log").open("wb")
    # What libraries print is no finding.
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    faulthandler.enable(log)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warnings.simplefilter("ignore")
    with (folder / "state").open("r+b") as file:
        state = mmap.mmap(file.fileno(), STATE_BYTES)
    if ask["engine"] == "atheris":
        _by_atheris(ask, folder, state, lambda line: print(line, file=out))
    else:
        _by_mutator(ask, state, lambda line: print(line, file=out))


def _by_mutator(ask: dict[str, Any], state: mmap.mmap, report: Callable[[str], object]) -> None:
    from fuzz.mutation import Mutator

    target = load(ask["group"], ask["name"])
    rng = random.Random(f"{ask['name']} {ask['seed']}")
    mutator = Mutator(rng, target.seeds, target.words, target.size_max)
    runner = Runner(target, state, report)
    for seed in target.seeds if ask["first"] else ():
        runner.run(seed)
    until = time.monotonic() + ask["seconds"]
    for _ in range(ask["inputs"]):
        runner.run(mutator.draw())
        if time.monotonic() > until:
            return


def _by_atheris(
    ask: dict[str, Any], folder: Path, state: mmap.mmap, report: Callable[[str], object]
) -> None:
    import atheris

    with atheris.instrument_imports(include=["server", "convert"]):
        target = load(ask["group"], ask["name"])
    corpus = folder / "corpus"
    corpus.mkdir(exist_ok=True)
    for number, seed in enumerate(target.seeds):
        (corpus / f"seed-{number}").write_bytes(seed)
    words = (
        '"' + "".join(f"\\x{octet:02x}" for octet in word) + '"'
        for word in target.words
        if 0 < len(word) <= 64
    )
    (folder / "words").write_text("\n".join(words) + "\n")
    runner = Runner(target, state, report)
    options = [
        # 0 would be no limit.
        f"-runs={min(ask['inputs'], NUMBER_MAX)}",
        f"-max_total_time={min(max(1, math.ceil(ask['seconds'])), NUMBER_MAX)}",
        *(f"-seed={ask['seed'] % NUMBER_MAX or 1}", f"-max_len={target.size_max}"),
        *(f"-dict={folder / 'words'}", f"-artifact_prefix={folder}/"),
    ]
    atheris.Setup(["fuzz", *options, *LIBFUZZER, str(corpus)], runner.run)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
