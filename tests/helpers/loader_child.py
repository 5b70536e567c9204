"""A loader in a child process, forked or spawned."""

import multiprocessing
from multiprocessing.queues import Queue

from svdata2vec.pipeline.loader import ClipLoader


def _send_keys(loader: ClipLoader, out: "Queue[list[tuple[str, ...]]]") -> None:
    with loader:
        out.put([batch.keys for batch in loader])


def keys_in_child(loader: ClipLoader, method: str) -> list[tuple[str, ...]]:
    """Names of the clips of every batch, as a child process has them; it must end well."""
    context = multiprocessing.get_context(method)
    out = context.Queue()
    child = context.Process(target=_send_keys, args=(loader, out))  # type: ignore[attr-defined]  # the base has none
    child.start()
    keys = out.get(timeout=60)
    child.join(30)
    assert child.exitcode == 0
    return keys
