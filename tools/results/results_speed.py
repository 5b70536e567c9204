"""Sections of the result pages about speed: a training step, the stages of a run, loading, encodings, geometry, start-up."""

import math
from collections.abc import Collection

from result_cells import Record, measured, not_measured, percent, sentence, table

from svdata2vec.bench.data import FULL_COLOUR
from svdata2vec.bench.record import stage_rows
from svdata2vec.config.schema import PretrainConfig
from svdata2vec.kernels.gather_frames import window_shape
from svdata2vec.model.video_encoder import WINDOW_CHANNELS_GPU
from svdata2vec.shards.blocks import BlockFormat


def training_step(cpu: Record, gpu: Record | None) -> str:
    """One pretraining step at the paper's sizes: ours against the authors' way."""
    columns = {"CPU": cpu, "GPU": gpu}
    remarks = [
        f"{name}: batch {run['batch']}, {run['rounds']} steps, version {run['versions']['svdata2vec']}"
        f"{' at ' + run['commit'] if run.get('commit') else ''}. {measured(run)}" for name, run in columns.items() if run
    ]
    rows = []
    for side in ("all frames", *(side for side in (gpu or cpu)["speedups"] if side != "all frames")):
        cells = [[f"{1e3 * run['median_seconds'][side]:.0f} ms", f"{run['speedups'][side]:.1f}x"]
                 if run and side in run["speedups"] else ["", ""] for run in columns.values()]
        rows.append([side, *cells[0], *cells[1]])
    return table(["one pretraining step, 40 frames of 224 px", "CPU", "", "GPU", ""], rows) + (
        "\n\"all frames\" is the authors' way: every frame encoded, float32, the host waiting for the loss, and on "
        "a CPU freed memory going back to the system. Rows not marked bf16 are float32 (TF32 in convolutions on a GPU). Median "
        "of several steps, the rows taking turns in one process. "
        f"{' '.join(remarks)}\n"
    ) + not_measured(columns)


def bench_run(cpu: Record, demo_cpu: Record | None) -> str:
    """Every stage of a pretraining run against its limit, on a CPU."""
    return _stages({"CPU": cpu, "`demo` preset, CPU": demo_cpu})


def bench_run_gpu(jpeg: Record, jpeg_128: Record | None, blocks: Record | None, blocks_128: Record | None) -> str:
    """The same on a GPU, by codec and batch size."""
    columns = ("jpeg, batch 32", "jpeg, batch 128", "blocks, batch 32", "blocks, batch 128")
    return _stages(dict(zip(columns, (jpeg, jpeg_128, blocks, blocks_128), strict=True)))


def _stages(runs: dict[str, Record | None]) -> str:
    """Clips per second of every stage of each run, the share of its limit that is reached, and a remark on each run."""
    found = [
        {name: [rate, reached] for name, rate, _, _, reached, _ in stage_rows(run)} if run else {} for run in runs.values()
    ]
    rows = [
        [stage.replace("original", "the original's way:"), *(cell for stages in found for cell in stages.get(stage, ["", ""]))]
        for stage in dict.fromkeys(stage for stages in found for stage in stages)
    ]
    header = ["stage, clips/s", *(name for run in runs for name in (run, "of its limit"))]
    remarks = [f"\n{name}: {_bench_words(run)}\n" for name, run in runs.items() if run]
    return table(header, rows) + "".join(remarks) + not_measured(runs)


def profiles(*runs: Record) -> str:
    """Profile of the GPU during training with decoding."""
    rows = [[
        f"{run['setting']['codec']}, batch {run['setting']['batch_size']}", *(f"{run[name]:.1f}" for name in (
            "wall_ms", "training_stream_ms", "other_streams_ms", "both_at_once_ms")),
        percent(run["training_stream_busy_share"]),
    ] for run in runs if run]
    header = ["ms per step", "step", "training's kernels", "the loader's", "both at once", "training's share of the time"]
    return table(header, rows) + f"\n{measured(runs[0])}\n"


def _switches(setting: Record) -> str:
    """Options that are off by default."""
    on = [word for word, there in (("`--run.launch graph`", setting.get("launch") == "graph"),
                                   ("`--model.fused-blocks`", setting["model"].get("fused_blocks"))) if there]
    return "".join(f", {word}" for word in on)


def gpu_check(record: Record, kernels: Record | None) -> str:
    """Results of `tools/gpu_check.sh` on a GPU, part by part, and again for parts whose kernels have changed since."""
    return "\nAfter kernels had changed, some parts again:\n\n".join(_parts(run) for run in (record, kernels) if run)


def _parts(record: Record) -> str:
    rows = [[part["name"], part["status"], part["note"]] for part in record["parts"]]
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    where = f"{record['gpu']}; {record['cores']} CPU cores; {versions}; {record['date'][:10]}"
    return table(["part", "", "figures"], rows) + f"\n{where}.\n"


def gpu_exploration(record: Record) -> str:
    """Single figures from a GPU that decisions rest on."""
    return table(["seen on a GPU", ""], record["rows"]) + f"\n{measured(record)}\n"


def _bench_words(run: Record) -> str:
    """Setting, verdict, speed-up, shares and machine of a record of `bench run`."""
    setting, base = run["setting"], run.get("baseline")
    faster = (
        f" Against the original's way (all frames, float32, a wait in each step, the same shards decoded on the CPU) the model "
        f"is {base['model_speedup']:.1f} and training {base['train_speedup']:.1f} times as fast." if base else ""
    )
    return (
        f"{setting['num_frames']} frames of {setting['size']} px, batch {setting['batch_size']}, {setting['precision']}, "
        f"{_shards(setting)}{_switches(setting)}. {sentence(run['verdict']['text'])}{faster} Data wait "
        f"{percent(run['data_wait_share'])}, MFU {percent(run['mfu'])} of a large matrix product. "
        f"{' '.join([measured(run), *map(sentence, run['doubts'])])}"
    )


def _shards(setting: Record) -> str:
    """The encoding; JPEGs of which nothing is said have the default of then."""
    colour = f" ({':'.join(str(setting.get('codec_options', {}).get('chroma', 444)))})" if setting["codec"] == "jpeg" else ""
    return f"`{setting['codec']}` shards{colour}"


def _of_rounds(base: Record, row: Record) -> str:
    """The least and the largest ratio of a round."""
    pairs = zip(base.get("cpu_ms_of_rounds", []), row.get("cpu_ms_of_rounds", []), strict=True)
    ratios = [theirs / ours for theirs, ours in pairs]
    return f" ({min(ratios):.1f} to {max(ratios):.1f})" if ratios and row is not base else ""


def loader(record: Record, ways: Collection[str] | None = None) -> str:
    """Loading the same clips in other ways, in one run: in all of them, or in some of its `ways`."""
    methods = record["methods"]
    base = methods.get("original style, decord") or methods["original style, pyav"]
    rows = [
        [name, f"{row['clips_per_s']:.1f}", f"{row['cpu_ms_per_clip']:.1f}",
         "" if ": " in name else f"{base['cpu_ms_per_clip'] / row['cpu_ms_per_clip']:.1f}x{_of_rounds(base, row)}"]
        for name, row in methods.items()  # with a colon: intermediate steps, not whole clips to compare
        if ways is None or name in ways
    ]
    seen = record.get("frames_seen_in_pretraining")
    fewer = f" (in pretraining the {seen:.1f} that its masks let a network see)" if seen else ""
    single = ", in brackets those of single rounds" if any("cpu_ms_of_rounds" in row for row in methods.values()) else ""
    steady = f", {record['clips_per_round']} after {record['first_clips']} others" if "first_clips" in record else ""
    sizes = ", ".join(f"{name} {size / 1e6:.2f}" for name, size in record["bytes_per_clip"].items())
    return table(["way of loading", "clips/s", "CPU ms per clip", "CPU time against the original's way (decord)"], rows) + (
        f"\nThe same synthetic clips (960x540 H.264) in turn{steady}, {record['frames_sampled']} frames each{fewer}, median of "
        f"{record['rounds']} rounds in one run; ratios are of medians before rounding{single}. Packing, done once, is in "
        f"none of them; MB per clip: {sizes}. {measured(record)}\n"
    )


EXACT_DB = 90  # of pictures that differ at all; a mean above it is one with clips that do not


def encodings(packing: Record, loading: Record | None = None) -> str:
    """Cost and fidelity of each encoding of the shards, and what loading it costs where that was measured."""
    methods = loading["methods"] if loading else {}
    rows = []
    for row in packing["rows"]:
        name = FULL_COLOUR if (row["codec"], row["quality"], row["chroma"]) == ("jpeg", 90, "444") else f"ours, {row['codec']}"
        method = methods.get(name) if row["by_default"] or name == FULL_COLOUR else None
        rows.append([
            _encoding(row),
            f"{100 * row['kib_per_frame'] / 1024:.2f}",
            f"{row['psnr_db_mean']:.1f}" if row["psnr_db_mean"] < EXACT_DB else _nearly_exact(row["psnr_db_worst_clip"]),
            f"{row['frames_per_cpu_second']:.0f}",
            *([f"{method['cpu_ms_per_clip']:.0f}" if method else ""] if loading else []),
        ])
    header = ["encoding (320 px)", "MiB per 100 frames", "PSNR of the crop, dB", "packed frames per CPU second",
              *(["loading, CPU ms per clip of 40 frames"] if loading else [])]
    loaded = ", loaded from synthetic 540p clips" if loading else ""
    return table(header, rows) + f"\nPacked from H.264 ({packing['source']}){loaded}. {measured(packing)}\n"


def _nearly_exact(worst_db: float) -> str:
    return f"over {worst_db:.0f}" if worst_db < EXACT_DB else "exact"


def _encoding(row: Record) -> str:
    codec = row["codec"]
    if codec == "blocks":
        return f"`blocks`, {row['luma_bits']} and {row['chroma_bits']} bits"
    if codec == "copy":
        return "`copy` (full frame)"
    return f"`{codec}` q{row['quality']}" + (f" {':'.join(row['chroma'])}" if codec == "jpeg" else "")


def block_encoder(record: Record) -> str:
    """CPU time of packing a picture in blocks, and the share of a JPEG's that it is."""
    jpeg = {row["pictures"]: row for row in record["rows"] if row["encoder"] == "jpeg"}
    rows = [
        [row["pictures"], row["encoder"],
         *(cell for time in ("median_ms", "least_ms")
           for cell in (f"{row[time]:.2f}", f"{row[time] / jpeg[row['pictures']][time]:.2f}"))]
        for row in record["rows"]
    ]
    header = ["pictures", "encoder", "median, ms", "of JPEG's", "least, ms", "of JPEG's"]
    return table(header, rows) + (
        f"\nCPU time of a picture of {record['side']} px, the encoders in turn, {record['rounds']} rounds. JPEGs: quality 90, "
        f"4:2:0. {measured(record)}\n"
    )


MEMORY_TB, UPLOAD_GB, DISK_GB = (1, 2, 4), (25, 50), 7  # per second: of GPUs; PCIe 4 and 5 with 16 lanes; an NVMe disk


def blocks_bound(_: Record) -> str:
    """What the bytes of blocks allow, without a GPU: pictures per second at the rates of memory, upload and disk."""
    config = PretrainConfig()
    frames, size = config.data.num_frames, config.data.size
    kept = config.num_encoded
    written = 2 * math.prod(window_shape(kept, size, size, WINDOW_CHANNELS_GPU, folded=True))  # bfloat16
    pixels = 3 * frames * size**2
    ways = {"JPEGs, decoded before": (2 * pixels, 0)}
    for luma_bits, chroma_bits in ((3, 2), (2, 2), (3, 3)):
        stored = BlockFormat(320, luma_bits, chroma_bits).frame_bytes
        ways[f"`blocks`, {luma_bits} and {chroma_bits} bits"] = frames * stored, stored
    rows = [
        [name, f"{stored / 1000:.1f}" if stored else "", f"{read / 1e6:.1f}", f"{written / 1e6:.1f}",
         *(f"{frames * tera * 1e12 / (read + written):,.0f}" for tera in MEMORY_TB),
         *(f"{giga * 1e9 / stored:,.0f}" if stored else "" for giga in (*UPLOAD_GB, DISK_GB))]
        for name, (read, stored) in ways.items()
    ]
    header = ["pictures/s at most", "kB per picture", "MB per clip before the network", "MB of windows written",
              *(f"memory, {tera} TB/s" for tera in MEMORY_TB), *(f"upload, {giga} GB/s" for giga in UPLOAD_GB),
              f"disk, {DISK_GB} GB/s"]
    return table(header, rows) + (
        f"\nOn paper: bytes divided by rates. {frames} pictures of a clip, {kept} kept windows in bfloat16. "
        "Before the network: all blocks are read once; decoded pictures are written by the decoder, whose own work is "
        "not counted, and read again.\n"
    )


def geometry(record: Record) -> str:
    """Decoding and cropping a batch in other ways: what the choices of the pipeline rest on."""
    rows = [
        [name, f"{form['cpu_ms_per_clip']:.0f}", f"{form['wall_ms_per_clip']:.0f}",
         f"{form['psnr_db_to_reference']:.1f}" if "psnr_db_to_reference" in form else ""]
        for name, form in record["forms"].items()
    ]
    header = ["way of decoding and cropping", "CPU ms per clip", "elapsed ms per clip", "PSNR to the reference decoder, dB"]
    return table(header, rows) + f"\n{record['threads']} threads. {measured(record)}\n"


HOST_GOALS = {"jpeg": ("on one thread", "host_ms_per_clip", 0.35),
              "blocks": ("in the training process beside a reader process", "training_process_ms_per_clip", 0.2)}


def host(jpeg: Record, blocks: Record | None) -> str:
    """Host time per clip next to a GPU, without decoding."""
    records = {"jpeg": jpeg, "blocks": blocks}
    rows = [
        [f"`{codec}`", str(row["batch_size"]), str(row["readers"] or "a thread"), f"{row['ms_per_clip']:.2f}",
         f"{row['q20']:.2f} to {row['q80']:.2f}", *(f"{value:.2f}" for value in row["parts"].values()),
         f"{row['reader_ms_per_clip']:.2f}" if row["readers"] else "", f"{row['ms_per_clip'] + row['reader_ms_per_clip']:.2f}"]
        for codec, record in records.items() if record for row in record["rows"]
    ]
    header = ["codec", "batch", "reader processes", "training process, ms per clip", "20 to 80 %", *jpeg["rows"][0]["parts"],
              "in readers", "in all"]
    remarks = [
        f"\n`{codec}`: {record[name]:.2f} ms {where}; goal at most {goal}: {'met' if record[name] <= goal else 'not met'}. "
        f"{measured(record)}\n"
        for codec, (where, name, goal) in HOST_GOALS.items() if (record := records[codec])
    ]
    return table(header, rows) + "\nProcessor time; nothing is decoded.\n" + "".join(remarks) + not_measured(records)


def memory(record: Record) -> str:
    """Resident memory of the loader over many clips."""
    rows = [
        ["keeps what is freed" if row["keeps_freed"] else "as it is", str(row["readers"] or "a thread"), f"{row['clips']:,}",
         f"{row['first_mb']:.0f}", f"{row['last_mb']:.0f}", f"{max(look[1] for look in row['looks']):.0f}",
         f"{row['mb_per_1000_clips']:+.1f}"]
        for row in record["rows"]
    ]
    header = ["heap", "reader processes", "clips", "MB after a fifth of them", "MB at the end", "most", "MB per 1,000 clips"]
    return table(header, rows) + f"\nFor the process and its children together; last column: the slope. {measured(record)}\n"


def index(million: Record, ten_million: Record | None) -> str:
    """Time and memory that a very long index costs a process."""
    records = [record for record in (million, ten_million) if record]
    lines = {
        "start of one rank of four, CPU seconds": lambda record: f"{record['start_seconds']:.2f}",
        "order of one epoch, CPU seconds": lambda record: f"{record['order_seconds']:.2f}" if "order_seconds" in record else "",
        "its private memory, MB": lambda record: f"{record['private_mb']:.0f}",
        "the same after 20,000 keys of each of three epochs, MB": lambda record: f"{record['private_mb_walked']:.0f}",
        "largest resident memory, MB": lambda record: f"{record['peak_resident_mb']:.0f}",
    }
    rows = [[name, *map(show, records)] for name, show in lines.items()]
    header = ["an index of so many clips", *(f"{record['clips']:,}" for record in records)]
    return table(header, rows) + "".join(f"\n{record['clips']:,}: {measured(record)}\n" for record in records)


def openmp(record: Record) -> str:
    """Training with the demo's network beside programs that are always busy."""
    rates = record["clips_per_second"]
    rows = [[name, f"{row['alone']:.1f}", f"{row['beside']:.1f}", percent(row["share"]),
             f"{row['quota']:.1f}" if "quota" in row else ""] for name, row in rates.items()]
    header = ["waiting threads spin", "clips/s alone", "beside two programs", "of alone", "with one core's time"]
    reason = record["not_run"].get("quota")
    return table(header, rows) + (f"\nNot run with one core's time: {reason}.\n" if reason else "") + f"\n{measured(record)}\n"


def op_calls(record: Record) -> str:
    """What a call of each op costs the host, through PyTorch's operator and beside it."""
    rows = [[op, f"{cost['operator']:,.0f}", f"{cost['direct']:,.0f}"] for op, cost in record["microseconds"].items()]
    return table(["a call (with its gradient), CPU µs", "through the operator", "eager"], rows) + (
        f"\nTiny tensors, the plain-PyTorch references on one thread: median of {record['rounds']} rounds of {record['calls']} "
        f"calls, the two ways in turn. {measured(record)}\n"
    )
