"""Sections of the result pages about many processes: a model on paper, and real processes on one machine."""

from result_cells import Record, measured, percent, sentence, table

from svdata2vec.bench.record import rate_text


def scaling(record: Record) -> str:
    """Expected efficiency on many GPUs, computed by a model."""
    given = record["assumptions"]
    rows = [
        [str(run["gpus"]), f"{run['sent_bytes'] / 1e6:.0f}", f"{1e3 * run['communication_seconds']:.1f}",
         f"{1e3 * run['waiting_seconds']:.1f}", percent(run["efficiency"]), f"{run['clips_per_second']:,.0f}"]
        for run in record["runs"]
    ]
    header = ["GPUs", "MB sent per GPU and step", "communication, ms", "waited for, ms", "efficiency", "clips/s"]
    one_gpu, step_ms = f"{given['clips_per_second']:,.0f}", 1e3 * given["batch"] / given["clips_per_second"]
    return table(header, rows) + (
        f"\nNot measured: computed from assumptions. One GPU trains {one_gpu} clips/s (the goal for one H200), "
        f"{given['batch']} clips per step ({step_ms:.0f} ms). Gradients, {record['gradient_bytes'] / 1e6:.1f} MB in float32, "
        f"are summed within nodes of {given['gpus_per_node']} ({given['node_gb_per_s']:.0f} GB/s per GPU), then between nodes "
        f"({given['network_gb_per_s']:.0f} GB/s per node, {given['latency_us']:.0f} µs per message), during the backward pass "
        f"({percent(given['backward_share'])} of the step). BatchNorm's buffers ({record['buffer_bytes'] / 1e3:.0f} kB) are "
        f"broadcast before it. Each doubling of the nodes costs {percent(given['straggler'])} of a step for stragglers.\n"
    )


def scaling_storage(record: Record) -> str:
    """What the storage of a node must deliver for that."""
    given = record["assumptions"]
    rows = [
        [f"`{row['codec']}` q{row['quality']}", f"{row['mib_per_100_frames']:.2f}", f"{row['least_gb_per_s']:.1f}",
         f"{row['whole_clips_gb_per_s']:.1f}"]
        for row in record["storage"]
    ]
    header = ["encoding (320 px)", "MiB per 100 frames", "per node, at the least, GB/s", "per node, whole clips, GB/s"]
    return table(header, rows) + (
        f"\nStorage for {given['gpus_per_node']} GPUs at that rate, clips of {given['clip_frames']} frames. At the least: from "
        f"local `jpeg` shards only the {given['sampled_frames']} sampled frames are read; from a video codec or a URL, whole "
        "clips. What fits into a node's memory or local disk crosses the network once, not in every epoch.\n"
    )


def scaling_measured(record: Record) -> str:
    """Weak scaling with real processes: what the exchange costs, and whether they did one training."""
    machine, setting, last = record["machine"], record["setting"], record["worlds"][-1]
    header = ["processes", "clips/s", "efficiency", "all-reduced per step, MB", "calls", "added to a step", "CPU time of it",
              "data wait", "weights equal", "clips seen once"]
    busy = any(note.startswith("doubtful") for note in record["notes"])
    return table(header, [_world_cells(row, machine, busy) for row in record["worlds"]]) + (
        f"\n{setting['batch_size']} clips per process and step ({setting['num_frames']} frames of {setting['size']} px, "
        f"{setting['precision']}), {last['backend']}, real shards and training steps; gradients: "
        f"{last['gradient_bytes'] / 1e6:.2f} MB. Added to a step: its median with the exchange of gradients minus without, in "
        f"the same processes. {' '.join([measured(record), *map(sentence, record['notes'])])}\n"
    )


def _world_cells(row: Record, machine: Record, busy: bool) -> list[str]:
    """A number of processes; no speed where they share cores, neither speed nor time where others used the machine."""
    shared = busy or (machine["device"] == "cpu" and row["processes"] > machine["usable_cores"])
    found = row["checks"]
    clock, cpu = (
        f"{part['added']:.1f} ms ({percent(part['added'] / part['synced'])})" if row["processes"] > 1 else ""
        for part in (row["exchange_ms"], row["exchange_cpu_ms"])
    )
    return [
        str(row["processes"]), "" if shared else rate_text(row["clips_per_s"]), "" if shared else percent(row["efficiency"]),
        f"{row['allreduce_bytes_per_step'] / 1e6:.2f}", str(row["allreduces_per_step"]), "" if busy else clock, cpu,
        percent(row["data_wait_share"]), "yes" if found["student_equal"] and found["teacher_equal"] else "NO",
        f"{found['clips'] - found['lost'] - found['twice']} of {found['clips']}",
    ]
