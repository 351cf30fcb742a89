"""Errors of the conversion half; each message is for the person at the terminal."""


class ConvertError(Exception):
    """The conversion can't be done as asked. `exit_code` is the process's."""

    exit_code = 1


class GateError(ConvertError):
    """The model was converted but is not good enough, so no bundle was written."""

    exit_code = 3


class DatasetError(ConvertError):
    """The images can't be trained or validated on; the message names the files."""


class QuantizeError(ConvertError):
    """The model can't be quantised as asked."""


class CalibrationError(QuantizeError):
    """The calibration frames would give other ranges than the real input does."""


class TooFewFramesError(CalibrationError):
    """Too few of the calibration frames are usable."""
