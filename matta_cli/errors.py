"""What matta says to a person when something is wrong."""


def said(error: Exception) -> str:
    """The first line of what an error of another library says."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class MattaError(Exception):
    """A sentence for the user: what is wrong, in their own names, and what to do about it.

    The command line prints it on stderr and exits with code 1. From Python it is an ordinary exception.
    """


class Interrupted(MattaError):
    """Training was stopped by a signal after its checkpoint had been saved. ``code`` is the exit code, 128 + the signal."""

    def __init__(self, sentence: str, code: int = 130) -> None:
        super().__init__(sentence)
        self.code = code
