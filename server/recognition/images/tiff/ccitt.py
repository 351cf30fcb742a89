"""CCITT group 4 (ITU-T T.6) of one strip or tile, read strictly.

libtiff fills up a line that does not fit and goes on; here every line must end at the picture's
edge, by codes as an encoder writes them, and the end code must follow the last line.
"""

from array import array
from functools import cache

import numpy as np
from numpy.typing import NDArray

from server.errors import UndecodableImageError

PASS, HORIZONTAL = 4, 5
# The modes by their codes; -3..3 is a change so far from the one above it.
MODES = {
    "1": 0,
    "011": 1,
    "000011": 2,
    "0000011": 3,
    "010": -1,
    "000010": -2,
    "0000010": -3,
    "0001": PASS,
    "001": HORIZONTAL,
}
MODE_BITS, RUN_BITS, END_BITS = 7, 13, 24
END = 0x001001
# Codes of the runs 0..63, then of 64, 128 ... 1728 (ITU-T T.4, tables 2 and 3a).
WHITE = """
00110101 000111 0111 1000 1011 1100 1110 1111 10011 10100 00111 01000 001000 000011 110100 110101
101010 101011 0100111 0001100 0001000 0010111 0000011 0000100 0101000 0101011 0010011 0100100
0011000 00000010 00000011 00011010 00011011 00010010 00010011 00010100 00010101 00010110 00010111
00101000 00101001 00101010 00101011 00101100 00101101 00000100 00000101 00001010 00001011 01010010
01010011 01010100 01010101 00100100 00100101 01011000 01011001 01011010 01011011 01001010 01001011
00110010 00110011 00110100
11011 10010 010111 0110111 00110110 00110111 01100100 01100101 01101000 01100111 011001100
011001101 011010010 011010011 011010100 011010101 011010110 011010111 011011000 011011001
011011010 011011011 010011000 010011001 010011010 011000 010011011
"""
BLACK = """
0000110111 010 11 10 011 0011 0010 00011 000101 000100 0000100 0000101 0000111 00000100 00000111
000011000 0000010111 0000011000 0000001000 00001100111 00001101000 00001101100 00000110111
00000101000 00000010111 00000011000 000011001010 000011001011 000011001100 000011001101
000001101000 000001101001 000001101010 000001101011 000011010010 000011010011 000011010100
000011010101 000011010110 000011010111 000001101100 000001101101 000011011010 000011011011
000001010100 000001010101 000001010110 000001010111 000001100100 000001100101 000001010010
000001010011 000000100100 000000110111 000000111000 000000100111 000000101000 000001011000
000001011001 000000101011 000000101100 000001011010 000001100110 000001100111
0000001111 000011001000 000011001001 000001011011 000000110011 000000110100 000000110101
0000001101100 0000001101101 0000001001010 0000001001011 0000001001100 0000001001101 0000001110010
0000001110011 0000001110100 0000001110101 0000001110110 0000001110111 0000001010010 0000001010011
0000001010100 0000001010101 0000001011010 0000001011011 0000001100100 0000001100101
"""
# Codes of the runs 1792, 1856 ... 2560 of either colour (table 3b).
BOTH_COLORS = """
00000001000 00000001100 00000001101 000000010010 000000010011 000000010100 000000010101
000000010110 000000010111 000000011100 000000011101 000000011110 000000011111
"""


def decode_group4(data: bytes, width: int, rows: int, max_changes: int) -> NDArray[np.uint8]:
    """Returns the lines of a picture as bits, [rows, (width + 7) // 8], 0 for the colour that lines
    begin with, the first pixel in the highest bit.

    Raises UndecodableImageError if the data is damaged, has other than `rows` lines, or changes
    colour more often than `max_changes`.
    """
    reader = _Reader(data)
    changes = array("q")
    line: list[int] = []
    for row in range(rows):
        line = reader.read_line(line, width)
        changes.extend([row * width + change for change in line if change < width])
        if len(changes) > max_changes:
            raise UndecodableImageError(
                f"the TIFF has CCITT data of more than {max_changes} changes of colour, which is"
                " not read"
            )
    reader.read_end()
    toggles = np.zeros(rows * width, np.uint8)
    toggles[np.frombuffer(changes, np.int64)] = 1
    bits = np.bitwise_xor.accumulate(toggles.reshape(rows, width), axis=1)
    return np.packbits(bits, axis=1)


@cache
def _tables() -> tuple[list[tuple[int, int]], list[list[tuple[int, int]]]]:
    """Returns the modes by the next 7 bits, and the runs of white and black by the next 13, each
    with the number of bits of its code, 0 if there is no such code."""
    both = {code: 1792 + 64 * number for number, code in enumerate(BOTH_COLORS.split())}
    runs = [
        {
            code: number if number < 64 else 64 * (number - 63)
            for number, code in enumerate(codes.split())
        }
        for codes in (WHITE, BLACK)
    ]
    return _table(MODES, MODE_BITS), [_table(color | both, RUN_BITS) for color in runs]


def _table(codes: dict[str, int], bits: int) -> list[tuple[int, int]]:
    table = [(0, 0)] * (1 << bits)
    for code, value in codes.items():
        rest = bits - len(code)
        first = int(code, 2) << rest
        table[first : first + (1 << rest)] = [(value, len(code))] * (1 << rest)
    return table


class _Reader:
    """Reads codes from the first bit on."""

    def __init__(self, data: bytes) -> None:
        self._data = data + b"\0\0\0"
        self._bits = 8 * len(data)
        self._at = 0
        self._modes, self._runs = _tables()

    def read_line(self, above: list[int], width: int) -> list[int]:
        """Returns the columns at which a line changes colour, ascending. above: those of the line
        above."""
        data, modes = self._data, self._modes
        above = [*above, width, width, width]
        line: list[int] = []
        # The place before which all is known, and the next change above of the other colour.
        here, color, index = -1, 0, 0
        while here < width:
            at = self._at
            byte = at >> 3
            peek = (data[byte] << 8 | data[byte + 1]) >> (9 - (at & 7)) & 0x7F
            mode, bits = modes[peek]
            self._take(bits)
            while above[index] <= here < width:
                index += 2
            change = above[index]
            if mode == HORIZONTAL:
                start = max(here, 0)
                first = start + self._read_run(color)
                here = first + self._read_run(1 - color)
                # Runs are empty only at the edges.
                if here > width or (first == start > 0) or (here == first < width):
                    raise _damaged()
                line += (first, here)
            elif mode == PASS:
                here = above[index + 1]
                if here >= width:
                    raise _damaged()
            else:
                change += mode
                if not here < change <= width:
                    raise _damaged()
                line.append(change)
                here = change
                color = 1 - color
                index += 1 if index == 0 else -1
        return line

    def read_end(self) -> None:
        """Reads the end code, which no more than the rest of two bytes may follow."""
        first = self._at >> 3
        word = int.from_bytes(self._data[first : first + 4].ljust(4, b"\0"), "big")
        end = (word >> (8 - (self._at & 7))) & 0xFFFFFF
        self._take(END_BITS)
        if end != END or self._bits - self._at >= 16:
            raise _damaged()

    def _read_run(self, color: int) -> int:
        table, total = self._runs[color], 0
        while True:
            at = self._at
            byte = at >> 3
            word = int.from_bytes(self._data[byte : byte + 3], "big")
            run, bits = table[word >> (11 - (at & 7)) & 0x1FFF]
            self._take(bits)
            total += run
            if run < 64:
                return total

    def _take(self, bits: int) -> None:
        self._at += bits
        if not bits or self._at > self._bits:
            raise _damaged()


def _damaged() -> UndecodableImageError:
    return UndecodableImageError(
        "the TIFF is cut off or damaged: its CCITT data has an error or no end"
    )
