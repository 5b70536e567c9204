"""Our tars as streams through webdataset: frames, joints and boxes of every codec are those of the index reader."""

import contextlib
import functools
import http.server
import shlex
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from shards_data import decoded_frames, write_motion_set

from svdata2vec.shards.atomic import npy_bytes
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.packing.pack import PackOptions, pack
from svdata2vec.shards.readers.pyskl import read_pyskl
from svdata2vec.shards.reading.shardset import ShardSet
from svdata2vec.shards.reading.wds_decoder import decode_sample

CODECS = ("jpeg", "blocks", "vp9", "h264", "hevc", "mjpeg", "copy")


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ShardSet]:
    """Three clips of 8 to 10 frames in two tars, packed with every codec."""
    root = tmp_path_factory.mktemp("stream")
    dataset = read_pyskl(*write_motion_set(root, 3))
    for codec in CODECS:
        pack(dataset, root / codec, PackOptions(workers=1, size=320 if codec == "copy" else 96, codec=codec, clips_per_shard=2))
    return {codec: ShardSet.open(root / codec) for codec in CODECS}


@contextlib.contextmanager
def server(folder: Path) -> Iterator[str]:
    """The folder on a web server of this machine, as the start of a URL that webdataset can open."""
    handler = functools.partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{web.server_port}"
        if shutil.which("curl") is None:  # by which webdataset reads http
            program = "import sys, urllib.request as u; sys.stdout.buffer.write(u.urlopen(sys.argv[1]).read())"
            url = f"pipe:{shlex.quote(sys.executable)} -c '{program}' {url}"
        yield url
        web.shutdown()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """No lines among the test's output."""


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("remote", [False, True])
def test_every_codec_as_the_index_reader_has_it(sets: dict[str, ShardSet], codec: str, remote: bool) -> None:
    shards = sets[codec]
    with server(shards.root) if remote else contextlib.nullcontext(str(shards.root)) as place:
        urls = [f"{place}/{shard.name}" for shard in shards.manifest.shards]
        found = list(webdataset.WebDataset(urls, shardshuffle=False).map(decode_sample))
    assert [clip["key"] for clip in found] == [key.decode() for key in shards.index["key"]]
    for row, clip in enumerate(found):
        ours = shards.sample(row)
        assert clip["frames"].dtype == np.uint8 and np.array_equal(clip["frames"], decoded_frames(ours))
        assert np.array_equal(clip["joints"], ours.pose_MTVC) and np.array_equal(clip["boxes"], ours.box_T4)
        assert clip["label"] == ours.label and clip["meta"].to_bytes() == ours.meta.to_bytes()
        assert clip["__url__"] == urls[shards.index["shard"][row]] and clip["__key__"] == clip["key"]


@pytest.mark.parametrize("codec", ["jpeg", "blocks", "vp9", "copy"])
@pytest.mark.parametrize("frames", [[5, 0, 0, 2], np.array([7]), lambda count: np.linspace(0, count - 1, 4).round(), []])
def test_some_frames(sets: dict[str, ShardSet], codec: str, frames: Any) -> None:
    shards = sets[codec]
    urls = [str(path) for path in shards.tars]
    some = functools.partial(decode_sample, frames=frames)
    for row, clip in enumerate(webdataset.WebDataset(urls, shardshuffle=False).map(some)):
        ours = shards.sample(row)
        wanted = np.asarray(frames(ours.meta.num_frames) if callable(frames) else frames, int)
        assert np.array_equal(clip["frames"], np.array(decoded_frames(ours))[wanted])
        assert np.array_equal(clip["joints"], ours.pose_MTVC[:, wanted]) and np.array_equal(clip["boxes"], ours.box_T4[wanted])


def cut(name: str) -> Callable[[dict[str, Any]], None]:
    """Keep half of a member."""
    return lambda sample: sample.update({name: sample[name][: len(sample[name]) // 2]})


def swap(name: str, old: bytes, new: bytes) -> Callable[[dict[str, Any]], None]:
    """Change some bytes of a member."""
    return lambda sample: sample.update({name: sample[name].replace(old, new, 1)})


def cut_third_jpeg(sample: dict[str, Any]) -> None:
    """Take the last byte of the third picture."""
    offsets = np.load(BytesIO(sample["offsets.npy"]))
    sample["jpegs"] = sample["jpegs"][: offsets[3] - 1] + sample["jpegs"][offsets[3] :]
    sample["offsets.npy"] = npy_bytes(offsets - (np.arange(len(offsets)) > 2))


@pytest.mark.parametrize(("codec", "change", "message"), [
    ("jpeg", lambda sample: sample.pop("pose.npy"), r"member pose\.npy is missing; the tar may be cut short"),
    ("jpeg", lambda sample: sample.pop("jpegs"), "member jpegs is missing"),
    ("jpeg", lambda sample: sample.pop("offsets.npy"), r"member offsets\.npy is missing"),
    ("jpeg", lambda sample: sample.update(json={}), r"member json is decoded already; leave out \.decode"),
    ("jpeg", cut("jpegs"), r"offsets\.npy does not divide the \d+ bytes of jpegs"),
    ("jpeg", cut_third_jpeg, "frame 2 is not a whole JPEG picture"),
    ("jpeg", cut("box.npy"), r"box\.npy: not a readable array \(16 bytes for \(10, 4\) float32\)"),
    ("jpeg", cut("json"), "the json component is damaged"),
    ("jpeg", swap("json", b'"label":', b'"label":[],"setup":'), "the json component has a wrong label"),
    ("jpeg", swap("json", b'"num_frames":', b'"num_frames":null,"camera":'), "the json component has a wrong num_frames"),
    ("jpeg", swap("pose.npy", b"}", b"("), r"pose\.npy: not a readable array"),
    ("blocks", lambda sample: sample.pop("blocks"), "member jpegs is missing"),
    ("blocks", cut("blocks"), r"blocks: \d+ bytes, expected \d+ for 10 frames of side 96 with 3 and 2 bits"),
    ("blocks", swap("blocks", b"SVBK", b"JUNK"), "blocks: begins with b'JUNK', expected b'SVBK'"),
    ("blocks", swap("blocks", b"SVBK\1", b"SVBK\7"), "blocks: version 7, this program reads 1; pack again"),
    ("blocks", swap("json", b'"packed_width":96', b'"packed_width":64'),
     "blocks: 10 frames of side 96, expected 10 of 64x96"),
    ("vp9", cut("mp4"), "the video cannot be decoded|ends before it|damaged"),
    ("h264", lambda sample: sample.update(mp4=b"no video"), "the video cannot be decoded"),
    ("copy", lambda sample: sample.update(json=sample["json"].replace(b'"packed_width":192', b'"packed_width":190')),
     r"a frame of shape \(128, 192, 3\), expected \(128, 190, 3\)"),
])
def test_bad_bytes_name_the_tar_and_the_clip(sets: dict[str, ShardSet], codec: str,
                                             change: Callable[[dict[str, Any]], object], message: str) -> None:
    sample = next(iter(webdataset.WebDataset(str(sets[codec].tars[0]), shardshuffle=False)))
    change(sample)
    with pytest.raises(UserError, match=rf"^/.*/shard-000000\.tar: clip {sample['__key__']}(: |, )(?!clip)(?:.*)(?:{message})"):
        decode_sample(sample)


def test_a_repacked_tar_may_name_its_members_in_a_folder(sets: dict[str, ShardSet]) -> None:
    """As `tar -cf new.tar .` does."""
    sample = next(iter(webdataset.WebDataset(str(sets["jpeg"].tars[0]), shardshuffle=False)))
    key = sample["__key__"]
    found = decode_sample({**sample, "__key__": f"./{key}"})
    assert (found["key"], found["__key__"]) == (key, f"./{key}")


def test_frames_that_do_not_exist(sets: dict[str, ShardSet]) -> None:
    sample = next(iter(webdataset.WebDataset(str(sets["jpeg"].tars[0]), shardshuffle=False)))
    last = sets["jpeg"].index["frames"][0] - 1
    for number in (-1, last + 1):
        with pytest.raises(UserError, match=rf"frame {number} wanted, it has 0\.\.{last}"):
            decode_sample(sample, frames=[0, number])


@pytest.mark.parametrize("frames", [np.arange(10) % 3 == 0, np.linspace(0, 9, 3), [[0, 1]]])
def test_masks_and_fractions_are_no_numbers_of_frames(sets: dict[str, ShardSet], frames: Any) -> None:
    sample = next(iter(webdataset.WebDataset(str(sets["jpeg"].tars[0]), shardshuffle=False)))
    with pytest.raises(UserError, match=r"clip \S+: frames \[.* wanted, expected a list of their numbers \(np.flatnonzero"):
        decode_sample(sample, frames=frames)
