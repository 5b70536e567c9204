"""Faults of the machine, planted with DALI's own messages, are not mistaken for damaged clips, nor damaged clips for them."""

import errno
import itertools
import logging
import os
from pathlib import Path
from typing import Any

import pytest
from pipeline_factory import shard_set
from tiny import pretrain_config
from tiny_command import command_words

from svdata2vec.cli.main import main
from svdata2vec.pipeline.faults import machine_fault, reason
from svdata2vec.pipeline.graph import DaliDecoder
from svdata2vec.pipeline.loader import ClipLoader
from svdata2vec.pipeline.plan import PlanConfig
from svdata2vec.shards.errors import MachineError, UserError
from svdata2vec.shards.reading.shardset import ShardSet

PLAN = PlanConfig(num_frames=4, size=32)
CLOSING = "Current pipeline object is no longer valid."


def report(words: str, operator: str = "MIXED operator `nvidia.dali.fn.decoders.image`") -> str:
    """As DALI 2.4 reports the failure of an operator."""
    return (
        f"Critical error in pipeline:\nError in {operator},\nwhich was used in the pipeline definition with the following "
        'traceback:\n\n  File "graph.py", line 78, in jpeg_graph\n    return fn.decoders.image(data)\n\nencountered:\n\n'
        f"{words}\n{CLOSING}"
    )


NO_LIBRARY = (
    'Assert on "cuvidInitChecked()" failed: Failed to load libnvcuvid.so, needed by the VideoReader operator. If you are '
    "running in a Docker container, please refer to https://github.com/NVIDIA/nvidia-docker/wiki/Usage"
)
NO_MEMORY = "Can't allocate 393216000 bytes on device 0."
PROFILE = "Decoder hardware does not support this video codec and/or chroma format"
STICKY = "CUDA runtime API error cudaErrorIllegalAddress (700):\nan illegal memory access was encountered"
DAMAGED = "nvImageCodec failure: '#3'"


def test_too_many_open_files_do_not_count_as_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = shard_set(tmp_path, 4)

    def refused(*_: object) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    with ClipLoader(shards, "all", PLAN, batch_size=4, max_bad_rate=1.0) as loader:
        monkeypatch.setattr(os, "open", refused)
        with pytest.raises(MachineError, match=r"Too many open files: raise the limit of open files \(`ulimit -n`\)"):
            list(loader)
    assert loader.stats.clips_skipped == 0


@pytest.mark.parametrize(
    ("words", "kind", "told"),
    [
        (NO_LIBRARY, "driver", NO_LIBRARY), (NO_MEMORY, "memory", NO_MEMORY), (PROFILE, "format", PROFILE),
        (STICKY, "cuda", "CUDA runtime API error cudaErrorIllegalAddress (700): an illegal memory access was encountered"),
        ("CUDA allocation failed", "memory", "CUDA allocation failed"), ("std::bad_alloc", "memory", "std::bad_alloc"),
        ("CUDA runtime API error cudaErrorMemoryAllocation (2):\nout of memory", "memory",
         "CUDA runtime API error cudaErrorMemoryAllocation (2): out of memory"),
        ("CUDA driver API error CUDA_ERROR_NO_DEVICE (100):\nno CUDA-capable device is detected", "driver",
         "CUDA driver API error CUDA_ERROR_NO_DEVICE (100): no CUDA-capable device is detected"),
        ("nvImageCodec failure: '#5'", "memory", "nvImageCodec failure: '#5'"),
        ("nvImageCodec failure: '#7'", "driver", "nvImageCodec failure: '#7'"),
        ("nvImageCodec failure: '#21'", "cuda", "nvImageCodec failure: '#21'"),
        (DAMAGED, None, DAMAGED), ("nvImageCodec failure: '#6'", None, "nvImageCodec failure: '#6'"),
        ("Could not decode jpeg code stream", None, "Could not decode jpeg code stream"),
        ("Failed to decode sample #12 :", None, "Failed to decode sample #12 :"),
    ],
)
def test_errors_are_attributed_to_clip_or_machine(words: str, kind: str | None, told: str) -> None:
    older = f"Critical error in pipeline:\nError when executing Mixed operator ImageDecoder encountered:\n{words}\n{CLOSING}"
    for text in (report(words), older, words):
        assert reason(RuntimeError(text)) == told
        fault = machine_fault(reason(RuntimeError(text)))
        assert (fault.kind if fault else None) == kind


@pytest.fixture
def shards(tmp_path: Path) -> ShardSet:
    return shard_set(tmp_path / "shards", 12)


class Planted:
    """`DaliDecoder._run` with a fault: of every run, of runs of several clips, or of runs that hold a clip."""

    def __init__(self, words: str, *, together: bool = False, key: str = "", error: type[Exception] = RuntimeError) -> None:
        self.words, self.together, self.key, self.error = words, together, key, error
        self.runs: list[int] = []

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        real = DaliDecoder._run

        def run(decoder: DaliDecoder, clips: list[Any]) -> Any:
            self.runs.append(len(clips))
            keys = [clip.clip.key for clip in clips]
            if (self.key in keys if self.key else len(clips) > 1 or not self.together):
                raise self.error(report(self.words) if self.error is RuntimeError else self.words)
            return real(decoder, clips)

        monkeypatch.setattr(DaliDecoder, "_run", run)


def load(shards: ShardSet, **options: Any) -> tuple[list[str], ClipLoader]:
    with ClipLoader(shards, "all", PLAN, batch_size=4, **options) as loader:
        return [key for batch in loader for key in batch.keys], loader


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize(
    ("fault", "message", "most_runs"),
    [
        (Planted(NO_LIBRARY), r"^4 clips cannot be decoded, .*machine.*\(Assert on .*libnvcuvid.*utility,video", 1),
        (Planted(STICKY), r"^4 clips .*\(CUDA runtime API error cudaErrorIllegalAddress \(700\): an illegal.*continues", 1),
        (Planted(NO_MEMORY), r"^4 clips .*\(Can't allocate 393216000 bytes on device 0\.\): no memory is left", 5),
        (Planted(NO_MEMORY, together=True), r"^4 clips .*\(Can't allocate.*--run\.batch-size", 5),
        (Planted("bad_alloc", error=MemoryError), r"^4 clips .*\(bad_alloc\): no memory is left", 5),
        (Planted(PROFILE), r"^4 clips .*\(Decoder hardware does not support.*pack them as jpeg", 5),
        (Planted(PROFILE, key="clip00002"), r"^clip clip00002 .*\(Decoder hardware does not support.*pack them as jpeg", 13),
    ],
)
def test_a_fault_of_the_machine_ends_the_run_and_no_clip_is_lost(
    shards: ShardSet, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, train: bool, fault: Planted,
    message: str, most_runs: int,
) -> None:
    fault.runs.clear()
    fault.install(monkeypatch)
    with caplog.at_level(logging.WARNING), pytest.raises(UserError, match=message) as caught:
        load(shards, train=train)
    assert "\n" not in str(caught.value)
    assert "skipping clip" not in caplog.text and len(fault.runs) <= most_runs


@pytest.mark.parametrize("every", [2, 3])
@pytest.mark.parametrize("train", [True, False])
def test_memory_that_is_short_now_and_then_makes_no_clip_a_damaged_one(
    shards: ShardSet, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, train: bool, every: int
) -> None:
    real, alone = DaliDecoder._run, itertools.count(1)

    def run(decoder: DaliDecoder, clips: list[Any]) -> Any:
        if len(clips) > 1 or next(alone) % every == 0:
            raise RuntimeError(report(NO_MEMORY))
        return real(decoder, clips)

    monkeypatch.setattr(DaliDecoder, "_run", run)
    with caplog.at_level(logging.WARNING), pytest.raises(UserError, match=r"^4 clips .*\(Can't allocate.*--run\.batch-size"):
        load(shards, train=train)
    assert "skipping clip" not in caplog.text


@pytest.mark.parametrize("words", [DAMAGED, NO_MEMORY])
def test_a_damaged_clip_among_good_ones_is_left_out(
    shards: ShardSet, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, words: str
) -> None:
    """A clip that alone needs more memory than there is has a damaged header."""
    Planted(words, key="clip00005").install(monkeypatch)
    with caplog.at_level(logging.WARNING):
        keys, loader = load(shards)
    assert keys == [f"clip{number:05d}" for number in range(12) if number != 5] and loader.stats.clips_skipped == 1
    assert "skipping clip clip00005 of " in caplog.text and f"shard-000001.tar: {words}" in caplog.text
    keys, loader = load(shards, train=True)
    assert len(keys) == 12 and "clip00005" not in keys


@pytest.mark.parametrize(
    ("words", "told", "status"), [
        (NO_LIBRARY, "libnvcuvid", 1), (NO_MEMORY, "Can't allocate", 1), (STICKY, "an illegal memory access", 1),
        (PROFILE, "Decoder hardware", 2),  # the clips' format is the user's choice
    ],
)
def test_the_command_ends_in_one_line(
    shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    words: str, told: str, status: int,
) -> None:
    Planted(words).install(monkeypatch)
    assert main(command_words(pretrain_config(Path(shards.root), tmp_path / "run"))[3:]) == status
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("svdata2vec pretrain: ")]
    assert line.startswith("svdata2vec pretrain: 4 clips cannot be decoded, which is the machine's fault") and told in line


def test_the_command_continues_without_a_damaged_clip(
    shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Planted(DAMAGED, key="clip00005").install(monkeypatch)
    assert main(command_words(pretrain_config(Path(shards.root), tmp_path / "run"))[3:]) == 0
