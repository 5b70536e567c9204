"""Whether a video file is whole: what its container promises against what was read of it.

A decoder shows as many frames as there are bytes, so a file that was cut off looks like a short one. Frames that an edit list
hides (a lossless trim) are not missing: containers promise the time that is shown.
"""

from typing import Any

# Containers whose header states how long the file is. (Others have their length estimated from the bytes that are there.)
_STATED = {"mov", "mp4", "matroska", "webm", "avi", "flv", "asf", "mxf"}
_SLACK_FRAMES = 2  # and as many missing at the end are no cut: writers count them in different ways
_SLACK_SECONDS = 0.25


class Completeness:
    """Takes every packet that was read of a container; then `problem` says what is missing."""

    def __init__(self, container: Any, stream: Any) -> None:
        self._stream, self._index = stream, stream.index
        self._promised_packets = len(stream.index_entries)
        self._formats = set(container.format.name.split(","))
        self._promised_seconds = self._stated_seconds(container)
        self._packets = self.hidden_frames = 0
        self._end_seconds = 0.0
        self._last_is_torn = False

    def _stated_seconds(self, container: Any) -> float:
        """The length that the header states; 0 if it states none."""
        if not self._formats & _STATED:
            return 0.0
        seconds = (container.duration or 0) / 1e6
        if "avi" in self._formats and self._stream.average_rate:  # FFmpeg corrects its length by the file's size
            seconds = max(seconds, self._stream.frames / float(self._stream.average_rate))
        return seconds

    @property
    def stated_frames(self) -> int:
        """The number of frames that the header states or that follows from its length; 0 if it states neither."""
        return self._stream.frames or round(self._promised_seconds * float(self._stream.average_rate or 0))

    def add(self, packet: Any) -> None:
        """Count a packet of any stream of the container: sound may be longer than the pictures."""
        if packet.pts is not None:
            self._end_seconds = max(self._end_seconds, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        if packet.stream.index == self._index and packet.size:
            self._packets += 1
            self.hidden_frames += packet.is_discard
            self._last_is_torn = packet.is_corrupt

    def problem(self) -> str | None:
        """Why the file, read to its end, cannot be the whole one; None if nothing speaks against it."""
        if self._last_is_torn:
            return "the file ends in the middle of a frame"
        if "mov" in self._formats and self._packets < self._promised_packets - _SLACK_FRAMES:
            return f"{self._packets} of {self._promised_packets} frames are there"
        rate = self._stream.average_rate
        slack = max(_SLACK_SECONDS, (_SLACK_FRAMES + 0.5) / float(rate) if rate else 0.0)
        if self._end_seconds < self._promised_seconds - slack:
            return f"it ends after {self._end_seconds:.2f} of {self._promised_seconds:.2f} s"
        return None
