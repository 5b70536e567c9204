"""Sections of the result pages about what is learnt: accuracies of the demo, the paper's claim, and the ways of encoding."""

from collections.abc import Callable
from statistics import mean

from result_cells import Record, measured, not_measured, percent, table


def demo(cpu: Record, gpu: Record | None) -> str:
    """Accuracies and speed of `tools/demo.sh`."""
    cells: dict[str, Callable[[Record], str]] = {
        "chance": lambda run: percent(1 / run["classes"]),
        "RGB from scratch": lambda run: percent(run["top1_scratch"]),
        "RGB after pretraining": lambda run: percent(run["top1_pretrained"]),
        "pretraining, clips/s": lambda run: f"{run['pretrain_clips_per_second']:.0f}",
    }
    columns = {"CPU": cpu, "GPU": gpu}
    rows = [[name, *(cell(run) if run else "" for run in columns.values())] for name, cell in cells.items()]
    loss, spread = cpu["pretrain_loss_first_last"], cpu["target_std_first_last"]
    return table(["`bash tools/demo.sh`, top-1", *columns], rows) + (
        f"\n{cpu['classes']} classes of motion, {cpu['test_clips']} test clips of unseen subjects, "
        f"{cpu['labelled_clips']} labelled clips, one seed; pretraining loss {loss[0]:.2f} -> {loss[1]:.2f}, target spread "
        f"{spread[0]:.2f} -> {spread[1]:.2f}. {measured(cpu)}\n"
    ) + not_measured(columns)


def motion_check(record: Record) -> str:
    """What one frame, the background and the whole clip tell about the class."""
    rows = [[trial["name"], percent(trial["accuracy"])] for trial in record["trials"]]
    return table(["input", "top-1"], [*rows, ["chance", percent(record["chance"])]]) + (
        f"\n{record['training_clips']} clips for training, {record['evaluation_clips']} of other subjects for evaluation, "
        f"{record['options']['frames']} frames of {record['options']['crop']} px each. {measured(record)}\n"
    )


def claim(record: Record, check: Record | None) -> str:
    """RGB classifiers from scratch, after pretraining, and after its ablation; what a small network reaches, for scale."""
    def cell(row: Record, start: str) -> str:
        low, high = row["range_top1"][start]
        return f"{percent(row['mean_top1'][start])} ({100 * low:.1f} to {100 * high:.1f})"

    seeds, (train_clips, test_clips) = record["seeds"], record["clips"].values()
    rows = [
        [f"{row['labels']} ({100 * row['fraction']:.0f} %)", *(cell(row, start) for start in ("scratch", "rgb", "skeleton")),
         f"{row['seeds_above_scratch']['skeleton']} of {seeds}"]
        for row in record["comparison"]["fractions"]
    ]
    header = ["labelled clips", "from scratch", "after pretraining, RGB targets", "after pretraining, skeleton targets",
              "seeds where the last beats scratch"]
    return table(header, rows) + (
        f"\nTop-1 on {test_clips} synthetic clips of unseen subjects, mean (lowest to highest) of {seeds} "
        f"seeds; chance {percent(1 / record['classes'])}. The demo's network, {train_clips} clips, "
        f"{record['epochs']} epochs of pretraining, at least {record['steps']} steps of fine-tuning on RGB for every cell, "
        f"{record['precision']}; from scratch might gain by more steps. {measured(record)}\n"
    ) + (f"\n{_small_network(check)}\n" if check else "")


def _small_network(check: Record) -> str:
    """A classifier made for such clips does better than everything above it, which the page must not hide."""
    whole = next(trial for trial in check["trials"] if trial["name"] == "whole clip, pixels")
    return (f"The table compares ways to start one network and is no record on these clips: a small convolutional network that "
            f"also sees differences of frames reaches {percent(whole['accuracy'])} from scratch with {check['training_clips']} "
            "labelled clips of the same kind (`tools/motion/check_motion_clips.py`).")


def claim_probes(record: Record) -> str:
    """Probes of the frozen encoders, and how each pretraining ended."""
    def end(kind: str, value: Callable[[Record], float]) -> str:
        return f"{mean(value(run) for run in record['pretraining'] if run['kind'] == kind):.2f}"

    kinds = {"untrained": "untrained", "rgb": "RGB targets", "skeleton": "skeleton targets"}
    rows = [
        [name, *(percent(record["comparison"]["probes"][kind][probe]) for kind in kinds)]
        for name, probe in (("linear probe", "linear_top1"), ("nearest neighbours", "knn_top1"))
    ]
    rows.append(["pretraining loss at the end", "", *(end(kind, lambda run: run["loss_first_last"][1])
                                                       for kind in ("rgb", "skeleton"))])
    rows.append(["spread of the targets over clips", "", *(end(kind, lambda run: run["target_std"])
                                                            for kind in ("rgb", "skeleton"))])
    return table(["frozen RGB features, all labels", *kinds.values()], rows)


def encode_experiment(record: Record) -> str:
    """Whether encoding the kept frames only changes what is learnt."""
    def verdict(name: str) -> str:
        return "no larger" if record[f"{name}_within_seed_spread"] else "larger"

    seeds, ways = record["seeds"], ("kept_frames", "all_frames")
    rows = [
        [f"RGB top-1, {start}", *(percent(found["top1"][start]) for found in seeds), percent(record["mean_top1"][start])]
        for start in ("scratch", *ways)
    ]
    rows += [
        [f"linear probe top-1, {way}", *(percent(found["probe_top1"][way]) for found in seeds),
         percent(record["mean_probe_top1"][way])]
        for way in ways
    ]
    rows += [
        [f"pretraining loss at the end, {way}", *(f"{found['loss'][way][-1][1]:.3f}" for found in seeds),
         f"{record['mean_final_loss'][way]:.3f}"]
        for way in ways
    ]
    header = ["", *(f"seed {found['seed']}" for found in seeds), "mean"]
    return table(header, [[name.replace("_", " "), *cells] for name, *cells in rows]) + (
        f"\n{len(seeds)} seeds, {record['epochs']} epochs of the demo's pretraining, {record['precision']}: the difference "
        f"between the two ways is {verdict('top1')} than between seeds in accuracy, {verdict('probe_top1')} in the probe's, "
        f"and {verdict('final_loss')} in loss. {measured(record)}\n"
    )


def codec_experiment(record: Record) -> str:
    """Whether less is learnt from blocks than from JPEGs: paired seeds."""
    def rows(name: str, title: str, cell: Callable[[float], str]) -> list[str]:
        found = record["comparison"][name]
        change = f"{cell(found['difference'])} ({' to '.join(map(cell, found['interval']))})"
        return [title, *(cell(found["mean"][codec]) for codec in ("jpeg", "blocks")), change]

    body = [rows("top1", "RGB top-1, few labels", percent), rows("probe_top1", "linear probe top-1, all labels", percent),
            rows("loss", "pretraining loss at the end", "{:.3f}".format)]
    return table(["", "`jpeg`", "`blocks`", "difference (95 % interval)"], body) + (
        f"\nMeans of {len(record['seeds'])} seeds, the same for both codecs; {record['epochs']} epochs of the demo's "
        f"pretraining, {record['precision']}. {measured(record)}\n"
    )
