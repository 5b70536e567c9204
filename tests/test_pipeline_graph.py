"""Every encoding and geometry of the graph against the reference decoder: PSNR, exact frame numbers, planted damage."""

import errno
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import cv2
import numpy as np
import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pipeline_factory import encoded_clip, picture

from svdata2vec.pipeline import affine, pyavdecoder
from svdata2vec.pipeline import graph as graph_module
from svdata2vec.pipeline.blocksdecoder import BlockClipDecoder
from svdata2vec.pipeline.decoders import make_decoder
from svdata2vec.pipeline.frames import EncodedClip, jpeg_slices
from svdata2vec.pipeline.graph import DaliDecoder, RunClip, jpeg_graph, video_graph
from svdata2vec.pipeline.pyavdecoder import PyavDecoder
from svdata2vec.pipeline.reference import ReferenceDecoder, psnr, resample
from svdata2vec.shards.errors import MachineError, UserError

SIZE = 48


def random_map(generator: np.random.Generator, packed: int = 96) -> np.ndarray:
    """A random window, possibly far outside the picture, mirrored half of the time."""
    low, extent = generator.uniform(-0.5, 0.9, 2) * packed, generator.uniform(0.1, 1.4, 2) * packed
    window = affine.window_map((low[0], low[1], low[0] + extent[0], low[1] + extent[1]), SIZE)
    return affine.compose(window, affine.mirror_map(SIZE)) if generator.random() < 0.5 else window


def decode(decoder, clips: list[EncodedClip], size: int = SIZE) -> tuple[np.ndarray, dict[int, str]]:
    frames = {len(clip.frames_T) for clip in clips}
    assert len(frames) == 1
    out = torch.full((len(clips), frames.pop(), size, size, 3), 77, dtype=torch.uint8)
    return out.numpy(), decoder.decode(clips, out)


@pytest.fixture(scope="module", params=["opencv", "warp", "resize"])
def jpeg_decoder(request):
    decoder = DaliDecoder("jpeg", SIZE, geometry=request.param)
    yield decoder
    decoder.close()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), num_frames=st.integers(1, 12), packed=st.sampled_from([32, 96, 97, 130]))
def test_jpeg_matches_the_reference_decoder(jpeg_decoder, seed, num_frames, packed):
    generator = np.random.default_rng(seed)
    frames = generator.integers(0, num_frames, 5).tolist()  # any order, repeats
    clips = [encoded_clip("jpeg", num_frames, frames, random_map(generator, packed), packed) for _ in range(2)]
    fast, failed = decode(jpeg_decoder, clips)
    slow, _ = decode(ReferenceDecoder(), clips)
    assert not failed
    for one, two in zip(fast, slow, strict=True):
        assert psnr(one, two) >= 50


@pytest.mark.parametrize("codec", ["vp9", "mjpeg", "h264", "hevc"])
def test_video_matches_the_reference_decoder_and_shows_the_right_frames(codec):
    decoder = make_decoder("dali", codec, SIZE, "cpu", 2)
    generator = np.random.default_rng(0)
    clips = [
        encoded_clip(codec, num_frames, frames, random_map(generator))
        for num_frames, frames in [(30, [0, 7, 8, 29]), (30, [29, 3, 3, 0]), (1, [0, 0, 0, 0]), (70, [1, 33, 69, 50])]
    ]
    fast, failed = decode(decoder, clips)
    slow, _ = decode(ReferenceDecoder(), clips)
    decoder.close()
    assert not failed
    assert min(psnr(one, two) for one, two in zip(fast, slow, strict=True)) >= 35


@pytest.mark.parametrize("codec", ["vp9", "mjpeg", "h264", "hevc"])
def test_video_shows_the_right_frames(codec):
    """The moving bar tells frames apart: no other frame may fit as well as the right one, in any order."""
    decoder = make_decoder("dali", codec, SIZE, "cpu", 2)
    clip = encoded_clip(codec, 60, [59, 0, 1, 31, 30, 2, 0, 45], affine.scale_and_shift(2, 2, 0, 0))
    (fast,), _ = decode(decoder, [clip])
    whole = encoded_clip(codec, 60, list(range(60)), clip.output_to_packed)
    (slow,), _ = decode(ReferenceDecoder(), [whole])
    decoder.close()
    for frame, wanted in zip(fast, clip.frames_T.tolist(), strict=True):
        assert int(np.argmax([psnr(frame, other) for other in slow])) == wanted


@pytest.mark.parametrize("codec", ["vp9", "mjpeg"])
@pytest.mark.parametrize("geometry", ["warp", "resize"])
def test_video_through_dali_geometry(codec, geometry):
    decoder = DaliDecoder(codec, SIZE, geometry=geometry)
    clips = [encoded_clip(codec, 20, [2, 11, 19], random_map(np.random.default_rng(seed))) for seed in range(4)]
    fast, failed = decode(decoder, clips)
    slow, _ = decode(ReferenceDecoder(), clips)
    assert not failed and min(psnr(one, two) for one, two in zip(fast, slow, strict=True)) >= 35


def test_outside_the_picture_is_black_and_pixels_stay_where_they_are(jpeg_decoder):
    unit = encoded_clip("jpeg", 3, [0, 1, 2], affine.scale_and_shift(1, 1, 0, 0))
    beyond = encoded_clip("jpeg", 3, [0, 1, 2], affine.scale_and_shift(1, 1, 200, -500))
    half_out = encoded_clip("jpeg", 3, [0, 1, 2], affine.scale_and_shift(1, 1, -24, 0))
    frames, _ = decode(jpeg_decoder, [unit, beyond, half_out])
    assert not frames[1].any() and not frames[2, :, :, :23].any()
    np.testing.assert_array_equal(frames[2, :, :, 24:], frames[0, :, :, :24])
    whole, _ = decode(ReferenceDecoder(), [unit])
    np.testing.assert_array_equal(frames[0], whole[0])


def test_reference_resampling_is_what_opencv_resize_does():
    """The half-pixel convention, held against an independent implementation."""
    import cv2

    source = picture(90, 1)
    ours = resample(source, affine.window_map((0, 0, 90, 90), 40), 40)
    theirs = cv2.resize(source, (40, 40), interpolation=cv2.INTER_LINEAR)
    assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= 1


def with_video(clip: EncodedClip, video: np.ndarray, offsets: np.ndarray | None = None) -> EncodedClip:
    return EncodedClip("damaged", video, clip.offsets if offsets is None else offsets, clip.frames_T,
                       clip.output_to_packed, clip.packed_width, clip.packed_height)


def jpeg_damages(clip: EncodedClip) -> dict[str, EncodedClip]:
    zeros, garbage = clip.video.copy(), clip.video.copy()
    (jpegs,) = jpeg_slices([clip])
    first = jpegs.pictures[0].nbytes
    zeros[: first] = 0
    garbage[20 : first - 2] = np.random.default_rng(0).integers(0, 255, first - 22)
    return {
        "shortened": with_video(clip, clip.video[:-100]),
        "zeroed": with_video(clip, zeros),
        "garbage inside": with_video(clip, garbage),
        "empty": with_video(clip, clip.video[:0]),
        "wrong offsets": with_video(clip, clip.video, clip.offsets + 3),
        "fewer frames": with_video(clip, clip.video, clip.offsets[:2]),
    }


def test_jpegs_of_several_clips_are_those_of_each_alone():
    plain = affine.scale_and_shift(2, 2, 0, 0)
    wanted = [[0, 1, 3], [4, 4, 0, 2, 4], [5]]
    clips = [encoded_clip("jpeg", n, frames, plain) for n, frames in zip((4, 5, 6), wanted, strict=True)]
    for clip, jpegs, frames in zip(clips, jpeg_slices(clips), wanted, strict=True):
        assert len(jpegs.pictures) == len(set(frames))
        seen = [bytes(jpegs.pictures[place]) for place in jpegs.places.tolist()]
        assert seen == [clip.video[clip.offsets[frame] : clip.offsets[frame + 1]].tobytes() for frame in frames]
    with pytest.raises(ValueError, match=r"^clip damaged: frame 0 is not a whole JPEG picture"):
        jpeg_slices([clips[0], jpeg_damages(clips[1])["zeroed"], clips[2]])


@pytest.mark.parametrize("name", ["shortened", "zeroed", "garbage inside", "empty", "wrong offsets", "fewer frames"])
def test_damaged_jpegs_are_isolated(jpeg_decoder, name):
    plain = affine.scale_and_shift(2, 2, 0, 0)
    clips = [encoded_clip("jpeg", n, [0, 1, n - 1], plain) for n in (4, 5, 6)]
    clean, _ = decode(jpeg_decoder, clips)
    damaged = jpeg_damages(clips[1])[name]
    frames, failed = decode(jpeg_decoder, [clips[0], damaged, clips[2]])
    assert list(failed) == [1] and failed[1]
    np.testing.assert_array_equal(frames[[0, 2]], clean[[0, 2]])
    again, failed = decode(jpeg_decoder, clips)
    np.testing.assert_array_equal(again, clean)
    assert not failed


@pytest.mark.parametrize("codec", ["vp9", "mjpeg", "h264"])
def test_damaged_videos_are_isolated(codec):
    decoder = make_decoder("dali", codec, SIZE, "cpu", 2)
    plain = affine.scale_and_shift(2, 2, 0, 0)
    clips = [encoded_clip(codec, n, [0, 1, 9], plain) for n in (10, 11, 12)]
    clean, _ = decode(decoder, clips)
    size = clips[1].video.size
    short = encoded_clip(codec, 5, [0, 1, 9], plain)
    damages = {
        "cut": with_video(clips[1], clips[1].video[: size * 2 // 3]),
        "empty": with_video(clips[1], clips[1].video[:0]),
        "garbage": with_video(clips[1], np.random.default_rng(0).integers(0, 255, size, dtype=np.uint8)),
        "too short": with_video(clips[1], short.video),
    }
    for name, damaged in damages.items():
        frames, failed = decode(decoder, [clips[0], damaged, clips[2]])
        assert list(failed) == [1], name
        np.testing.assert_array_equal(frames[[0, 2]], clean[[0, 2]])
    decoder.close()


DAMAGED_ON_A_GPU = """Critical error in pipeline:
Error in MIXED operator `nvidia.dali.fn.decoders.image`,
which was used in the pipeline definition with the following traceback:

  File "graph.py", line 78, in jpeg_graph
    return _resample(fn.decoders.image(data, device=device), geometry, size)

encountered:

nvImageCodec failure: '#3'
Current pipeline object is no longer valid."""


def test_a_damaged_clip_is_distinguished_from_a_failing_gpu(monkeypatch):
    """In the words of DALI 2.4 on an H100."""
    decoder = DaliDecoder("jpeg", SIZE)
    plain = affine.scale_and_shift(2, 2, 0, 0)
    clips = [encoded_clip("jpeg", n, [0, 1, 3], plain) for n in range(4, 10)]
    real, broken, told = decoder._run, [1], [DAMAGED_ON_A_GPU] * 6

    def run(runs):
        if any(clip.row in broken for clip in runs):
            raise RuntimeError(told[runs[0].row])
        decoder.device = torch.device("cpu")  # as it really is
        output = real(runs)
        decoder.device = torch.device("cuda")
        return output

    monkeypatch.setattr(decoder, "_run", run)
    decoder.device = torch.device("cuda")
    _, failed = decode(decoder, clips)
    assert failed == {1: "nvImageCodec failure: '#3'"}
    broken[:] = range(6)
    assert list(decode(decoder, clips[:5])[1]) == list(range(5)), "some damaged clips may come together"
    with pytest.raises(UserError, match=r"^the GPU decodes none of 6 clips \(nvImageCodec failure: '#3'\): a fault of the"):
        decode(decoder, clips)
    told[5] = told[5].replace("#3", "#4")
    assert list(decode(decoder, clips)[1]) == list(range(6)), "they are damaged in several ways"
    told[5] = DAMAGED_ON_A_GPU
    decoder.device = torch.device("cpu")
    assert list(decode(decoder, clips)[1]) == list(range(6))
    decoder.close()


def test_a_run_may_have_a_picture_more_than_the_one_before():
    decoder = DaliDecoder("jpeg", SIZE)
    for frames in ([0, 1, 3], [0, 1, 2, 3]):
        assert not decode(decoder, [encoded_clip("jpeg", 5, frames, affine.scale_and_shift(2, 2, 0, 0))])[1]
    decoder.close()


def test_an_error_while_pictures_are_resampled_ends_the_run(monkeypatch):
    """So nothing is passed on before all of them are done."""
    decoder = DaliDecoder("jpeg", SIZE)
    monkeypatch.setattr(graph_module, "_resample_jobs", Mock(side_effect=cv2.error("out of memory")))
    with pytest.raises(cv2.error, match="out of memory"):
        decode(decoder, [encoded_clip("jpeg", 5, [0, 1, 3], affine.scale_and_shift(2, 2, 0, 0))])
    decoder.close()


@pytest.mark.parametrize(("codec", "kind"), [
    ("jpeg", DaliDecoder), ("vp9", DaliDecoder), ("mjpeg", DaliDecoder), ("h264", PyavDecoder), ("hevc", PyavDecoder),
    ("blocks", BlockClipDecoder),
])
def test_each_codec_has_its_decoder_on_a_cpu_with_as_many_threads_as_are_asked_for(codec, kind):
    decoder: Any = make_decoder("dali", codec, SIZE, "cpu", 3)
    threads = decoder.num_workers if isinstance(decoder, PyavDecoder) else decoder.num_threads
    assert (type(decoder), threads) == (kind, 3)
    decoder.close()


def test_a_gpus_decoder_is_made_as_it_is_asked_for():
    decoder: Any = make_decoder("dali", "jpeg", SIZE, "cuda:2", 3, 0.5, 640)
    asked = decoder.device, decoder.num_threads, decoder.engine_share, decoder.run_pictures, decoder.geometry
    assert asked == (torch.device("cuda:2"), 3, 0.5, 640, "warp")
    decoder.close()


def test_mjpeg_is_refused_on_a_gpu():
    with pytest.raises(UserError, match=r"^mjpeg is not decoded on a GPU: pack as jpeg"):
        make_decoder("dali", "mjpeg", SIZE, "cuda", 2)


def test_many_damaged_clips_do_not_grow_memory(jpeg_decoder):
    import resource

    clips = [encoded_clip("jpeg", n, [0, 1, 3], affine.scale_and_shift(2, 2, 0, 0)) for n in (4, 5)]
    damaged = jpeg_damages(clips[1])["garbage inside"]
    for round_number in range(30):
        _, failed = decode(jpeg_decoder, [clips[0], damaged])
        assert list(failed) == [1]
        if round_number == 9:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 30_000  # KiB


def test_concealed_damage_in_h264_is_found():
    """FFmpeg conceals what it cannot decode and continues: such a clip must not pass for a good one.

    Damage within a picture's coefficients can be a valid stream of other coefficients: no decoder sees all of it.
    """
    clip = encoded_clip("h264", 30, [0, 3, 29], affine.scale_and_shift(2, 2, 0, 0))
    clean, _ = decode(ReferenceDecoder(), [clip])
    reasons, missed = [], 0
    for place in range(40, 61, 2):
        video = clip.video.copy()
        start = len(video) * place // 100
        video[start : start + 40] ^= 0x55
        frames, failed = decode(ReferenceDecoder(), [with_video(clip, video)])
        reasons.append(failed.get(0, ""))
        missed += not failed and not np.array_equal(frames, clean)  # the encoder's own notes may change without harm
    assert sum("frame " in reason and "is damaged" in reason for reason in reasons) >= 3
    assert missed <= 2


def decoder_processes() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "svdata2vec.pipeline.pyavworker" in child.cmdline()]


def test_a_killed_decoder_process_is_replaced():
    decoder = make_decoder("dali", "h264", SIZE, "cpu", 1)
    clips = [encoded_clip("h264", 10, [0, 1, 9], affine.scale_and_shift(2, 2, 0, 0))]
    clean, _ = decode(decoder, clips)
    (process,) = decoder_processes()
    process.kill()
    psutil.wait_procs([process])
    _, failed = decode(decoder, clips)
    assert "process died on it (exit status " in failed[0]
    again, failed = decode(decoder, clips)
    np.testing.assert_array_equal(again, clean)
    decoder.close()
    assert not decoder_processes()


@pytest.mark.parametrize("died_before", [False, True])
def test_a_decoder_process_that_cannot_be_started_is_an_error_and_started_later(
    monkeypatch: pytest.MonkeyPatch, died_before: bool
) -> None:
    """Nothing waits for it forever, and nothing stays open."""
    decoder, clips = PyavDecoder(1), [encoded_clip("h264", 10, [0, 1, 9], affine.scale_and_shift(2, 2, 0, 0))]
    if died_before:
        assert not decode(decoder, clips)[1]
        (process,) = decoder_processes()
        process.kill()
        psutil.wait_procs([process])
        assert "process died" in decode(decoder, clips)[1][0]
    files = psutil.Process().num_fds()
    with monkeypatch.context() as patched:
        patched.setattr(pyavdecoder, "WorkerProcess", Mock(side_effect=OSError(errno.EMFILE, "Too many open files")))
        for _ in range(2):
            with pytest.raises(MachineError, match=r"cannot be started \(Too many open files\): take fewer .*--data\.threads"):
                decode(decoder, clips)
    assert psutil.Process().num_fds() == files
    assert not decode(decoder, clips)[1]
    decoder.close()


def test_memory_that_cannot_be_mapped_does_not_count_as_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, clips = PyavDecoder(1), [encoded_clip("h264", 10, [0, 1, 9], affine.scale_and_shift(2, 2, 0, 0))]
    with monkeypatch.context() as patched:
        patched.setattr(pyavdecoder.mmap, "mmap", Mock(side_effect=OSError(errno.ENOMEM, "Cannot allocate memory")))
        with pytest.raises(OSError, match="Cannot allocate memory"):
            decode(decoder, clips)
    assert not decode(decoder, clips)[1]
    decoder.close()


def test_geometry_is_checked():
    with pytest.raises(ValueError, match="geometry 'opencv' needs device 'cpu'"):
        DaliDecoder("jpeg", SIZE, device="cuda", geometry="opencv")
    with pytest.raises(ValueError, match="decoder is 'magic'"):
        make_decoder("magic", "jpeg", SIZE, "cpu", 1)


@pytest.mark.parametrize("geometry", ["warp", "resize"])
@pytest.mark.parametrize("codec", ["jpeg", "video"])
def test_dali_knows_every_operator_of_the_gpu_graphs(codec: str, geometry: str) -> None:
    """Operators, argument names and devices are checked when a graph is built, which needs no GPU."""
    build = jpeg_graph if codec == "jpeg" else video_graph
    written = build(geometry, SIZE, "mixed", batch_size=2, num_threads=1, device_id=None).serialize()
    decoder = b"decoders__Image" if codec == "jpeg" else b"decoders__Video"
    assert decoder in written and (b"WarpAffine" if geometry == "warp" else b"Resize") in written
    assert b"mixed" in written and b"gpu" in written


def test_the_gpu_decoder_gets_its_share_and_the_largest_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that its engines take their share, and no buffer grows during a run."""
    decode_image, given = graph_module.fn.decoders.image, {}

    def note(data, **options):
        given.update(options)
        return decode_image(data, **options)

    monkeypatch.setattr(graph_module.fn.decoders, "image", note)
    decoder = DaliDecoder("jpeg", SIZE, device="cuda", engine_share=0.75)
    clips = [encoded_clip("jpeg", 4, [0, 1], affine.scale_and_shift(2, 2, 0, 0), packed) for packed in (96, 130, 32)]
    clips[0] = replace(clips[0], packed_height=140)
    runs = [RunClip(row, clip, feed) for row, (clip, feed) in enumerate(zip(clips, decoder.inputs(clips), strict=True))]
    decoder.graph()(*decoder.graph_arguments(runs), batch_size=2, num_threads=1, device_id=None).serialize()
    assert given == {
        "device": "mixed", "hw_decoder_load": 0.75, "preallocate_width_hint": 130, "preallocate_height_hint": 140
    }


class Rows:
    """Rows of frames that claim to be on a GPU, and record when they are filled."""

    is_cuda, device = True, torch.device("cuda", 0)

    def __init__(self, frames: torch.Tensor, events: list[str]) -> None:
        self.frames, self.shape, self.events = frames, frames.shape, events

    def __setitem__(self, rows: slice | list[int], frames: torch.Tensor) -> None:
        self.events.append("copy")
        self.frames[rows] = frames


@pytest.mark.parametrize("places", [[0, 1], [1, 0], [0, 0]])
@pytest.mark.parametrize("rows", [[0, 1], [0, 2]])
def test_gpu_outputs_are_copied_before_dali_reuses_them(
    rows: list[int], places: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """DALI's next run may write to the same memory, on its own stream: only the copy's stream is waited for."""
    events: list[str] = []

    def current(device: torch.device) -> SimpleNamespace:
        return SimpleNamespace(synchronize=lambda: events.append(f"wait for {device}"))

    monkeypatch.setattr(torch.cuda, "current_stream", current)
    decoder = DaliDecoder("jpeg", 2, geometry="warp")
    clip = encoded_clip("jpeg", 4, places, affine.scale_and_shift(2, 2, 0, 0))
    runs = [RunClip(row, clip, feed) for row, feed in zip(rows, decoder.inputs([clip, clip]), strict=True)]
    pictures = torch.arange(2 * len({*places}), dtype=torch.uint8)[:, None, None, None].expand(-1, 2, 2, 3).contiguous()
    out = Rows(torch.full((3, 2, 2, 2, 3), 99, dtype=torch.uint8), events)
    decoder.place(runs, SimpleNamespace(as_tensor=lambda: pictures), out)
    decoder.close()
    assert events == ["copy", "wait for cuda:0"]
    for number, row in enumerate(rows):
        assert out.frames[row, :, 0, 0, 0].tolist() == [number * len({*places}) + place for place in runs[0].feed.places]
