"""A part of a video: the frames from START, counted from 0, up to STOP, which is excluded."""

import operator

from svdata2vec.shards.errors import UserError
from svdata2vec.shards.video import VideoReader

Span = tuple[int, int]  # START, STOP


def check_span(reader: VideoReader, span: Span) -> None:
    """UserError unless the video has all frames of the span, and it has any. Decodes the video up to its end."""
    try:
        start, stop = map(operator.index, span)
    except (TypeError, ValueError) as error:
        raise UserError(f"frames {span!r}: expected two whole numbers, START and STOP") from error
    empty = not 0 <= start < stop
    num_frames = reader.count(None if empty else stop)
    if empty or num_frames < stop:
        raise UserError(
            f"{reader.path}: frames {start} to {stop} are no part of its {num_frames} frames; expected START and STOP with "
            f"0 <= START < STOP <= {num_frames}, STOP excluded"
        )
