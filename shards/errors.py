"""The one exception for what a user can cause; the command line prints its message and exits with status 2."""


class UserError(ValueError):
    """Wrong input. The message is one line: which file or field, what was found, what was expected, what to do."""


class WorkerDiedError(UserError):
    """A worker process ended without an answer: it was killed, crashed, or ran out of memory."""
