"""Sections of the result pages about what is learnt: accuracies of the demo, what its data set asks for, and codecs."""

from collections.abc import Callable

from result_cells import Record, measured, not_measured, percent, table


def demo(cpu: Record, gpu: Record | None) -> str:
    """Accuracies and speed of `tools/demo.sh`."""
    cells: dict[str, Callable[[Record], str]] = {
        "chance": lambda run: percent(1 / run["classes"]),
        "small CNN from scratch": lambda run: percent(run["top1_small_cnn"]) if "top1_small_cnn" in run else "",
        "RGB from scratch": lambda run: percent(run["top1_scratch"]),
        "RGB after pretraining": lambda run: percent(run["top1_pretrained"]),
        "pretraining, clips/s": lambda run: f"{run['pretrain_clips_per_second']:.0f}",
    }
    columns = {"CPU": cpu, "GPU": gpu}
    rows = [[name, *(cell(run) if run else "" for run in columns.values())] for name, cell in cells.items()]
    rows = [row for row in rows if any(row[1:])]
    loss, spread = cpu["pretrain_loss_first_last"], cpu["target_std_first_last"]
    cost = {name: each["cpu_seconds"] for name, each in cpu["costs"].items()}
    return table(["`bash tools/demo.sh`, top-1", *columns], rows) + (
        f"\n{cpu['classes']} classes of motion, {cpu['test_clips']} test clips of unseen subjects, "
        f"{cpu['labelled_clips']} labelled clips, one seed; pretraining loss {loss[0]:.2f} -> {loss[1]:.2f}, target spread "
        f"{spread[0]:.2f} -> {spread[1]:.2f}. CPU seconds of training: {cost['small_cnn']:.0f} for the small CNN, "
        f"{cost['scratch']:.0f} from scratch, {cost['pretrained']:.0f} for pretraining and fine-tuning. {measured(cpu)}\n"
    ) + not_measured(columns)


def motion_check(*records: Record | None) -> str:
    """Accuracy by one frame, the background and the whole clip, in the usual scenes and in busier ones."""
    sets = [record for record in records if record is not None]
    rows = [
        [trials[0]["name"], *(percent(trial["accuracy"]) for trial in trials)]
        for trials in zip(*(record["trials"] for record in sets), strict=True)
    ]
    rows.append(["chance", *(percent(record["chance"]) for record in sets)])
    first, header = sets[0], ["input", "top-1", "top-1, `--hard`"]
    return table(header[:1 + len(sets)], rows) + (
        f"\n{first['training_clips']} clips for training, {first['evaluation_clips']} of other subjects for evaluation, "
        f"{first['options']['frames']} frames of {first['options']['crop']} px each. {' '.join(map(measured, sets))}\n"
    )


def codec_agreement(record: Record) -> str:
    """Agreement of one network's predictions on the same clips, packed differently."""
    rows = []
    for name, found in record["others"].items():
        low, high = found["same_class_interval"]
        rows.append([
            f"`{name}`", f"{percent(found['same_class'])} ({percent(low)} to {percent(high)})", f"{found['score_change']:.3f}",
            *map(percent, found["top1"]),
            f"{percent(found['difference'])} ({' to '.join(map(percent, found['interval']))})",
            f"{found['right_on_other_alone']} and {found['right_on_base_alone']}", f"{found['mcnemar_p']:.2f}",
        ])
    header = ["beside `jpeg`", "same class (95 % interval)", "scores moved", "top-1 on `jpeg`", "top-1 on it",
              "difference (95 % interval)", "right on it, on `jpeg` alone", "McNemar's p"]
    clips = next(iter(record["others"].values()))["clips"]
    return table(header, rows) + (
        f"\nOne network, {clips:,} predictions on each. Scores moved: half the sum of a clip's changes, 0 to 1. "
        f"{measured(record)}\n"
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
