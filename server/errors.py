"""Every error a caller can meet, each with its code and HTTP status.

One handler (`server.http.errors`) turns any of them into
``{"error": {"code", "message", "request_id"}}``. The message is written for the caller: it names
what was wrong and what would be right, and never what only the log should know.
"""


class LinesideError(Exception):
    """Base of all errors that are answered with a code and a status.

    Attributes:
        code: stable upper-case name, for programs.
        status: HTTP status.
        retryable: False if the same request can never succeed later.
        cause: finer than `code`, for metrics and alerts; empty if the code says it all.
        retry_after: seconds after which trying again makes sense, or None.
    """

    code = "INTERNAL"
    status = 500
    retryable = True
    cause = ""

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after = retry_after

    @property
    def reason(self) -> str:
        """The name under which the error is counted: `cause`, else `code`."""
        return self.cause or self.code


class BadRequestError(LinesideError):
    code, status = "BAD_REQUEST", 400


class MissingFieldError(BadRequestError):
    code = "MISSING_FIELD"


class InvalidFieldError(BadRequestError):
    code = "INVALID_FIELD"


class ClockAheadError(InvalidFieldError):
    """A frame seems to come from the future, so that its deadline can't be judged."""

    cause = "CLOCK_AHEAD"


class NotFoundError(LinesideError):
    code, status = "NOT_FOUND", 404


class ModelNotFoundError(NotFoundError):
    code = "MODEL_NOT_FOUND"


class ConflictError(LinesideError):
    code, status = "CONFLICT", 409


class VersionPinnedError(ConflictError):
    code = "VERSION_PINNED"


class NothingToRollBackError(ConflictError):
    code = "NOTHING_TO_ROLL_BACK"


class ModelNeededError(ConflictError):
    """A model that is judged by when a frame names none is not unloaded."""

    code = "MODEL_NEEDED"


class ProductNotFoundError(NotFoundError):
    code = "PRODUCT_NOT_FOUND"


class JobNotFoundError(NotFoundError):
    code = "JOB_NOT_FOUND"


class CameraNotFoundError(NotFoundError):
    code = "CAMERA_NOT_FOUND"


class CameraExistsError(ConflictError):
    code = "CAMERA_EXISTS"


class CameraInSettingsError(ConflictError):
    """A camera of the settings can't be removed by a request."""

    code = "CAMERA_IN_SETTINGS"


class CamerasFullError(ConflictError):
    code = "CAMERAS_FULL"


class OutputNotFoundError(NotFoundError):
    code = "OUTPUT_NOT_FOUND"


class OutputUntestableError(ConflictError):
    """Whoever receives from this output could take a test for a verdict."""

    code = "OUTPUT_UNTESTABLE"


class KeyNotFoundError(NotFoundError):
    code = "KEY_NOT_FOUND"


class KeyExistsError(ConflictError):
    code = "KEY_EXISTS"


class LastAdminKeyError(ConflictError):
    """After this change no key would have the right to make or revoke keys."""

    code = "LAST_ADMIN_KEY"


class KeysOffError(ConflictError):
    """The server asks for no keys by its settings, so that anybody could make some for later."""

    code = "KEYS_OFF"


class JobFinishedError(ConflictError):
    code = "JOB_FINISHED"


class VersionExistsError(ConflictError):
    """The version's number is taken by other content; versions do not change in place."""

    code = "VERSION_EXISTS"


class VersionRefusedError(LinesideError):
    code, status = "VERSION_REFUSED", 422


class ModelOutputError(LinesideError):
    """A model gave numbers for a frame that no label can be read from."""

    code, status = "MODEL_OUTPUT_INVALID", 500


class UnauthorizedError(LinesideError):
    code, status = "UNAUTHORIZED", 401


class ExpiredError(UnauthorizedError):
    """The key or token was valid once."""


class ForbiddenError(LinesideError):
    code, status = "FORBIDDEN", 403


class LengthRequiredError(LinesideError):
    code, status = "LENGTH_REQUIRED", 411


class BodyTooLargeError(LinesideError):
    code, status = "BODY_TOO_LARGE", 413


class ImageTooLargeError(LinesideError):
    code, status = "IMAGE_TOO_LARGE", 413


class UnsupportedImageError(LinesideError):
    code, status = "UNSUPPORTED_IMAGE", 415


class MediaTypeError(LinesideError):
    code, status = "UNSUPPORTED_MEDIA_TYPE", 415


class ContentCodingError(MediaTypeError):
    """A body is compressed in a way that is not read here; the answer says which are."""


class UndecodableImageError(LinesideError):
    code, status = "UNDECODABLE_IMAGE", 422


class UnsafeImageError(LinesideError):
    """The image has ended the process that read it, and is not read again."""

    code, status = "UNSAFE_IMAGE", 422


class ImageUrlError(LinesideError):
    code, status = "IMAGE_URL_FAILED", 422


class OverloadedError(LinesideError):
    code, status = "OVERLOADED", 503


class NotReadyError(LinesideError):
    code, status = "NOT_READY", 503


class DeadlineExceededError(LinesideError):
    code, status = "DEADLINE_EXCEEDED", 503


class StaleFrameError(DeadlineExceededError):
    """A frame was too old when it came, and only gets older."""

    retryable, cause = False, "STALE_FRAME"


class SupersededError(LinesideError):
    code, status, retryable = "SUPERSEDED", 503, False


class CameraUnavailableError(LinesideError):
    """A camera that the server reads has no frame to judge."""

    code, status = "CAMERA_UNAVAILABLE", 503


class OutputUnavailableError(LinesideError):
    """The other side of an output is not there."""

    code, status = "OUTPUT_UNAVAILABLE", 503


class JournalUnreadableError(LinesideError):
    code, status = "JOURNAL_UNREADABLE", 503


class StorageError(LinesideError):
    """Data that a caller asked to be kept can't be written: the disk is full or read-only."""

    code, status = "STORAGE_FAILED", 503


class JobsFullError(LinesideError):
    code, status = "JOBS_FULL", 503


class JobsUnavailableError(LinesideError):
    code, status = "JOBS_UNAVAILABLE", 503


class BrokerUnavailableError(LinesideError):
    code, status = "BROKER_UNAVAILABLE", 503


def status_of(code: str) -> int:
    """Return the HTTP status of the error of this code; 500 if no error has it."""
    kinds = [LinesideError]
    for kind in kinds:
        if kind.code == code:
            return kind.status
        kinds += kind.__subclasses__()
    return 500


class StartError(Exception):
    """The server can't start as configured; the message is the one sentence the operator reads."""


class SettingsError(StartError):
    """A setting is unknown or unusable."""


class KeysError(StartError):
    """The keys file can't be read or changed, or a key in it is unusable."""


class KeyNameError(KeysError):
    """A key's name is taken, or there is no key of this name."""


class BundleError(StartError):
    """A model bundle is missing, incomplete, damaged, or doesn't fit its model."""
