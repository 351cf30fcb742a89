"""Plain numbers to tensors and back."""

import numpy as np
import pytest

from server.errors import InvalidFieldError
from server.recognition.preprocessing import TensorSpec
from server.recognition.tensor_values import cast_exact, quantize, to_array, to_real_values

UINT8 = TensorSpec("x", (1, 4), "uint8", 0.5, 128)


@pytest.mark.parametrize(
    ("value", "shape"),
    [(5, ()), ([1, 2.5], (2,)), ([[1], [2]], (2, 1)), ([], (0,)), ([True, 2], (2,))],
)
def test_nested_lists(value: object, shape: tuple[int, ...]) -> None:
    assert to_array(value, "x").shape == shape


def nested(depth: int) -> object:
    value: object = 1.0
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value",
    ["1", None, {}, [1, "2"], [1, None], [[1], [2, 3]], [1, [2]], [{}], 10**30, nested(70)],
)
def test_what_is_no_tensor(value: object) -> None:
    with pytest.raises(InvalidFieldError, match="x "):
        to_array(value, "x")


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        ([1.0, -2.0], "int32"),
        ([255, 0], "uint8"),
        ([0, 1], "bool"),
        ([True, False], "float32"),
        ([0.1, 3e38], "float32"),
        ([float("nan"), float("inf")], "float32"),
        ([2**63], "uint64"),
        ([], "int8"),
    ],
)
def test_values_that_fit(value: list[float], dtype: str) -> None:
    array = np.array(value)
    out = cast_exact(array, dtype, "x")
    assert out.dtype == dtype
    assert np.allclose(out.astype(np.float64), array.astype(np.float64), equal_nan=True)


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        ([0.5], "int32"),
        ([256], "uint8"),
        ([-1], "uint8"),
        ([2.0**63], "int64"),
        ([float("nan")], "int32"),
        ([float("inf")], "int32"),
        ([2], "bool"),
        ([1e39], "float32"),
        ([1e5], "float16"),
    ],
)
def test_values_that_do_not_fit(value: list[float], dtype: str) -> None:
    with pytest.raises(InvalidFieldError, match=f"x has values that {dtype} can't hold"):
        cast_exact(np.array(value), dtype, "x")


def test_real_values_of_a_quantised_tensor() -> None:
    real = np.array([[-64.0, 0.0, 0.25, 1000.0]])
    stored = quantize(real, UINT8, "x")
    assert stored.dtype == np.uint8
    assert stored.tolist() == [[0, 128, 128, 255]]
    assert to_real_values(stored, UINT8).tolist() == [[-64.0, 0.0, 0.0, 63.5]]
    with pytest.raises(InvalidFieldError, match="can't hold"):
        quantize(np.array([np.nan]), UINT8, "x")


def test_other_tensors_stay_as_they_are() -> None:
    plain = TensorSpec("x", (1,), "int32")
    assert to_real_values(np.array([5], np.int32), plain).dtype == np.int32
    assert quantize(np.array([5.0]), plain, "x").tolist() == [5]


@pytest.mark.parametrize(
    "value", [["x" * 100_000, *[0] * 100_000], [*[0] * 100_000, "x" * 100_000]]
)
def test_a_text_among_numbers_takes_no_room(value: list[object]) -> None:
    """NumPy would take 40 GB for it."""
    with pytest.raises(InvalidFieldError, match="x should be numbers"):
        to_array(value, "x")
