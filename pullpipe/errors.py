"""The errors of pullpipe.

    PullpipeError
    ├── InvalidReference       a text that is no image reference
    ├── InvalidDocument        a manifest, index or config that is none, or not an image's
    ├── NoSuchPlatform         the image has no manifest for the wanted platform
    ├── BadConfiguration       a file of settings, a variable, or a program that they name, that cannot be used
    ├── TransferError          bytes could not be had
    │   ├── Unreachable        no such host, connection refused, TLS, time-outs
    │   ├── Unauthorized       authentication needed, or refused
    │   ├── NotFound           no such image, tag or blob there
    │   ├── Blocked            the settings forbid to pull it
    │   └── UnexpectedAnswer   the registry answered something that the protocol does not allow
    ├── VerificationError      bytes came, and are not what their digest or size says
    │   └── WrongBlob          a blob's bytes do not have its digest
    ├── LayerError             a layer's archive is damaged, hostile or not understood
    │   ├── LayerTooLarge      it comes to more than the limits allow
    │   ├── UnmappableOwner    it has files of an owner that the user namespace does not have
    │   └── UnknownCompression     it is compressed in a way that no image specification has
    ├── WorkerDied             an unpack process ended without a result
    ├── NeedsRoot              what was asked for takes root's rights
    ├── NoRoom                 the file system has less room than is known to be needed
    ├── KernelRefused          a system call failed that mounting or running needs
    ├── BadArgument            an argument that cannot be used: a directory that is not empty, a path that is none
    ├── NotRunning             a container has to run for what was asked for
    ├── DemoError              the demo image cannot be made on this host
    └── RunError               the command could not be started
        ├── CommandNotFound    (exit code 127)
        └── CommandNotExecutable  (exit code 126)

What the store refuses is a `store.StoreError`. Each message is one line that says what failed, on what, and what to do.
"""

from __future__ import annotations


class PullpipeError(Exception):
    """Anything that pullpipe refuses or cannot do."""


class InvalidReference(PullpipeError, ValueError):
    """The text is no image reference."""


class InvalidDocument(PullpipeError):
    """A manifest, an index or a config that is none, or that describes no image."""


class NoSuchPlatform(PullpipeError):
    """The image has no manifest for the wanted platform."""


class BadConfiguration(PullpipeError):
    """A file of settings, a variable of the environment, or a program that they name, that cannot be used."""


class TransferError(PullpipeError):
    """Bytes could not be had.

    `transient`: the same request may go well in a while; `wait`: in so many seconds, as the other side said.
    """

    def __init__(self, message: str, *, transient: bool = False, wait: float | None = None) -> None:
        super().__init__(message)
        self.transient = transient
        self.wait = wait


class Unreachable(TransferError):
    """No such host, connection refused, no TLS, or no answer in time."""


class Unauthorized(TransferError):
    """The registry wants credentials, or does not take these."""


class NotFound(TransferError):
    """There is no such image, tag or blob."""


class Blocked(TransferError):
    """The settings forbid to pull the image."""


class UnexpectedAnswer(TransferError):
    """The registry's answer is not what the protocol allows."""


class VerificationError(PullpipeError):
    """The bytes are not what their digest or size says."""


class WrongBlob(VerificationError):
    """A blob's bytes do not have its digest."""


class LayerError(PullpipeError):
    """A layer's archive is damaged, hostile, or of a kind that is not understood.

    `layer` is the digest of its blob or of its tar stream; empty as long as it is not known which layer it is.
    """

    remedy = "; its owner has to mend it"

    def __init__(self, reason: str, layer: str = "") -> None:
        super().__init__(f"layer {layer} cannot be unpacked: {reason}{self.remedy}" if layer else reason)
        self.reason, self.layer = reason, layer


class LayerTooLarge(LayerError):
    """A layer comes to more than the limits allow."""

    remedy = ""  # the message tells


class UnmappableOwner(LayerError):
    """A layer has files of an owner that the user namespace does not have."""

    remedy = ""


class UnknownCompression(LayerError):
    """A layer is compressed by this program, as no image specification allows."""

    def __init__(self, program: str) -> None:
        super().__init__(f"the layer is compressed with {program}, which no image specification allows")
        self.program = program


class WorkerDied(PullpipeError):
    """An unpack process ended without a result."""


class NeedsRoot(PullpipeError):
    """What was asked for takes root's rights."""


class NoRoom(PullpipeError):
    """The file system has less room than is known to be needed."""


class KernelRefused(PullpipeError):
    """A system call failed that mounting or running needs."""


class BadArgument(PullpipeError):
    """An argument that cannot be used."""


class NotRunning(PullpipeError):
    """A container does not run, or not yet."""


class DemoError(PullpipeError):
    """The demo image cannot be made on this host; the message says what is missing."""


class RunError(PullpipeError):
    """The command could not be started."""

    exit_code = 125


class CommandNotFound(RunError):
    """There is no such command in the image."""

    exit_code = 127


class CommandNotExecutable(RunError):
    """The command is there and cannot be executed."""

    exit_code = 126


def what_and_remedy(error: PullpipeError) -> tuple[str, str]:
    """The two parts of its message: what happened; and what to do, with the semicolon before it, or nothing."""
    what, semicolon, remedy = str(error).rpartition("; ")
    return (what, semicolon + remedy) if semicolon else (remedy, "")


def first_cause(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """What went wrong first; the rest of a task group's errors are its consequences, as is the end of a worker."""
    causes, consequences = errors.split(lambda error: not isinstance(error, BaseExceptionGroup | WorkerDied))
    error: BaseException = causes or consequences or errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
