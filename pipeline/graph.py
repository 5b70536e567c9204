"""DALI: encoded bytes in, uint8 frames out, no state. The only file that imports it (pipeline/README.md, "DALI").

A graph has no reader and no random operator; every run is fed from outside. On the CPU DALI decodes (only the sampled window
of a JPEG) and OpenCV resamples in threads; on a GPU decoding and resampling are one graph. B clips, T sampled
frames, S output size.
"""

import itertools
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from svdata2vec.pipeline import affine
from svdata2vec.pipeline.faults import machine_fault, reason
from svdata2vec.pipeline.frames import EncodedClip, jpeg_slices
from svdata2vec.pipeline.resampling import Resampler
from svdata2vec.shards.errors import MachineError, UserError
from svdata2vec.shards.reading.decode import cut_off_reason

try:
    import nvidia.dali.fn as fn
    from nvidia.dali import Pipeline, pipeline_def, types
    from nvidia.dali.tensors import TensorCPU, TensorListCPU
except ImportError as error:
    raise UserError(
        f"NVIDIA DALI cannot be imported ({error}); pip install 'svdata2vec[cuda13]' (also for CPU-only machines) or "
        "'svdata2vec[cuda12]', or take the slow decoder, --data.decoder reference"
    ) from error

log = logging.getLogger(__name__)

UINT8, INT32, FLOAT = types.DALIDataType.UINT8, types.DALIDataType.INT32, types.DALIDataType.FLOAT
Geometry = Literal["opencv", "warp", "resize"]
# resampler, picture, x and y of its first pixel in the packed picture, where to write
Job = tuple[Resampler, NDArray[np.uint8], int, int, list[NDArray[np.uint8]]]
FRAMES_PER_RUN = {"cpu": 256, "cuda": 1280}  # bounds memory: 75 or 375 MiB of decoded 320-px pictures per run
MORE_TRIES = 2  # for a clip that ran out of memory alone while others did not: memory may have been short for a moment
MANY = 6  # clips of one run that fail with the same message: no coincidence


class Feed(NamedTuple):
    """A clip's inputs for the graph.

    Attributes:
        data: its samples.
        same: the inputs that are the same for all of its samples.
        places: (T,), the decoded picture that each frame shows.
        frames: numbers of the wanted frames of a video, which is one sample.
    """

    data: Sequence[NDArray[np.uint8] | memoryview]
    same: dict[str, NDArray[Any]]
    places: NDArray[np.int64]
    frames: NDArray[np.int32] | None = None


class RunClip(NamedTuple):
    """A clip of one DALI run: its row in the output, and its inputs."""

    row: int
    clip: EncodedClip
    feed: Feed


def _input(name: str, dtype: Any, ndim: int) -> Any:
    return fn.external_source(name=name, dtype=dtype, ndim=ndim, batch=True, no_copy=True)


def _resample(frames: Any, geometry: Geometry, size: int) -> Any:
    """Resample packed pictures or sequences to size x size."""
    if geometry == "warp":  # DALI's warp takes continuous coordinates: the map as it is
        matrix = _input("matrix", FLOAT, 2)
        return fn.warp_affine(frames, matrix=matrix, size=(size, size), fill_value=0, inverse_map=True)
    start, stop = _input("box_start", INT32, 1), _input("box_stop", INT32, 1)
    boxed = fn.slice(frames, start=start, end=stop, axis_names="HW", out_of_bounds_policy="pad", fill_values=0)
    roi_start, roi_stop = _input("roi_start", FLOAT, 1), _input("roi_stop", FLOAT, 1)
    return fn.resize(boxed, size=(size, size), antialias=False, roi_start=roi_start, roi_end=roi_stop)


@pipeline_def
def jpeg_graph(geometry: Geometry, size: int, device: str, share: float = 1.0, width: int = 0, height: int = 0) -> Any:
    """One JPEG per sample -> its sampled window ("opencv") or its size x size output. device: "cpu" or "mixed" (nvJPEG).

    share: part of the pictures that the GPU's engines decode. width, height: size of the largest picture, for which memory is
    preallocated (the decoder's other buffers, 16 and 8 MB per thread by default, are larger than any packed picture needs).
    """
    data = _input("data", UINT8, 1)
    if geometry == "opencv":
        anchor, shape = _input("anchor", INT32, 1), _input("shape", INT32, 1)
        return fn.decoders.image_slice(
            data, anchor, shape, axis_names="HW", normalized_anchor=False, normalized_shape=False, device="cpu"
        )
    decoded = fn.decoders.image(
        data, device=device, hw_decoder_load=share, preallocate_width_hint=width, preallocate_height_hint=height
    )
    return _resample(decoded, geometry, size)


@pipeline_def
def video_graph(geometry: Geometry, size: int, device: str) -> Any:
    """One video per sample -> its wanted frames, whole ("opencv") or size x size. device: "cpu" or "mixed" (NVDEC)."""
    data, frames = _input("data", UINT8, 1), _input("frames", INT32, 1)
    decoded = fn.decoders.video(data, frames=frames, pad_mode="none", device=device)
    return decoded if geometry == "opencv" else _resample(decoded, geometry, size)


class DaliDecoder:
    """`FrameDecoder` on DALI for concatenated JPEGs (`codec="jpeg"`) and video containers (any other codec).

    Args:
        size: side of the output in pixels.
        device: "cpu" or "cuda[:n]" (nvJPEG, NVDEC).
        geometry: "opencv" (CPU only) | "warp" (DALI warp_affine) | "resize" (DALI slice with black padding + resize of a
            window); None = the fastest measured: "opencv" on the CPU, else "warp".
        engine_share: share of JPEGs that the GPU's engines decode. If its CUDA cores decode the rest (DALI's default is 0.65),
            a picture's last bits depend on its place in the batch (pipeline/README.md, "The hand-over to the GPU").
        run_pictures: pictures decoded at once; None: `FRAMES_PER_RUN`.
    """

    def __init__(
        self, codec: str, size: int, *, device: str = "cpu", num_threads: int = 2, geometry: Geometry | None = None,
        engine_share: float = 1.0, run_pictures: int | None = None,
    ) -> None:
        self.device = torch.device(device)
        self.geometry: Geometry = geometry or ("opencv" if self.device.type == "cpu" else "warp")
        if self.geometry == "opencv" and self.device.type != "cpu":
            raise ValueError(f"geometry 'opencv' needs device 'cpu', not {device!r}: use 'warp' or 'resize'")
        self.jpeg, self.size, self.num_threads = codec == "jpeg", size, num_threads
        self.engine_share, self.run_pictures = engine_share, run_pictures or FRAMES_PER_RUN[self.device.type]
        cv2.setNumThreads(1)  # else OpenCV's own threads compete with this object's
        self._pipeline: Any = None
        self._fed: dict[str, Any] = {}  # not copied by DALI, whose GPU may read it after `run` has returned
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="svdata2vec-resample")

    def decode(self, clips: Sequence[EncodedClip], out_BTSS3: Tensor) -> dict[int, str]:
        """Fill `out_BTSS3` (B, T, size, size, 3) uint8; returns clip number -> reason of those that could not be decoded."""
        good, failed = self._ready(dict(enumerate(clips)))
        longest = max((len(clip.frames_T) for clip in clips), default=1)
        step = self.clips_per_run(longest)
        for start in range(0, len(good), step):
            failed.update(self._decode_run(good[start : start + step], out_BTSS3))
        return failed

    def close(self) -> None:
        self._pipeline = None
        self._fed = {}
        self._pool.shutdown()

    def clips_per_run(self, num_frames: int) -> int:
        """How many clips of `num_frames` frames DALI decodes at once."""
        return max(1, self.run_pictures // num_frames)

    def inputs(self, clips: Sequence[EncodedClip]) -> list[Feed]:
        """The graph's inputs for each clip. Raises ValueError if DALI would silently decode one of them wrongly."""
        if self.jpeg:
            return [Feed(jpegs.pictures, self._same(clip), jpegs.places)
                    for clip, jpegs in zip(clips, jpeg_slices(clips), strict=True)]
        for clip in clips:
            if (why := cut_off_reason(clip.video)) is not None:
                raise ValueError(why)
        return [Feed([clip.video], self._same(clip), np.arange(len(clip.frames_T)), clip.frames_T.astype(np.int32))
                for clip in clips]

    def _ready(self, clips: dict[int, EncodedClip]) -> tuple[list[RunClip], dict[int, str]]:
        """The clips that can be decoded, and row -> reason of the others; if one fails, each is checked alone."""
        try:
            feeds = self.inputs(list(clips.values())) if clips else []
        except ValueError as error:
            if len(clips) == 1:
                return [], {row: str(error) for row in clips}
            alone = [self._ready({row: clip}) for row, clip in clips.items()]
            return [run for good, _ in alone for run in good], {row: why for _, bad in alone for row, why in bad.items()}
        return [RunClip(row, clip, feed) for (row, clip), feed in zip(clips.items(), feeds, strict=True)], {}

    def _same(self, clip: EncodedClip) -> dict[str, NDArray[Any]]:
        """The inputs that the geometry needs for a clip."""
        if self.geometry == "warp":
            return {"matrix": clip.output_to_packed.astype(np.float32)}
        if self.geometry == "resize":
            return _window_inputs(clip, self.size)
        if not self.jpeg:
            return {}
        x1, y1, x2, y2 = Resampler(clip.output_to_packed, self.size).touched(clip.packed_width, clip.packed_height)
        return {"anchor": np.array([y1, x1], np.int32), "shape": np.array([y2 - y1, x2 - x1], np.int32)}

    def place(self, clips: list[RunClip], output: Any, out_BTSS3: Tensor) -> None:
        """Write one run's output into its rows of `out_BTSS3`."""
        if self.geometry == "opencv":
            self._resample(clips, output, out_BTSS3)
        else:
            _copy(clips, output, out_BTSS3)

    def _decode_run(self, clips: list[RunClip], out_BTSS3: Tensor) -> dict[int, str]:
        """One run; if it fails, a run per clip, to lose only damaged ones. Raises like `_attempt` and `_only_damage`."""
        why = self._attempt(clips, out_BTSS3)
        if why is None:
            return {}
        failed = {clips[0].row: why}
        if len(clips) > 1:
            log.warning("a run of %d clips failed in DALI (%s); trying them one by one", len(clips), why)
            failed = self._one_by_one(clips, out_BTSS3)
            for _ in range(MORE_TRIES if len(failed) < len(clips) else 0):
                short = [clip for clip in clips if _lacked_memory(failed.get(clip.row))]
                failed = {row: told for row, told in failed.items() if not _lacked_memory(told)}
                failed |= self._one_by_one(short, out_BTSS3)
        return self._only_damage(clips, why, failed)

    def _one_by_one(self, clips: list[RunClip], out_BTSS3: Tensor) -> dict[int, str]:
        """A run per clip; returns row -> reason of those that could not be decoded."""
        alone = ((clip.row, self._attempt([clip], out_BTSS3)) for clip in clips)
        return {row: why for row, why in alone if why is not None}

    def _only_damage(self, clips: list[RunClip], why: str, failed: dict[int, str]) -> dict[int, str]:
        """Return `failed`, the clips that failed alone after all together did; raise UserError if no clip is to blame."""
        words = set(failed.values()) or {why}
        faults = {fault.kind: fault for fault in map(machine_fault, words) if fault is not None}
        everywhere = len(failed) in (0, len(clips))  # a single clip of many that needs too much memory has a damaged header
        fault = faults.get("format") or (faults.get("memory") if everywhere else None)
        if fault is not None:
            named = [clip.clip.key for clip in clips if failed.get(clip.row) == fault.reason]
            raise fault.error(f"clip {named[0]}" if len(named) == 1 else f"{len(clips)} clips")
        if self.device.type == "cuda" and MANY <= len(clips) == len(failed) and len(words) == 1:
            raise MachineError(
                f"the GPU decodes none of {len(clips)} clips ({failed[clips[0].row]}): a fault of the machine, unless "
                "`svdata2vec verify` finds them damaged; look at the driver and the GPU's memory (`bash tools/gpu_check.sh`), "
                "or use --run.device cpu"
            )
        return failed

    def _attempt(self, clips: list[RunClip], out_BTSS3: Tensor) -> str | None:
        """One run into its rows; returns why it failed. MachineError for a fault that would make the next run fail too."""
        try:
            output = self._run(clips)
        except (RuntimeError, MemoryError) as error:
            self._pipeline = None  # DALI cannot use it again after an error
            why = reason(error)
            fault = machine_fault(why)
            if fault is not None and fault.lasting:
                raise fault.error(f"{len(clips)} clips") from error
            return why
        self.place(clips, output, out_BTSS3)
        return None

    def _run(self, clips: list[RunClip]) -> Any:
        """DALI's output. Raises RuntimeError if a clip is damaged."""
        feeds = [clip.feed for clip in clips]
        counts = [len(feed.data) for feed in feeds]
        # No copy, and cheaper than a list of arrays.
        tensors = list(map(TensorCPU, itertools.chain.from_iterable(feed.data for feed in feeds)))
        self._fed = {"data": TensorListCPU(tensors, contiguous=False)}  # type: ignore[call-overload]  # not in DALI's stubs
        if feeds[0].frames is not None:
            self._fed["frames"] = [feed.frames for feed in feeds]
        for name in feeds[0].same:  # one dense array is fed much faster than a list of small ones
            self._fed[name] = np.repeat(np.stack([feed.same[name] for feed in feeds]), counts, axis=0)
        # For JPEGs as many samples as the clips can have: a few more in the next run must not require another graph.
        pipeline = self._built(clips, sum(len(clip.clip.frames_T) if self.jpeg else 1 for clip in clips))
        for name, fed in self._fed.items():
            pipeline.feed_input(name, fed)
        output, *_ = pipeline.run()
        return output

    def graph(self) -> Callable[..., Pipeline]:
        """The function that builds the graph from `graph_arguments`."""
        return jpeg_graph if self.jpeg else video_graph

    def graph_arguments(self, clips: list[RunClip]) -> tuple[Any, ...]:
        """Arguments of `graph`, for clips of one packed size."""
        if self.device.type == "cpu":
            return self.geometry, self.size, "cpu"
        packed = [max(getattr(run.clip, name) for run in clips) for name in ("packed_width", "packed_height")]
        return self.geometry, self.size, "mixed", *((self.engine_share, *packed) if self.jpeg else ())

    def executor(self) -> dict[str, bool]:
        """Options of DALI's executor. On a CPU nothing overlaps: the simplest, which keeps its output's memory, is cheapest."""
        simplest = dict.fromkeys(("exec_dynamic", "exec_async", "exec_pipelined"), False)
        return simplest if self.device.type == "cpu" else {}

    def _built(self, clips: list[RunClip], num_samples: int) -> Any:
        if self._pipeline is None or self._pipeline.max_batch_size < num_samples:
            on_gpu = self.device.type == "cuda"
            self._pipeline = self.graph()(
                *self.graph_arguments(clips),
                batch_size=num_samples,
                num_threads=self.num_threads,
                device_id=(self.device.index or 0) if on_gpu else None,
                prefetch_queue_depth=1,
                **self.executor(),
            )
            self._pipeline.build()
        return self._pipeline

    def _resample(self, clips: list[RunClip], output: Any, out_BTSS3: Tensor) -> None:
        """OpenCV geometry of one run's pictures, spread over threads (OpenCV releases the interpreter lock)."""
        out = out_BTSS3.numpy()
        jobs: list[Job] = []
        sample = 0
        for run in clips:
            resampler = Resampler(run.clip.output_to_packed, self.size)
            top, left = run.feed.same["anchor"].tolist() if self.jpeg else (0, 0)
            if self.jpeg:
                pictures = [np.asarray(output[sample + d]) for d in range(len(run.feed.data))]
            else:
                pictures = list(np.asarray(output[sample]))
            sample += len(run.feed.data)
            rows: list[list[NDArray[np.uint8]]] = [[] for _ in pictures]
            for t, place in enumerate(run.feed.places.tolist()):
                rows[place].append(out[run.row, t])
            jobs += [(resampler, picture, left, top, rows[d]) for d, picture in enumerate(pictures)]
        parts = [jobs[k :: self.num_threads] for k in range(self.num_threads)]
        list(self._pool.map(_resample_jobs, parts))


@pipeline_def
def input_graph(*_: Any) -> Any:
    """Takes the inputs of `jpeg_graph` with geometry "warp", and returns them."""
    return _input("data", UINT8, 1), _input("matrix", FLOAT, 2)


class InputOnlyDecoder(DaliDecoder):
    """The host's part of decoding JPEGs on a GPU, without a GPU: nothing is decoded, and frames have arbitrary content."""

    def __init__(self, size: int) -> None:
        super().__init__("jpeg", size, geometry="warp", num_threads=1, run_pictures=FRAMES_PER_RUN["cuda"])

    def graph(self) -> Callable[..., Pipeline]:
        return input_graph

    def executor(self) -> dict[str, bool]:
        """The options for a GPU."""
        return {}

    def place(self, clips: list[RunClip], output: Any, out_BTSS3: Tensor) -> None:
        """Nothing to write."""


def _copy(clips: list[RunClip], output: Any, out_BTSS3: Tensor) -> None:
    """Dense output of a run into its rows, complete when this returns (DALI may reuse its memory then)."""
    frames = torch.from_dlpack(output.as_tensor()).flatten(0, -4)
    starts = itertools.accumulate((1 + int(clip.feed.places.max()) for clip in clips), initial=0)
    sources = np.concatenate([start + clip.feed.places for start, clip in zip(starts, clips, strict=False)])
    if not np.array_equal(sources, np.arange(len(frames))):  # some frames are repeated or wanted in another order
        frames = frames.index_select(0, torch.from_numpy(sources).to(frames.device))
    frames = frames.view(len(clips), *out_BTSS3.shape[1:])
    first, last = clips[0].row, clips[-1].row
    if last - first + 1 == len(clips):
        out_BTSS3[first : last + 1] = frames
    else:
        out_BTSS3[[clip.row for clip in clips]] = frames
    if out_BTSS3.is_cuda:
        torch.cuda.current_stream(out_BTSS3.device).synchronize()


def _lacked_memory(why: str | None) -> bool:
    fault = machine_fault(why) if why is not None else None
    return fault is not None and fault.kind == "memory"


def _resample_jobs(jobs: list[Job]) -> None:
    for resampler, picture, left, top, (out_SS3, *others) in jobs:
        resampler(picture, left, top, out_SS3)
        for other_SS3 in others:
            other_SS3[:] = out_SS3


def _window_inputs(clip: EncodedClip, size: int) -> dict[str, NDArray[Any]]:
    """The map in the form of DALI's slice + resize: an int box with room for the taps, a window inside it (y before x)."""
    corners_xy = affine.corners(clip.output_to_packed, size)
    low, high = np.floor(corners_xy.min(0)) - 1, np.ceil(corners_xy.max(0)) + 1
    (start_x, start_y), (stop_x, stop_y) = corners_xy - low
    return {
        "box_start": low[::-1].astype(np.int32),
        "box_stop": high[::-1].astype(np.int32),
        "roi_start": np.array([start_y, start_x], np.float32),
        "roi_stop": np.array([stop_y, stop_x], np.float32),
    }

