"""The record of `bench run`: its schema, its table for a terminal, the comparison of two."""

from pathlib import Path
from typing import Any

from svdata2vec.config.checked_json import NUMBER, check_record
from svdata2vec.config.files import read_json
from svdata2vec.runs.provenance import HEAD
from svdata2vec.shards.errors import UserError, require_file

FORMAT = "svdata2vec-bench"
VERSION = 1
STAGES = ("read", "decode", "data", "model", "train")
COMPARED = (
    "codec", "codec_options", "packed_size", "batch_size", "precision", "encode", "num_frames", "size", "threads", "decoder",
    "launch", "model", "masks", "target", "augment", "crop", "dataset", "split", "weights", "readers", "prefetch",
    "engine_share", "run_pictures", "check_hashes",
)
LATER = {  # earlier records do not tell them
    "split", "readers", "prefetch", "engine_share", "run_pictures", "codec_options", "target", "augment", "crop",
    "weights", "check_hashes",
}
DEFAULT_MASKS = {"repeats": 1, "encoded_frames": 0}  # of earlier records, which do not list their masks

# Names that must be there, and their types. A name may be added within a version; none may go or change its meaning.
SETTING: dict[str, Any] = {
    "dataset": str, "precision": str, "encode": str, "num_frames": int, "size": int, "rounds": int, "model": dict,
    "masks?": dict, "target?": dict, "augment?": dict,
}
STAGE = {"clips_per_s": NUMBER, "q20": NUMBER, "q80": NUMBER, "rounds": [NUMBER]}
SCHEMA: dict[str, Any] = {
    **HEAD, "setting": {**SETTING, "codec": str, "batch_size": int, "threads": int, "seconds": NUMBER},
    "stages": dict.fromkeys((*STAGES, "*"), STAGE),
    "counts": {
        "forward_macs_per_clip": int, "flops_per_clip": int, "step_bytes_per_clip": NUMBER,
        "stored_bytes_per_clip": NUMBER, "decoded_bytes_per_clip": int, "read_bytes_per_clip?": NUMBER,
    },
    "ceilings": {f"{name}_per_s": NUMBER for name in ("copy_bytes", "matmul_fp32_flops", "matmul_bf16_flops")},
    "roofline": {name: {"limited_by": str, "limit_clips_per_s?": NUMBER, "efficiency?": NUMBER} for name in (*STAGES, "*")},
    **dict.fromkeys(("mfu", "mfu_model", "train_share_of_model", "data_wait_share"), NUMBER),
    "waterfall_ms_per_clip": {"step": {"*": NUMBER}, "beside": {"*": NUMBER}},
    "peak_memory_bytes": {"gpu": {"*": NUMBER}, "process": int},
    "verdict": {"bound": str, "text": str}, "doubts": [str],
    "decoding?": {"codec": str, "by?": str, "seen_per_clip?": NUMBER, **dict.fromkeys(
        ("pictures_per_clip", "sampled_per_clip", "needed_pictures_per_s", "given_pictures_per_s"), NUMBER
    )},
    "masks?": {"repeats": int, "counted_share": NUMBER, "measured_share?": NUMBER},
    "baseline?": dict.fromkeys(("model_speedup", "train_speedup", "loss_difference"), NUMBER),
}
EXCEEDED = 1.1  # times a limit: beyond noise, so that it was none


def limit_of(record: dict[str, Any], stage: str) -> dict[str, Any]:
    """A stage's limit and the share that it reaches; empty where it has none, or is beyond it."""
    roof: dict[str, Any] = record["roofline"].get(stage, {})
    return {} if (roof.get("efficiency") or 0) > EXCEEDED else roof


def load_record(path: Path) -> dict[str, Any]:
    """Read and check a record of `bench run`; UserError names the file and what is wrong with it."""
    require_file(path, "one written by `svdata2vec bench run PRESET --out FILE`")
    record = read_json(path)
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise UserError(f"{path}: not a record of `svdata2vec bench run`; expected the format {FORMAT!r}")
    if record.get("version") != VERSION:
        raise UserError(f"{path}: version {record.get('version')}, this program reads {VERSION}; measure again")
    return check_record(record, SCHEMA, path)


def where_and_what(record: dict[str, Any]) -> str:
    """First line of a table: the machine, and the clips of the step."""
    where, setting = record["machine"], record["setting"]
    return (
        f"{where['device']} ({where['cores']} cores, load {where['load_average']:.1f}), torch {where['versions']['torch']}; "
        f"{setting['num_frames']} frames of {setting['size']} px, {setting['precision']}"
    )


def rate_text(rate: float | None) -> str:
    """Clips per second with three digits, thousands apart; nothing for None."""
    if rate is None:
        return ""
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.1f}" if rate >= 10 else f"{rate:.2f}"


def stage_rows(record: dict[str, Any]) -> list[list[str]]:
    """Of each stage: name, clips/s, their 20 % and 80 % quantiles, limit, share of it that is reached, what limits it."""
    rows = []
    for name, row in record["stages"].items():
        roof = limit_of(record, name)
        limit, reached = roof.get("limit_clips_per_s"), roof.get("efficiency")
        rows.append([
            name, rate_text(row["clips_per_s"]), f"{rate_text(row['q20'])} to {rate_text(row['q80'])}", rate_text(limit),
            "" if reached is None else f"{100 * reached:.3g} %", roof.get("limited_by", ""),
        ])
    return rows


def as_table(record: dict[str, Any]) -> str:
    """The record of `bench run` for a terminal."""
    lines = [
        f"{where_and_what(record)}, batch {record['setting']['batch_size']}, {record['setting']['codec']} shards",
        "",
        f"{'stage':16s}{'clips/s':>10s}{'20-80 %':>20s}{'limit':>10s}{'reached':>9s}  limited by",
    ]
    for name, rate, spread, limit, reached, source in stage_rows(record):
        lines.append(f"{name:16s}{rate:>10s}{spread:>20s}{limit:>10s}{reached:>9s}  {source}".rstrip())
    step = record["waterfall_ms_per_clip"]["step"]
    lines += ["", "a clip's step, ms: " + ", ".join(f"{name} {value:.2f}" for name, value in step.items())]
    lines.append(_closing(record))
    if record.get("masks"):
        lines.append(_masks(record["masks"]))
    if record.get("baseline"):
        base = record["baseline"]
        lines.append(
            f"against the original's way: model {base['model_speedup']:.1f}x, train {base['train_speedup']:.1f}x "
            f"(losses of the same weights differ by {base['loss_difference']:.1e})"
        )
    said = [decoding_line(record["decoding"])] if record.get("decoding") else []
    return "\n".join([*lines, "", *said, record["verdict"]["text"], *record["doubts"], ""])


def decoding_line(cost: dict[str, Any]) -> str:
    """What decoding, or uploading what the step decodes, costs and bounds, in one line."""
    giver = "upload" if cost.get("by") == "upload" else "decoder"
    pictures, sampled = cost["pictures_per_clip"], cost["sampled_per_clip"]
    hidden = (cost.get("seen_per_clip") or pictures) < sampled  # earlier records do not tell
    fewer = f"of {sampled} those that masks let be seen" if hidden else f"as some are shorter than {sampled} frames"
    whole = "" if pictures == sampled else f", all of its pictures for {sampled}" if pictures > sampled else f", {fewer}"
    given, needed = cost["given_pictures_per_s"], cost["needed_pictures_per_s"]
    clips = f"{rate_text(given / max(pictures, 1e-9))} clips of {pictures:.3g}{whole}"
    return (
        f"{giver}, {cost['codec']}: {rate_text(given)} pictures/s, {clips}; the model would take {rate_text(needed)} "
        f"pictures/s, and the {giver} gives {given / max(needed, 1e-9):.2g} times that"
    )


def _closing(record: dict[str, Any]) -> str:
    gpu = max(record["peak_memory_bytes"]["gpu"].values(), default=0)
    memory = f"GPU {gpu / 2**30:.2f} GiB, " if gpu else ""
    return (
        f"train is {100 * record['train_share_of_model']:.0f} % of model, data wait {100 * record['data_wait_share']:.1f} %, "
        f"MFU {100 * record['mfu']:.1f} % (model alone {100 * record['mfu_model']:.1f} %), peak memory {memory}"
        f"process {record['peak_memory_bytes']['process'] / 2**30:.2f} GiB"
    )


def _masks(cost: dict[str, Any]) -> str:
    counted, measured = cost["counted_share"], cost.get("measured_share")
    beside = "" if measured is None else f", {100 * measured:.1f} % as measured"
    return f"masks per clip: {cost['repeats']}; one more takes {100 * counted:.1f} % of the step with one by count{beside}"


def _launch(setting: dict[str, Any]) -> str:
    """How the kernels of a step were launched; earlier records have `compile` beside `launch`, the first of them neither."""
    return "compiled" if setting.get("compile") else setting.get("launch", "eager")


def differences(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    """Where two records differ in machine, versions or settings, one line each; what one does not tell is no difference."""
    machines = first["machine"], second["machine"]
    places = [f"{one['device']}, {one['cpu']}, {one['cores']} cores, {one['torch_threads']} threads" for one in machines]
    versions = [f"torch {one['versions']['torch']}" for one in machines]
    lines = [f"different {what}: {a} | {b}" for what, (a, b) in (("machines", places), ("versions", versions)) if a != b]
    settings = [{**record["setting"], "launch": _launch(record["setting"])} for record in (first, second)]
    for name in COMPARED:
        a, b = (setting.get(name) for setting in settings)
        if name == "masks" and None in (a, b):
            a, b = ({part: (one or DEFAULT_MASKS).get(part) for part in DEFAULT_MASKS} for one in (a, b))
        elif name in LATER and not all(name in setting for setting in settings):
            continue
        if isinstance(a, dict) and isinstance(b, dict):  # the parts that differ
            parts = [part for part in {**a, **b} if a.get(part) != b.get(part)]
            a, b = ({part: one.get(part) for part in parts} for one in (a, b))
        if a != b:
            lines.append(f"different settings: {name} {a} | {b}")
    return lines


def compare(first: dict[str, Any], second: dict[str, Any]) -> str:
    """Two records side by side; says where they measured different things, and which differences are within the spread."""
    lines = differences(first, second)
    lines += [*([""] if lines else []), f"{'stage':16s}{'A clips/s':>12s}{'B clips/s':>12s}{'B / A':>8s}"]
    for name in {**first["stages"], **second["stages"]}:
        rows = [record["stages"].get(name) for record in (first, second)]
        line = f"{name:16s}" + "".join(f"{rate_text(row and row['clips_per_s']):>12s}" for row in rows)
        if all(rows):
            a, b = rows
            same = a["q20"] <= b["q80"] and b["q20"] <= a["q80"]
            single = 1 in (len(a["rounds"]), len(b["rounds"]))
            note = "  within the spread" if same else "  of one round: no spread" if single else ""
            line += f"{b['clips_per_s'] / max(a['clips_per_s'], 1e-9):8.2f}{note}"
        lines.append(line.rstrip())
    for label, key in (("data wait", "data_wait_share"), ("MFU", "mfu")):
        lines.append(f"{label:16s}{100 * first[key]:10.1f} %{100 * second[key]:10.1f} %")
    lines += ["", f"A: {first['verdict']['text']}", f"B: {second['verdict']['text']}", ""]
    return "\n".join(lines)
