"""Errors of the conversion half; each message is one sentence for the person at the terminal."""


class ConvertError(Exception):
    """The conversion can't be done as asked. `exit_code` is the process's."""

    exit_code = 1


class GateError(ConvertError):
    """The model was converted but is not good enough, so no bundle was written."""

    exit_code = 3
