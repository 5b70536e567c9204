"""File systems behind URLs, by fsspec."""

from typing import Any

import fsspec

from svdata2vec.shards.errors import MachineError, UserError
from svdata2vec.shards.shown import public

RETRY_SECONDS = (0.5, 2.0, 8.0)  # waits after failures that may pass
STALL_SECONDS = 60.0  # without a byte, after which a server counts as failed
HTTP = ("http://", "https://")


class StoreError(MachineError):
    """A store failed time after time: what was asked of it may be as good as ever."""


def may_pass(error: BaseException) -> bool:
    """Whether what a store raised may not come again. Stores raise what their libraries raise, not only OSError: aiohttp's
    broken transfers and answers by status, botocore's time-outs."""
    refused = getattr(error, "status", None) in (400, 401, 403, 404, 405, 410, 416)
    return not refused and not isinstance(error, (FileNotFoundError, PermissionError, ValueError, TypeError))


def cause_of(error: Exception) -> BaseException:
    """What a store's library raised. If a server reports no size, fsspec reports a missing file for any response, or for none;
    its time-outs have no message."""
    cause = error.__cause__
    if cause is not None and (not str(error) or isinstance(cause, OSError) or type(cause).__module__.startswith("aiohttp.")):
        return cause
    return error


def answer_of(error: BaseException) -> str:
    """What a store says of a file, without its name: `404 Not Found`, or the exception of its library."""
    if hasattr(error, "status"):
        return f"{error.status} {getattr(error, 'message', '')}".rstrip()
    return "no such file" if isinstance(error, FileNotFoundError) else f"{type(error).__name__}: {error}"


async def _patient_client(**options: Any) -> Any:
    """aiohttp's client with a bound for each part of an answer; its own is five minutes for all of it, for large tars too. It
    takes the proxies of the environment, as curl and the clients of other stores do."""
    import aiohttp

    patience = aiohttp.ClientTimeout(total=None, sock_connect=STALL_SECONDS, sock_read=STALL_SECONDS)
    return aiohttp.ClientSession(**{"timeout": patience, "trust_env": True, **options})


def filesystem_of(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it. UserError for an unknown scheme, or one whose library is missing."""
    try:
        return fsspec.core.url_to_fs(url, **({"get_client": _patient_client} if url.startswith(HTTP) else {}))
    except ImportError as error:
        raise UserError(f"{public(url)}: {error}; s3://, gs:// and https:// need: pip install 'svdata2vec[remote]'") from error
    except (ValueError, OSError) as error:
        raise UserError(public(f"{url}: {error}")) from error
