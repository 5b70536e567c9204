"""Ends of a run that are nobody's wrong input: the command line shows their one line and exits with 1."""


class RunFailedError(RuntimeError):
    """The run cannot go on; the message says why and what is left of it."""


class SaveFailedError(RunFailedError):
    """A checkpoint could not be written."""
