"""How a run can fail although its input is right: the command line shows one line and exits with status 1, or with 75."""

from svdata2vec.shards.errors import MachineError, UserError

REQUEUE_EXIT_CODE = 75  # EX_TEMPFAIL: the run was asked to stop, has saved, and can be started again as it was


class RunFailedError(RuntimeError):
    """The run cannot go on; the message says why and what is left of it."""


class SaveFailedError(RunFailedError):
    """A checkpoint could not be written."""


def first_line(error: Exception) -> str:
    """Of an error's text, or its kind where it has none."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def is_out_of_memory(error: BaseException) -> bool:
    """True for missing memory: Python's and NumPy's error, and those of PyTorch, on a CPU a plain RuntimeError.

    Where PyTorch has taken all of a GPU, cuBLAS and cuDNN find none for themselves: CUBLAS_STATUS_ALLOC_FAILED.
    """
    texts = ("DefaultCPUAllocator", "out of memory", "_ALLOC_FAILED") if isinstance(error, RuntimeError) else ()
    return isinstance(error, MemoryError) or any(text in str(error) for text in texts)


def told(error: Exception) -> tuple[int, str] | None:
    """Exit status and message of a command that ends so: 2 for wrong input, 1 for what failed; None for its own faults."""
    if isinstance(error, UserError):
        return 1 if isinstance(error, MachineError) else 2, str(error)
    if isinstance(error, (RunFailedError, OSError)):
        return 1, str(error)
    if is_out_of_memory(error):
        reason = first_line(error).rpartition("DefaultCPUAllocator: ")[2]  # before it, a place in PyTorch's source
        return 1, f"out of memory ({reason}); take a smaller batch, picture or network"
    return None
