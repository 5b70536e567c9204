"""What to change, by the stage that bounds a run: only what can help it there. Pure functions.

Each piece of advice is given only where it can help: more threads only where cores are idle and decoding waits for them,
processes that read only where storage is not the limit, another codec only where it is faster. Deeper prefetching never helps a
stage that is too slow.
"""

from dataclasses import dataclass
from typing import Literal

from svdata2vec.bench.limits import Rates
from svdata2vec.config.schema import PretrainConfig
from svdata2vec.shards.reading.sample import BY_FRAME
from svdata2vec.training.launch import launch_obstacles

STORAGE_BOUND = 0.5  # share of what the storage gives in order, from which on it is the limit of reading
VP9_SLOWER = 2.5  # than jpeg, decoding on a CPU (tools/results/bench_data.json)
BLOCKS_LARGER = 3.6  # than jpeg, 3 and 2 bits, bytes of a clip (tools/results/packing_real_h264.json)
SPARE = 1.3  # a loader that is so much faster than the model has time to spare
ON_A_GPU = {"jpeg": "decodes with nvJPEG", "blocks": "reads blocks undecoded"}  # films by NVDEC


@dataclass(frozen=True)
class Surroundings:
    """What the advice depends on.

    Attributes:
        cores: that this process may use.
        bf16: not ruled out by the settings; a GPU that has none computes in float32 all the same.
        packed_size: side of the stored pictures, in pixels.
        storage: clips per second of the tars read in order; None behind a network.
        luma_bits: of a pixel's brightness, codec blocks alone.
        readers: processes that read clips, 0 = a thread does it.
    """

    device: str
    cores: int
    codec: str
    bf16: bool
    packed_size: int = 320
    storage: float | None = None
    remote: bool = False
    luma_bits: int | None = None
    readers: int = 0

    @property
    def second_half(self) -> Literal["decode", "upload"]:
        """What the loader does with what it read; blocks go to a GPU as they are, and the step decodes them."""
        return "upload" if self.device != "cpu" and self.codec == "blocks" else "decode"


def advise_read(rates: Rates, config: PretrainConfig, where: Surroundings) -> str:
    """For a run that waits for reading."""
    if where.remote:
        whole = ", or fetch whole tars ahead, --data.remote-fetch shards" if config.data.remote_fetch == "clips" else ""
        return f"the network is the limit: copy the shards to a local disk{whole}"
    if where.storage is not None and rates.read < STORAGE_BOUND * where.storage:
        more = _more_readers(where, ": ")
        return f"the storage could give {where.storage:.1f}, reading and planning are the limit{more}"
    smaller = ""
    if where.codec == "jpeg" and where.device == "cpu" and rates.decode > VP9_SLOWER * rates.read:
        smaller = ", or pack as vp9 (a tenth of jpeg's bytes)"  # on a GPU it would only move the bound to the decoder
    return f"the storage is the limit: keep the shards on a faster disk or in memory{smaller}"


def advise_loader(where: Surroundings) -> str:
    """For a run whose loader is slower than both its halves."""
    if where.device == "cpu":
        return f"its threads share the same {where.cores} cores"
    return f"its threads share one Python interpreter{_more_readers(where, ': ')}"


def advise_decode(rates: Rates, config: PretrainConfig, where: Surroundings) -> str:
    """For a run that waits for decoding, or for the upload."""
    if where.second_half == "upload":
        return _advise_upload(config, where)
    data, words = config.data, []
    on_cpu, alone = where.device == "cpu", where.codec in BY_FRAME
    if data.decoder == "reference":
        words.append("--data.decoder dali")
    if not alone:
        words.append("pack as jpeg, which decodes the wanted frames only")
    # A GPU's engines decode all that they can with two threads; a share of its cores is decoded by the host's threads.
    if (data.threads or 0) < where.cores and (on_cpu or data.engine_share not in (None, 1.0)):
        words.append(f"--data.threads {where.cores}")
    if not on_cpu and where.codec == "jpeg" and data.run_pictures is None:
        words.append("`svdata2vec bench data --tune`")
    if alone and where.packed_size > config.data.size:
        words.append(_smaller(where))
    if on_cpu:
        words += [f"a GPU, which {ON_A_GPU.get(where.codec, 'decodes with NVDEC')}"] if where.codec != "mjpeg" else []
    elif _blocks_would_help(rates, where):
        words.append("pack as blocks, which need no decoder")
    return f"try {', or '.join(words)}" if words else "the decoder is this machine's limit"


def _advise_upload(config: PretrainConfig, where: Surroundings) -> str:
    words = ["pack with 2 bits (`shard KIND --luma-bits 2`)"] if where.luma_bits == 3 else []
    if where.packed_size > config.data.size:
        words.append(_smaller(where))
    return f"try {', or '.join(words)}" if words else "the upload is this machine's limit"


def _smaller(where: Surroundings) -> str:
    return f"pack pictures smaller than {where.packed_size} px (`shard KIND --size`)"


def advise_model(config: PretrainConfig, where: Surroundings) -> str:
    """For a run whose step is the limit."""
    words = []
    if config.encode == "all_frames":
        words.append("--encode kept_frames (a third of the work)")
    if config.model.checkpoint_activations:
        words.append("--model.no-checkpoint-activations, if memory allows")
    if where.device == "cpu":
        words.append(_a_gpu(where))
    else:
        if not where.bf16:
            words.append("--run.precision bf16")
        words += _launch(config, where)
        words.append("a larger --run.batch-size (`svdata2vec bench batch` says how large)")
        words += ["more GPUs (torchrun)"] if config.run.launch != "graph" else []
    return f"this is where the time should go; to go faster try {', or '.join(words)}"


def advise_overlap(rates: Rates, config: PretrainConfig, where: Surroundings) -> str:
    """For a run that is slower than loader and model alone."""
    if where.device == "cpu":
        fewer, threads = "", config.data.threads or 1
        if threads > 1 and rates.data > SPARE * rates.model:
            fewer = f", or fewer --data.threads (now {threads}), for the loader has time to spare"
        return f"both work on the same {where.cores} cores and take them from each other: more cores, or {_a_gpu(where)}{fewer}"
    if config.run.launch != "graph":
        words = _launch(config, where)
        words += ["a larger --run.batch-size"] + ([] if config.data.readers else [_more_readers(where, "")])
        return f"loader and launches of kernels share one interpreter: {', or '.join(word for word in words if word)}"
    blocks = "pack as blocks, which need no decoder; or " if _blocks_would_help(rates, where) else ""
    return f"{blocks}look for waits in a profile: tools/bench/profile_training.py"


def _a_gpu(where: Surroundings) -> str:
    return "a GPU, with shards of another codec" if where.codec == "mjpeg" else "a GPU"  # which refuses mjpeg


def _more_readers(where: Surroundings, link: str) -> str:
    more = where.readers + 2
    return f"{link}read in more processes, --data.readers {more}" if more < where.cores else ""


def _blocks_would_help(rates: Rates, where: Surroundings) -> bool:
    """Where a GPU decodes JPEGs from a disk that gives the bytes of blocks as fast."""
    larger = where.storage is None or where.storage > BLOCKS_LARGER * rates.decode
    return where.codec == "jpeg" and larger and not where.remote


def _launch(config: PretrainConfig, where: Surroundings) -> list[str]:
    """One launch per step, and then fused blocks, which without it cost the host more than they save the GPU."""
    graph = config.run.launch == "graph"
    could = config.run.launch == "eager" and not launch_obstacles("graph", config, where.device)
    words = ([] if graph else ["--run.launch graph"]) + ([] if config.model.fused_blocks else ["--model.fused-blocks"])
    return [" with ".join(words)] if words and (graph or could) else []
