"""What matta says to a person when something is wrong."""


class MattaError(Exception):
    """A sentence for the user: what is wrong, in their own names, and what to do about it.

    The command line prints it on stderr and exits with code 1. From Python it is an ordinary exception.
    """


class Interrupted(MattaError):
    """Training was stopped by Ctrl-C after its checkpoint had been saved (exit code 130)."""
