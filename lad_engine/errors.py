"""Errors a caller can cause: each message is one sentence that names what was wrong and what is accepted."""


class LadError(Exception):
    """Base of every error the engine raises on purpose; the command line prints it alone and exits with 2."""


class ConfigError(LadError, ValueError):
    """A setting is unknown, out of range, or contradicts another one."""


class CheckpointError(LadError):
    """A base checkpoint is missing, unreadable, or does not fit its own config."""


class AdapterError(LadError):
    """An adapter is unreadable, or does not fit the base it was given."""


class RequestError(LadError, ValueError):
    """A request cannot be laid out or decoded (empty, too long, bad spans)."""


class DownloadError(LadError):
    """A file could not be fetched, verified or stored."""


class OpsError(LadError):
    """A backend asked for by name cannot run here."""


class TrainingError(LadError):
    """A training run cannot start or go on (data, config, resume)."""


class CaptureError(LadError):
    """A denoising step cannot be captured, or the captured loop cannot be built or launched."""


class DeviceMemoryError(LadError):
    """A decode does not fit the device's memory; the message says what to reduce."""


class OverloadError(LadError):
    """The backend's queue is full; `retry_after_s` says when it is worth asking again."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DeadlineError(LadError):
    """A request's deadline passed before it was answered."""


class RequestCancelledError(LadError):
    """A request was cancelled by whoever submitted it."""


class StepError(LadError):
    """A denoising step failed for this request (an exception, or numbers that are not finite); others went on."""


class ClosedError(LadError):
    """The backend is draining or closed and takes no more requests."""
