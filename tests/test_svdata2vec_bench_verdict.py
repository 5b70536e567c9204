"""The verdict of `bench run` names the bottleneck, doubtful figures, and only changes that can help."""

import dataclasses
import itertools
import re
from typing import Any

import pytest

from svdata2vec.bench.advice import Surroundings
from svdata2vec.bench.limits import Rates
from svdata2vec.bench.verdict import doubts, judge
from svdata2vec.config.schema import PretrainConfig

DEFAULT = PretrainConfig()
CPU, GPU = Surroundings("cpu", 8, "h264", False), Surroundings("cuda", 8, "jpeg", False)
JPEG_CPU = Surroundings("cpu", 8, "jpeg", False)
BLOCKS_GPU = Surroundings("cuda", 8, "blocks", False, luma_bits=3)
RATES = (
    Rates(10, 900, 10, 500, 9.9), Rates(10, 12, 9, 500, 8.9), Rates(900, 10, 10, 500, 9.9), Rates(900, 120, 110, 100, 52),
    Rates(90, 80, 50, 500, 49), Rates(900, 800, 700, 100, 98), Rates(900, 800, 700, 600, 300), Rates(900, 800, 110, 100, 40),
)


def test_figures_that_cannot_be_trusted_are_named() -> None:
    def row(low: float, middle: float, high: float) -> dict[str, Any]:
        return {"q20": low, "clips_per_s": middle, "q80": high}

    quiet = {"data": row(99, 100, 101), "model": row(49, 50, 51), "train": row(47, 48, 50)}
    assert doubts(quiet, {}) == []
    beyond = {"read": {"efficiency": 7.5, "limited_by": "tars read in order"}, "model": {"efficiency": None, "limited_by": ""},
              "data": {"efficiency": 1.05, "limited_by": "read alone"}}
    assert doubts(quiet, beyond) == [
        "doubtful: read reaches 7.5 times its limit (tars read in order), which is therefore left out"
    ]
    (spread,) = doubts({**quiet, "model": row(30, 50, 54)}, {})
    assert "the rounds of model go from 30.0 to 54.0" in spread
    (changed,) = doubts({**quiet, "train": row(70, 72, 73)}, {})
    assert "train (72.0 clips/s) is faster than its slower half (51.0)" in changed


@pytest.mark.parametrize(
    ("rates", "where", "bound", "advice"),
    [
        (Rates(10, 900, 10, 500, 9.9), dataclasses.replace(GPU, storage=2000.0), "read",
         "could give 2000.0, reading and planning are the limit: read in more processes, --data.readers 2"),
        (Rates(10, 900, 10, 500, 9.9), dataclasses.replace(GPU, storage=12.0), "read", "the storage is the limit: keep the"),
        (Rates(10, 900, 10, 500, 9.9), dataclasses.replace(GPU, remote=True), "read", "the network is the limit: copy"),
        (Rates(10, 900, 10, 500, 9.9), dataclasses.replace(JPEG_CPU, storage=12.0), "read", "in memory, or pack as vp9"),
        (Rates(900, 10, 10, 500, 9.9), GPU, "decode", "try `svdata2vec bench data --tune`, or pack pictures smaller than"),
        (Rates(900, 10, 10, 500, 9.9), dataclasses.replace(GPU, storage=40.0), "decode", "--size`), or pack as blocks, which"),
        (Rates(900, 10, 10, 500, 9.9), dataclasses.replace(CPU, codec="blocks"), "decode", "a GPU, which reads blocks undec"),
        (Rates(900, 10, 10, 500, 9.9), BLOCKS_GPU, "upload",
         "upload alone reaches 10.0; try pack with 2 bits (`shard KIND --luma-bits 2`), or pack pictures smaller than 320 px"),
        (Rates(900, 10, 10, 500, 9.9), dataclasses.replace(BLOCKS_GPU, luma_bits=2, packed_size=224), "upload",
         "upload alone reaches 10.0; the upload is this machine's limit"),
        (Rates(760, 835, 509, 1029, 415), BLOCKS_GPU, "loader", "read alone reaches 760.0, upload alone 835.0, both"),
        (Rates(900, 10, 10, 500, 9.9), CPU, "decode", "pack as jpeg, which decodes the wanted frames only, or --data"),
        (Rates(900, 10, 10, 500, 9.9), CPU, "decode", "--data.threads 8, or a GPU, which decodes with NVDEC"),
        (Rates(900, 800, 700, 100, 98), GPU, "model", "--run.precision bf16, or --run.launch graph"),
        (Rates(900, 120, 110, 100, 52), CPU, "overlap", "the same 8 cores"),
        (Rates(760, 835, 509, 1029, 415), GPU, "loader",
         "both together 509.0; its threads share one Python interpreter: read in more processes, --data.readers 2"),
        (Rates(90, 80, 50, 500, 49), CPU, "loader", "its threads share the same 8 cores"),
        (Rates(900, 800, 700, 600, 300), GPU, "overlap", "share one interpreter: --run.launch graph with --model.fused-blocks"),
        (Rates(10, 900, 10, 500, 9.9), dataclasses.replace(GPU, storage=2000.0, readers=4), "read", "--data.readers 6"),
    ],
)
def test_the_verdict_names_the_bound_and_what_to_change(rates: Rates, where: Surroundings, bound: str, advice: str) -> None:
    verdict = judge(rates, 0.5, DEFAULT, where)
    assert verdict.bound == bound
    assert verdict.text.startswith(f"{bound}-bound: train {rates.train:.1f}") and advice in verdict.text


def test_advice_for_runs_in_graph_mode() -> None:
    """Fused blocks, and JPEGs that wait for their decoder beside the step: as an H100 had them."""
    rates, where = Rates(7775, 940, 681, 1338, 503), Surroundings("cuda", 16, "jpeg", True, storage=5000.0, readers=4)
    run = dataclasses.replace(DEFAULT.run, launch="graph")
    plain = dataclasses.replace(DEFAULT, run=run)
    fused = dataclasses.replace(plain, model=dataclasses.replace(DEFAULT.model, fused_blocks=True))
    assert "pack as blocks, which need no decoder; or look for waits" in judge(rates, 0.4, fused, where).text
    slower = Rates(7775, 940, 900, 500, 498)
    assert "go faster try --model.fused-blocks, or a larger" in judge(slower, 0.0, plain, where).text
    assert "--model.fused-blocks" not in judge(slower, 0.0, fused, where).text


def configured(threads: int | None, readers: int, launch: Any, other: bool) -> PretrainConfig:
    """The default settings with these; `other`: tuned for engines, frames of a clip left out."""
    tuned: dict[str, Any] = {"engine_share": 0.75, "run_pictures": 900} if other else {"engine_share": 1.0}
    data = dataclasses.replace(DEFAULT.data, threads=threads, readers=readers, **tuned)
    run = dataclasses.replace(DEFAULT.run, launch=launch)
    return dataclasses.replace(DEFAULT, data=data, run=run, encode="kept_frames" if other else "all_frames")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("codec", ["jpeg", "blocks", "vp9", "h264", "mjpeg"])
def test_nothing_is_advised_that_cannot_help(device: str, codec: str) -> None:
    """Over all combinations of rates, cores and settings."""
    configs = [
        (other, configured(threads, readers, launch, other))
        for threads, readers, launch, other in itertools.product((None, 1, 8, 16), (0, 6), ("eager", "graph"), (False, True))
    ]
    for rates, cores, storage, (other, config) in itertools.product(RATES, (1, 8), (None, 12.0, 5000.0), configs):
        data, launch, threads, readers = config.data, config.run.launch, config.data.threads, config.data.readers
        where = Surroundings(
            device, cores, codec, other, 224 if other else 320, storage, remote=storage is None, readers=readers
        )
        verdict = judge(rates, 0.5, config, where)
        text = verdict.text
        assert "prefetch" not in text
        assert not ("decod" in text and codec == "blocks" and device == "cuda"), "the step decodes"
        more_threads = re.search(r"--data\.threads (\d+)", text)
        assert not more_threads or (int(more_threads[1]) <= cores and int(more_threads[1]) > (threads or 0))
        if device == "cuda" and data.engine_share == 1:
            assert not more_threads, "engines need two threads"
        more_readers = re.search(r"--data\.readers (\d+)", text)
        assert not more_readers or readers < int(more_readers[1]) < cores
        assert not (more_readers and verdict.bound == "read" and storage != 5000.0), "storage or network is the limit"
        fewer = "fewer --data.threads" in text
        assert not fewer or ((threads or 0) > 1 and rates.data > rates.model)
        assert ("pack as jpeg" in text) <= (codec in ("vp9", "h264", "mjpeg"))
        assert ("vp9" in text) <= (codec == "jpeg" and device == "cpu")
        assert ("pack as blocks" in text) <= (codec == "jpeg" and device == "cuda" and storage is not None)
        assert not ("pack as blocks" in text and (storage or 0) < 3 * rates.decode), "the disk would be the limit"
        assert ("nvJPEG" in text) <= (codec == "jpeg") and ("NVDEC" in text) <= (codec in ("vp9", "h264"))
        assert ("a GPU" in text) == ("a GPU, with shards of another codec" in text) or codec != "mjpeg", "it refuses mjpeg"
        assert not ("vp9" in text and rates.decode < 2.5 * rates.read)
        assert ("bench data --tune" in text) <= (verdict.bound == "decode" and device == "cuda" and not other)
        assert ("smaller than" in text) <= (not other) and ("kept_frames" in text) <= (config.encode == "all_frames")
        assert ("a GPU" in text) <= (device == "cpu") and ("bf16" in text) <= (not other)
        assert ("--run.launch graph" in text) <= (launch == "eager" and device == "cuda")
        assert ("--model.fused-blocks" in text) <= (device == "cuda"), "on a CPU they are the reference"


def test_nothing_is_advised_that_would_be_refused() -> None:
    compiled, graph = (
        dataclasses.replace(DEFAULT, run=dataclasses.replace(DEFAULT.run, launch=launch)) for launch in ("compiled", "graph")
    )
    for rates in (Rates(900, 800, 700, 100, 98), Rates(900, 800, 700, 600, 300)):
        assert "--run.launch graph" in judge(rates, 0.5, DEFAULT, GPU).text
        assert "--run.launch graph" not in judge(rates, 0.5, compiled, GPU).text
        assert "torchrun" not in judge(rates, 0.5, graph, GPU).text
