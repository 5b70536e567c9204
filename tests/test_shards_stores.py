"""Videos behind URLs: a store that is away, or refuses what it gave before, ends the packing and loses no clip."""

import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from shards_data import write_video
from web_server import Ranged, serving

from svdata2vec.shards.annotations import ClipAnnotation, DataSet
from svdata2vec.shards.errors import MachineError, UserError
from svdata2vec.shards.layouts import layout
from svdata2vec.shards.packing import shard
from svdata2vec.shards.packing.pack import PackOptions, Progress, pack

ONE_BY_ONE = PackOptions(workers=1, size=32, clips_per_shard=1)


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Of a server with four videos."""
    monkeypatch.setattr(shard, "RETRY_SECONDS", (0.0,))
    monkeypatch.setattr(shard, "_reached", {})
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    (tmp_path / "videos").mkdir()
    for name in "abcd":
        write_video(tmp_path / "videos" / f"{name}.mp4", 3)
    with serving(tmp_path / "videos") as address:
        yield f"{address}/videos"


def of_videos(url: str) -> DataSet:
    clips = [ClipAnnotation(name, 0, f"{url}/{name}.mp4") for name in "abcd"]
    return DataSet("set", layout("coco17"), ("walk",), {"train": [*"abcd"]}, clips)


@pytest.mark.parametrize(
    ("status", "first", "said"),
    [
        (503, True, "fails"),
        (503, False, "no longer gives what it gave before"),
        (403, False, "no longer gives what it gave before"),
    ],
)
def test_a_store_that_goes_away_ends_the_packing(
    status: int, first: bool, said: str, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Overloaded, or after a key has expired."""

    def fail(_: Progress | None = None) -> None:
        monkeypatch.setattr(Ranged, "status", status)

    if first:
        fail()
    message = rf"^http://127.0.0.1:\d+: {said} \({status}.*\); finished shards are kept: run again"
    with pytest.raises(MachineError, match=message):
        pack(of_videos(url), tmp_path / "out", ONE_BY_ONE, progress=fail)
    monkeypatch.setattr(Ranged, "status", 0)
    assert sorted(pack(of_videos(url), tmp_path / "out", replace(ONE_BY_ONE, resume=True)).splits["train"]) == [*"abcd"]


def test_a_server_that_is_not_there_ends_the_packing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard, "RETRY_SECONDS", (0.0,))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = f"http://127.0.0.1:{closed.getsockname()[1]}"
    with pytest.raises(MachineError, match=rf"^{address}: fails \(ClientConnectorError: Cannot connect"):
        pack(of_videos(address), tmp_path / "out", ONE_BY_ONE)


def test_videos_that_a_store_has_never_given_are_left_out(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused from the first on, they may be those of others."""
    monkeypatch.setattr(Ranged, "status", 403)
    with pytest.raises(UserError, match=r"none of 4 clips could be packed.*/a\.mp4: cannot be read \(403 Forbidden\)$"):
        pack(of_videos(url), tmp_path / "out", ONE_BY_ONE)


@pytest.mark.parametrize("content", [None, b"no video"])
def test_a_fault_of_one_video_leaves_out_its_clip(content: bytes | None, url: str, tmp_path: Path) -> None:
    """Missing, or damaged: the others are as good as ever."""
    path = tmp_path / "videos" / "b.mp4"
    path.unlink()
    if content:
        path.write_bytes(content)
    shards = pack(of_videos(url), tmp_path / "out", ONE_BY_ONE)
    assert sorted(shards.splits["train"]) == [*"acd"]
    assert content or (tmp_path / "out" / "skipped.jsonl").read_text().count("b.mp4: cannot be read (404 Not Found)") == 1


def test_an_object_that_a_store_cannot_read_leaves_out_its_clip(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its error is one that may pass; the store gives what lies beside it."""
    monkeypatch.setattr(Ranged, "broken", ("b.mp4",))
    assert sorted(pack(of_videos(url), tmp_path / "out", ONE_BY_ONE).splits["train"]) == [*"acd"]
