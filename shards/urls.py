"""File systems behind URLs, by fsspec."""

from typing import Any

import fsspec

from svdata2vec.shards.errors import UserError
from svdata2vec.shards.shown import public


def filesystem_of(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it. UserError for an unknown scheme, or one whose library is missing."""
    try:
        return fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise UserError(f"{public(url)}: {error}; s3://, gs:// and https:// need: pip install 'svdata2vec[remote]'") from error
    except (ValueError, OSError) as error:
        raise UserError(public(f"{url}: {error}")) from error
