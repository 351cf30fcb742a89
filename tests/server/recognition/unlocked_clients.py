"""Eight threads on one interpreter, each with its own input; prints how many answers were wrong.

    python unlocked_clients.py MODEL locked|unlocked ROUNDS

MODEL is a `slow` of tiny_models. A process of its own, since memory that threads share without a
lock may end it.
"""

import sys
import threading
from contextlib import nullcontext
from pathlib import Path

import numpy as np
from ai_edge_litert.interpreter import Interpreter

THREADS = 8


def main(model: Path, locked: bool, rounds: int) -> int:
    """Wrong or failed answers; ends early once there are some."""
    interpreter = Interpreter(str(model), num_threads=1)
    interpreter.allocate_tensors()
    source = interpreter.get_input_details()[0]
    sink = interpreter.get_output_details()[0]["index"]
    lock = threading.Lock()
    guard = lock if locked else nullcontext()
    start = threading.Barrier(THREADS)
    wrong: list[str] = []

    def client(number: int) -> None:
        tensor = np.zeros(source["shape"], np.float32)
        tensor[..., number % 3] = 0.2 + 0.1 * number
        # What this client should see is learnt one at a time, so that only the rounds race.
        with lock:
            interpreter.set_tensor(source["index"], tensor)
            interpreter.invoke()
            expected = interpreter.get_tensor(sink)
        start.wait()
        for _ in range(rounds):
            if wrong:
                return
            try:
                with guard:
                    interpreter.set_tensor(source["index"], tensor)
                    interpreter.invoke()
                    answer = interpreter.get_tensor(sink)
            except RuntimeError as error:
                wrong.append(str(error))
                return
            if not np.array_equal(answer, expected):
                wrong.append("another client's answer")

    threads = [threading.Thread(target=client, args=(n,)) for n in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(wrong)


if __name__ == "__main__":
    print(main(Path(sys.argv[1]), sys.argv[2] == "locked", int(sys.argv[3])))
