"""`svdata2vec inspect`: what the model sees of a data set, in pictures, and what is in it, in figures."""

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from svdata2vec import __version__
from svdata2vec.pipeline.loader import ClipLoader
from svdata2vec.pipeline.plan import PlanConfig
from svdata2vec.reports.contact_sheet import contact_sheet, to_png
from svdata2vec.reports.html_page import image, page, section, table
from svdata2vec.shards.atomic import make_folder, write_atomically
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.reading.remote import open_shards
from svdata2vec.shards.reading.shardset import ShardSet
from svdata2vec.shards.reading.stats import SetStatistics, Spread, set_statistics

log = logging.getLogger(__name__)


def inspect_shards(
    root: str, split: str, out: Path, plan: PlanConfig, *, train: bool, clips: int, keys: Sequence[str]
) -> int:
    """Write one contact sheet per class (or of the clips `keys`), `statistics.json` and the page `index.html` into `out`.

    Arguments as the options of `svdata2vec inspect`; returns the number of pictures.
    """
    shards = open_shards(root)
    chosen = _clips_by_name(shards, split, keys) if keys else _clips_by_class(shards, split, clips)
    make_folder(out)
    pictures = []
    for name, rows in chosen:
        batch, why = None, "none of its clips can be read"
        with ClipLoader(shards, split, plan, batch_size=len(rows), train=train, limit=rows, max_bad_rate=1.0) as loader:
            try:
                batch = next(iter(loader), None)
            except UserError as error:  # in training: nor can a clip that would take its place
                why = str(error)
        if batch is None:
            log.warning("%s: no picture, %s", name, why)
            continue
        png = to_png(contact_sheet(batch, shards.manifest.layout, shards.split_classes(split), len(rows)))
        write_atomically(out / f"{name}.png", png)
        pictures.append(image(png, name))
    statistics = set_statistics(shards, plan.persons)
    write_atomically(out / "statistics.json", json.dumps(asdict(statistics), indent=2).encode())
    note = f"svdata2vec {__version__}; {root}: figures of the whole set, pictures of split {split}"
    crops = f"Clips of split {split}: {'training' if train else 'evaluation'} crops at {plan.size} px"
    sections = [_overview(statistics), _splits(statistics), _joints(statistics), section(crops, "".join(pictures))]
    write_atomically(out / "index.html", page(f"{shards.manifest.dataset}: what is in it", note, sections).encode())
    return len(pictures)


def _clips_by_class(shards: ShardSet, split: str, clips: int) -> list[tuple[str, np.ndarray]]:
    """(file name, rows) of the first clips of each class that occurs."""
    rows = shards.rows(split)
    labels = shards.label_map(split)[shards.index["label"][rows]]
    found = []
    for label, name in enumerate(shards.split_classes(split)):
        plain = "".join(letter if letter.isalnum() else "-" for letter in name)[:60]
        if (labels == label).any():
            found.append((f"{label:03d}-{plain}", rows[labels == label][:clips]))
    return found


def _clips_by_name(shards: ShardSet, split: str, keys: Sequence[str]) -> list[tuple[str, np.ndarray]]:
    rows = shards.find(keys)
    foreign = np.flatnonzero(~np.isin(rows, shards.rows(split)))
    if len(foreign):
        raise UserError(f"clip {keys[foreign[0]]!r} is not in split {split!r}; name its split with --split")
    return [(key, np.array([row])) for key, row in zip(keys, rows, strict=True)]


def _overview(statistics: SetStatistics) -> str:
    def spread(name: str, values: Spread, digits: int = 0) -> list[str]:
        numbers = (values.low, values.quarter, values.median, values.three_quarters, values.high, values.mean)
        return [name, *(f"{number:,.{digits}f}" for number in numbers)]

    rows = [
        spread("frames per clip", statistics.frames_per_clip),
        spread("KiB per clip", Spread(*(value / 1024 for value in vars(statistics.bytes_per_clip).values()))),
        spread("source pixels per packed pixel", statistics.enlargement, 2),
        spread("height of the persons' box, source px", statistics.box_height_px),
    ]
    persons = ", ".join(f"{count:,} clips with {number}" for number, count in statistics.persons_per_clip.items())
    sizes = ", ".join(f"{size} ({count:,})" for size, count in statistics.picture_sizes.items())
    rates = ", ".join(f"{rate} frames/s ({count:,})" for rate, count in statistics.frame_rates.items())
    facts = [
        ["clips", f"{statistics.clips:,}"], ["frames", f"{statistics.frames:,}"],
        ["GiB", f"{statistics.bytes / 2**30:.2f}"], ["source pictures", sizes], ["frame rates", rates],
        ["persons", persons],
        [f"frames without a joint of the first {statistics.persons_seen} persons", f"{100 * statistics.empty_frames:.2f} %"],
        ["of these, frames that show somebody else", f"{100 * statistics.frames_of_others:.2f} % of all"],
        ["clips under 40 frames", f"{statistics.short_clips:,}"],
        ["damaged joints set to missing", f"{statistics.bad_joints:,}"],
        ["clips whose poses did not match their frames", f"{statistics.clips_with_other_pose_count:,}"],
    ]
    header = ["", "smallest", "25 %", "median", "75 %", "largest", "mean"]
    return section("Overview", table(["", ""], facts) + table(header, rows))


def _splits(statistics: SetStatistics) -> str:
    """Clips per split against the published number, and the balance of its classes."""
    names = list(statistics.splits)
    counts = [
        [name, f"{split.clips:,}", "" if split.published is None else f"{split.published:,}"]
        for name, split in statistics.splits.items()
    ]
    classes = list(dict.fromkeys(name for split in statistics.splits.values() for name in split.clips_per_class))
    rows = [[name, *(str(statistics.splits[split].clips_per_class.get(name, "")) for split in names)] for name in classes]
    return section("Splits", table(["split", "clips", "published"], counts) + table(["clips per class", *names], rows))


def _joints(statistics: SetStatistics) -> str:
    rows = [[name, f"{100 * share:.2f} %"] for name, share in statistics.missing_joints.items()]
    return section("Missing joints", table(["joint", "missing, where its person is seen"], rows))
