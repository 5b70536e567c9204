"""Areas of the fuzzer: packed shards, read by the loader and by `svdata2vec verify`."""

import io
import json
import random
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from fuzz_case import Damage, Result, command, digest, digest_folder
from fuzz_damage import damage_bytes, damage_rows, damage_value, edit, odd_value, replace_file
from pipeline_factory import shard_set

from svdata2vec.pipeline.loader import ClipLoader
from svdata2vec.pipeline.plan import PlanConfig
from svdata2vec.pipeline.video import frames_of
from svdata2vec.shards.atomic import npy_bytes
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.packing.tarwriter import TarWriter
from svdata2vec.shards.reading.manifest import INDEX_NAME, MANIFEST_NAME, SKIPPED_NAME, SUMS_NAME, Manifest
from svdata2vec.shards.reading.shardset import ShardSet
from svdata2vec.shards.reading.sums import clip_sums, save_head

PLAN = PlanConfig(num_frames=4, size=32)


class LoaderArea:
    """Every clip of a small set as the loader gives it. Damage must be found; crafted files must do no harm."""

    codec = "jpeg"

    def prepare(self, folder: Path) -> None:
        """Six clips in two tars."""
        shard_set(folder, 6, codec=self.codec, num_frames=lambda number: 8 + number % 3, size=64, clips_per_shard=3)
        (folder / SKIPPED_NAME).touch()

    def damage(self, rng: random.Random, folder: Path) -> Damage:
        """One file damaged, or one crafted so that all checksums fit."""
        before, manifest = digest_folder(folder), Manifest.load(folder)
        kind = rng.choice(["tar", "tar", "tar", INDEX_NAME, SUMS_NAME, MANIFEST_NAME, "file", "crafted", "crafted"])
        if kind == "crafted":
            return Damage(rng.choice([craft_manifest, craft_index, craft_sums, craft_clip])(rng, folder), crafted=True)
        path = rng.choice(sorted(folder.glob("*.tar"))) if kind == "tar" else folder / kind
        if kind == "file":
            path = rng.choice(sorted(folder.iterdir()))
            others = [other for other in sorted(folder.iterdir()) if other != path]
            kind = f"{path.name} {replace_file(rng, path, others)}"
            return Damage(kind, crafted=path.name == SKIPPED_NAME)
        edit(path, lambda content: damage_bytes(rng, content))
        changed = digest_folder(folder) != before and not (path.name == MANIFEST_NAME and says(folder, manifest))
        return Damage(f"bytes of {path.name}", must_fail=self.finds_all and changed)

    finds_all = False

    def run(self, folder: Path) -> Result:
        """Frames, joints and label of every clip of the split."""
        parts = {}
        with ClipLoader(ShardSet.open(folder), "all", PLAN, batch_size=3, train=False, max_bad_rate=1.0) as loader:
            for batch in loader:
                assert batch.video_BTHWC is not None and batch.joints_BMTVC is not None
                for number, key in enumerate(batch.keys):
                    pictures, joints = frames_of(batch.video_BTHWC)[number].numpy(), batch.joints_BMTVC[number].numpy()
                    parts[key] = digest(pictures.tobytes(), joints.tobytes(), str(int(batch.label_B[number])).encode())
        return Result(parts, loader.stats.clips_skipped)


class VideoLoaderArea(LoaderArea):
    """The same with clips that are videos."""

    codec = "h264"


class BlocksLoaderArea(LoaderArea):
    """The same with pictures in blocks."""

    codec = "blocks"


class VerifyArea(LoaderArea):
    """`svdata2vec verify` finds every damaged byte, and reports it in one line."""

    finds_all = True

    def run(self, folder: Path) -> Result:
        """Its output if it finds nothing."""
        said = command("verify", folder, "--workers", "1")
        return Result({"said": said.replace(str(folder), "")})


def says(folder: Path, manifest: Manifest) -> bool:
    """Whether the manifest's content is intact, and only its own sum, or a line break at its end, is damaged."""
    try:
        return Manifest.load(folder) == manifest
    except UserError:
        return False


def craft_manifest(rng: random.Random, folder: Path) -> str:
    """A value changed, the manifest's own sum right or removed."""
    fields = json.loads((folder / MANIFEST_NAME).read_bytes())
    fields.pop("manifest_crc32")
    if rng.random() < 0.3:
        fields[rng.choice(list(fields))] = odd_value(rng)
    else:
        fields = damage_value(rng, fields)
    text = json.dumps(fields, indent=1)
    if text.endswith("\n}") and rng.random() < 0.5:
        content = text.removesuffix("\n}").encode() + b",\n"
        (folder / MANIFEST_NAME).write_bytes(content + f' "manifest_crc32": {zlib.crc32(content)}\n}}\n'.encode())
    else:
        (folder / MANIFEST_NAME).write_text(text)
    return "a value of the manifest"


def craft_index(rng: random.Random, folder: Path) -> str:
    """A value of the index changed, its sum right, or the folder without sums."""
    content = npy_bytes(damage_rows(rng, np.load(folder / INDEX_NAME)))
    (folder / INDEX_NAME).write_bytes(content)
    manifest = Manifest.load(folder)
    sums = {} if rng.random() < 0.5 else manifest.crc32 | {INDEX_NAME: zlib.crc32(content)}
    replace(manifest, crc32=sums).save(folder)
    return "a value of the index"


def craft_sums(rng: random.Random, folder: Path) -> str:
    """Another array of sums, whose own sum is right."""
    sums = np.load(folder / SUMS_NAME)
    none = np.zeros(0, np.uint32)
    other = rng.choice([sums[:-1], sums[::-1], sums.astype(np.float64), sums[:, None], none, np.append(sums, sums)])
    (folder / SUMS_NAME).write_bytes(npy_bytes(other))
    manifest = Manifest.load(folder)
    replace(manifest, crc32=manifest.crc32 | {SUMS_NAME: zlib.crc32(npy_bytes(other))}).save(folder)
    return "other sums"


def craft_clip(rng: random.Random, folder: Path) -> str:
    """A clip whose description or arrays are odd, in a folder whose places, hashes and sums are all right."""
    shards = ShardSet.open(folder)
    names, index, sums, odd = shards.manifest.components, np.array(shards.index), [], rng.randrange(len(shards))
    what, entries = "", []
    for number, shard in enumerate(shards.manifest.shards):
        with TarWriter(folder / shard.name) as tar:
            for row in np.flatnonzero(index["shard"] == number).tolist():
                parts = {name: bytes(content) for name, content in shards.read(row, names).items() if content}
                if row == odd:
                    what = _craft_part(rng, parts)
                key = index["key"][row].decode()
                index["offset"][row], index["size"][row] = tar.add(key, parts, names)
                sums.append(_sums(parts, names, int(index["frames"][row])))
            sha256, size = tar.commit()
        entries.append(replace(shard, sha256=sha256, bytes=size))
    save_head(folder, replace(Manifest.load(folder), shards=tuple(entries)), index, sums)
    return what


def _sums(parts: dict[str, bytes], names: tuple[str, ...], frames: int) -> list[int]:
    """As many sums as the index promises, regardless of the clip's table of JPEGs or header of blocks."""
    head = "blocks" if "blocks" in names else "offsets.npy"
    try:
        found = clip_sums(parts, names)
    except ValueError:
        found = clip_sums({name: part for name, part in parts.items() if name != head}, names)
        found[names.index(head)] = zlib.crc32(parts[head])
    wanted = len(names) + ("jpegs" in names or "blocks" in names) * frames
    return (found + [0] * wanted)[:wanted]


def _craft_part(rng: random.Random, parts: dict[str, bytes]) -> str:
    name = rng.choice([name for name in parts if name not in ("jpegs", "mp4")])
    if name == "json":
        fields: dict[str, Any] = json.loads(parts[name])
        fields[rng.choice(list(fields))] = odd_value(rng)
        parts[name] = json.dumps(fields if rng.random() < 0.8 else damage_value(rng, fields)).encode()
    elif name == "blocks":
        content = parts[name]
        parts[name] = rng.choice([damage_bytes(rng, content[:16]) + content[16:], content[: rng.randrange(len(content))],
                                  content + content[: rng.randrange(1, 9999)]])
    else:
        array = np.load(io.BytesIO(parts[name]))
        odd = np.array(array)
        if odd.size:
            odd.flat[rng.randrange(odd.size)] = rng.choice([3e4, -3e4, 0]) if odd.dtype.kind != "f" else rng.choice(
                [np.nan, np.inf, -np.inf, 3e38, -3e38, 0])
        shaped = [odd, odd, odd[:, :-1] if odd.ndim > 1 else odd[:-1], odd.astype(np.float64), odd.astype("U3"), odd[..., None],
                  np.asfortranarray(odd), odd.astype(odd.dtype.newbyteorder()), np.zeros((0, 5)), np.array(3.0)]
        head = damage_bytes(rng, parts[name][:128])
        parts[name] = npy_bytes(rng.choice(shaped)) if rng.random() < 0.8 else head + parts[name][128:]
    if rng.random() < 0.1:
        del parts[name]
    return f"{name} of a clip"

