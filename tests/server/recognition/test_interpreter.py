"""interpreter: the lock, the pool's leases, and what is refused as a model."""

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from tiny_models import SIDE, MakeModel

from server.errors import BundleError
from server.recognition.engines.engine import Session
from server.recognition.engines.litert import Interpreter
from server.recognition.interpreter import InterpreterPool

CLIENTS = 8


def tensor(number: int) -> np.ndarray:
    made = np.zeros((1, SIDE, SIDE, 3), np.float32)
    made[..., number % 3] = 0.2 + 0.1 * number
    return made


def test_tensors_are_described(tiny_model: MakeModel) -> None:
    interpreter = Interpreter(tiny_model("int8"), 1)
    (given,), (answer,) = interpreter.inputs, interpreter.outputs
    assert (given.shape, given.dtype) == ((1, SIDE, SIDE, 3), "int8")
    assert (answer.shape, answer.dtype) == ((1, 3), "int8")
    # TensorFlow Lite's quantisation specification fixes softmax's output so.
    assert (answer.scale, answer.zero_point) == (1 / 256, -128)
    assert not Interpreter(tiny_model("colors"), 1).inputs[0].quantized


def test_eight_threads_on_one_interpreter_do_not_mix(tiny_model: MakeModel) -> None:
    """Eight threads on one interpreter get their own answers."""
    interpreter = Interpreter(tiny_model("slow"), 1)
    alone = [interpreter.run([tensor(n)])[0] for n in range(CLIENTS)]
    start = threading.Barrier(CLIENTS)

    def client(number: int) -> list[np.ndarray]:
        start.wait()
        return [interpreter.run([tensor(number)])[0] for _ in range(12)]

    with ThreadPoolExecutor(CLIENTS) as clients:
        for expected, answers in zip(alone, clients.map(client, range(CLIENTS)), strict=True):
            for answer in answers:
                np.testing.assert_array_equal(answer, expected)


@pytest.mark.parametrize("mode", ["locked", "unlocked"])
def test_without_the_lock_the_same_clients_fail(tiny_model: MakeModel, mode: str) -> None:
    script = Path(__file__).with_name("unlocked_clients.py")
    rounds = "12" if mode == "locked" else "200"
    try:
        ended = subprocess.run(
            [sys.executable, script, tiny_model("slow"), mode, rounds],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    except subprocess.TimeoutExpired:
        assert mode == "unlocked"  # whose clients may hang as well
        return
    if mode == "locked":
        assert ended.returncode == 0, ended.stderr
        assert int(ended.stdout) == 0
    else:
        assert ended.returncode < 0 or int(ended.stdout) > 0, ended


@pytest.mark.parametrize(
    "wrong", [np.zeros((1, SIDE, SIDE, 4), np.float32), np.zeros((1, SIDE, SIDE, 3), np.int8)]
)
def test_wrong_tensor_is_a_value_error_next_is_answered(
    tiny_model: MakeModel, wrong: np.ndarray
) -> None:
    """A wrong tensor is a value error and the next one is answered."""
    interpreter = Interpreter(tiny_model("colors"), 1)
    with pytest.raises(ValueError, match="tensor"):
        interpreter.run([wrong])
    assert interpreter.run([tensor(1)])[0].argmax() == 1


def test_leases_are_exclusive_and_counted(tiny_model: MakeModel) -> None:
    pool = InterpreterPool(tiny_model("colors"), 2)
    with pool.lease() as one, pool.lease() as other:
        assert one is not other
        assert pool.busy == 2
    assert pool.busy == 0


def test_the_one_given_back_last_is_lent_first(tiny_model: MakeModel) -> None:
    pool = InterpreterPool(tiny_model("colors"), 3)
    with pool.lease() as used:
        pass
    with pool.lease() as again:
        assert again is used


def test_an_exception_gives_the_lease_back(tiny_model: MakeModel) -> None:
    pool = InterpreterPool(tiny_model("colors"), 1)
    with pytest.raises(ZeroDivisionError), pool.lease():
        _ = 1 / 0
    with pool.lease() as interpreter:
        assert interpreter.run([tensor(2)])[0].argmax() == 2


def test_waiting_borrower_gets_the_returned_interpreter(tiny_model: MakeModel) -> None:
    """A waiting borrower gets the interpreter that is given back."""
    pool = InterpreterPool(tiny_model("colors"), 1)
    got = threading.Event()

    def borrow() -> None:
        with pool.lease():
            got.set()

    with pool.lease():
        borrower = threading.Thread(target=borrow)
        borrower.start()
        assert not got.is_set()
    assert got.wait(30)
    borrower.join()


def test_each_lends_every_interpreter_once(tiny_model: MakeModel) -> None:
    pool = InterpreterPool(tiny_model("colors"), 3, wide=2)
    seen: list[Session] = []
    pool.each(seen.append)
    assert len(set(map(id, seen))) == 4
    assert pool.busy == 0


def test_a_lone_frame_gets_the_wide_interpreter(tiny_model: MakeModel) -> None:
    pool = InterpreterPool(tiny_model("slow"), 1, wide=2)
    with pool.lease() as narrow, pool.lease(alone=True) as wide:
        assert narrow is not wide
        # What one thread answers and what two answer is the same.
        np.testing.assert_array_equal(narrow.run([tensor(1)])[0], wide.run([tensor(1)])[0])
        assert pool.busy == 2
    with pool.lease(alone=True):
        assert pool.busy == 1


@pytest.mark.parametrize(
    "content", [b"", b"not a model" * 50, None], ids=["empty", "text", "cut off"]
)
def test_what_is_no_model_is_refused_by_name(
    tiny_model: MakeModel, tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "model.tflite"
    path.write_bytes(tiny_model("colors").read_bytes()[:700] if content is None else content)
    with pytest.raises(BundleError, match=r"model\.tflite"):
        Interpreter(path, 1)


def test_a_model_that_is_not_there_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"absent\.tflite can't be read"):
        InterpreterPool(tmp_path / "absent.tflite", 1)
