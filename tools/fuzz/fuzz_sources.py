"""Areas of the fuzzer: input of packing. These files have no checksums: the result may change, a traceback is never allowed."""

import json
import pickle
import random
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from fuzz_case import Damage, Result, command, digest, digest_folder
from fuzz_damage import damage_bytes, damage_text, damage_value, edit, odd_value
from shards_data import block_pose, write_motion_set, write_video

from svdata2vec.shards.reading.shardset import ShardSet

FRAMES = 4
OPTIONS = ("--size", "64", "--workers", "1")


def packed(folder: Path, *words: object) -> Result:
    """Pack, and return the content of the shards."""
    out = folder / "out"
    command("shard", *words, *OPTIONS, out)
    shards = ShardSet.open(out)
    names = shards.manifest.components
    parts = {key.decode(): digest(*map(bytes, shards.read(row, names).values())) for row, key in enumerate(shards.index["key"])}
    return Result(parts, len((out / "skipped.jsonl").read_text().splitlines()))


class PickleArea:
    """Annotation pickles: bytes, operations and values."""

    def prepare(self, folder: Path) -> None:
        """Three videos and their pickle."""
        write_motion_set(folder, 3, FRAMES)

    def damage(self, rng: random.Random, folder: Path) -> Damage:
        """The pickle, now and then the file of classes."""
        path, kind = folder / "motion.pkl", rng.choice(["bytes", "operations", "values", "values", "arrays", "classes"])
        content = pickle.loads(path.read_bytes())
        if kind == "bytes":
            edit(path, lambda content: damage_bytes(rng, content))
        elif kind == "operations":
            edit(path, lambda content: insert_operations(rng, content))
        elif kind == "values":
            path.write_bytes(pickle.dumps(damage_value(rng, content), rng.choice([2, 4, 5])))
        elif kind == "arrays":
            entry = rng.choice(content["annotations"])
            name = rng.choice(["keypoint", "keypoint_score"])
            entry[name] = odd_array(rng, entry[name])
            path.write_bytes(pickle.dumps(content, rng.choice([2, 4, 5])))
        else:
            edit(folder / "classes.txt", lambda content: damage_text(rng, content))
        return Damage(f"{kind} of the pickle", crafted=True)

    def run(self, folder: Path) -> Result:
        """Packed."""
        return packed(folder, "pyskl", "--pickle-path", folder / "motion.pkl", "--videos", folder / "videos")


def odd_array(rng: random.Random, array: np.ndarray) -> Any:
    """An array of another shape, type or with odd numbers."""
    odd = np.array(array, np.float64)
    odd.flat[rng.randrange(odd.size)] = rng.choice([np.nan, np.inf, -1e300, 1e9, 0])
    return rng.choice([
        odd, odd, odd[:, :-1], odd[..., None], odd[0], odd.astype("U4"), odd.astype(object), odd.astype(complex), odd > 0,
        odd.tolist(), np.zeros((0, *odd.shape[1:])), np.zeros((1, 0, *odd.shape[2:])), np.full_like(odd, np.nan),
        np.repeat(odd, 40, 0), np.array(7), np.zeros(3, [("a", "i4")]), odd.astype(">f4"), np.datetime64("2020-01-01"), "text",
        None,
    ])


def insert_operations(rng: random.Random, content: bytes) -> bytes:
    """Operations inserted somewhere into a pickle: calls, sizes, memo indices."""
    number = rng.choice([0, 1, 255, 2**16, 2**30, 2**31 - 1, 2**32 - 1]).to_bytes(4, "little")
    sized = [b"\x8e" + number + bytes(4), b"\x96" + bytes(4) + number, b"\x95" + bytes(4) + number, b"X" + number,
             b"B" + number, b"r" + number, b"j" + number, b"\x8b" + number]
    names = [b"os\nsystem", b"numpy\nndarray", b"numpy\ndtype", b"builtins\nset", b"numpy.core.multiarray\n_reconstruct"]
    whole = b"cnumpy\nndarray\nK\x01\x85cnumpy\ndtype\nX\x01\x00\x00\x00O\x85RC\x08AAAAAAAA\x87R"  # an array of addresses
    plain = [bytes([code]) for code in b"Rb\x93\x8102(tsuaeN"]
    put = rng.choice([*plain, *sized, *(b"c" + name + b"\n" for name in names), b"Pid\n", whole])
    place = rng.randrange(2, len(content))
    return content[:place] + put + content[place + rng.choice([0, len(put)]) :]


class TableArea:
    """Tables of paths, labels and splits."""

    def prepare(self, folder: Path) -> None:
        """Three videos in a table."""
        (folder / "videos").mkdir()
        lines = ["path,label,split"]
        for number, label in enumerate(("walk", "run", "walk")):
            write_video(folder / "videos" / f"clip{number}.mp4", FRAMES, seed=number)
            lines.append(f"videos/clip{number}.mp4,{label},{'train' if number else 'val'}")
        (folder / "clips.csv").write_text("\n".join(lines) + "\n")

    def damage(self, rng: random.Random, folder: Path) -> Damage:
        """The table."""
        edit(folder / "clips.csv", lambda content: damage_text(rng, content))
        return Damage("the table", crafted=True)

    def run(self, folder: Path) -> Result:
        """Packed."""
        return packed(folder, "csv", "--table", folder / "clips.csv")


class VideoArea(TableArea):
    """Source videos."""

    def damage(self, rng: random.Random, folder: Path) -> Damage:
        """A video."""
        edit(folder / "videos" / f"clip{rng.randrange(3)}.mp4", lambda content: damage_bytes(rng, content))
        return Damage("a video", crafted=True)


class SkeletonArea:
    """NTU's .skeleton files."""

    def prepare(self, folder: Path) -> None:
        """Two samples."""
        for name in ("videos", "skeletons"):
            (folder / name).mkdir()
        pose = block_pose(FRAMES, 25)[0] * 10
        for number in (1, 2):
            name = f"S001C001P001R001A00{number}"
            write_video(folder / "videos" / f"{name}_rgb.avi", FRAMES, codec="mpeg4", seed=number, height=108)
            lines = [str(FRAMES)]
            for joints in pose:
                lines += ["1", "72057594037931101 0 1 1 1 1 0 0.02 -0.3 2", "25"]
                lines += [f"0.5 0.5 0.5 0.5 0.5 {x:.4f} {y:.4f} 0.5 0.5 0.5 0.5 2" for x, y in joints]
            (folder / "skeletons" / f"{name}.skeleton").write_text("\n".join(lines) + "\n")

    def damage(self, rng: random.Random, folder: Path) -> Damage:
        """One file of skeletons."""
        edit(folder / "skeletons" / "S001C001P001R001A001.skeleton", lambda content: damage_text(rng, content))
        return Damage("a file of skeletons", crafted=True)

    def run(self, folder: Path) -> Result:
        """Packed."""
        return packed(folder, "ntu60-skeleton", "--skeletons", folder / "skeletons", "--videos", folder / "videos")


class SmarthomeArea:
    """Smarthome's JSON skeletons."""

    def prepare(self, folder: Path) -> None:
        """Two clips."""
        for name in ("videos", "skeletons"):
            (folder / name).mkdir()
        for name in ("Walk_p02_r00_v02_c03", "Enter_p03_r01_v05_c04"):
            write_video(folder / "videos" / f"{name}.mp4", FRAMES, height=120, width=160)
            joints = block_pose(FRAMES, 13)[0] * 4
            rows = [[*joints[t, :, 0].tolist(), *joints[t, :, 1].tolist()] for t in range(FRAMES)]
            frames = [[{"pose2d": row, "cumscore": 5.0}] for row in rows]
            (folder / "skeletons" / f"{name}_pose3d.json").write_text(json.dumps({"K": 3, "njts": 13, "frames": frames}))

    def damage(self, rng: random.Random, folder: Path) -> Damage:
        """One file: a value, or bytes."""
        path = folder / "skeletons" / "Walk_p02_r00_v02_c03_pose3d.json"
        if rng.random() < 0.6:
            path.write_text(json.dumps(damage_value(rng, json.loads(path.read_text()))))
        else:
            edit(path, lambda content: damage_bytes(rng, content))
        return Damage("a file of skeletons", crafted=True)

    def run(self, folder: Path) -> Result:
        """Packed."""
        return packed(folder, "smarthome", "--skeletons", folder / "skeletons", "--videos", folder / "videos")


class ResumeArea(PickleArea):
    """A packing that was killed and whose notes are damaged before it resumes."""

    def prepare(self, folder: Path) -> None:
        """Packed in shards of one clip, without the manifest: the files that it leaves just before its end."""
        write_motion_set(folder, 3, FRAMES)
        with mock.patch("svdata2vec.shards.packing.pack.shutil.rmtree"):  # which removes the notes at the end
            self._pack(folder)
        (folder / "out" / "manifest.json").unlink()

    def _pack(self, folder: Path, *words: str) -> None:
        sources = ("--pickle-path", folder / "motion.pkl", "--videos", folder / "videos")
        command("shard", "pyskl", *sources, *OPTIONS, "--clips-per-shard", "1", *words, folder / "out")

    def damage(self, rng: random.Random, folder: Path) -> Damage:
        """A record, the plan, or a tar's length."""
        parts = sorted((folder / "out" / ".parts").iterdir())
        path = rng.choice(parts)
        if rng.random() < 0.5:
            head, brace, text = path.read_text().partition("{")
            path.write_text(head + json.dumps(damage_value(rng, json.loads(brace + text))))
        elif rng.random() < 0.5:
            edit(path, lambda content: damage_bytes(rng, content))
        else:
            path.write_text(json.dumps(odd_value(rng)))
        return Damage(f"{path.name}", crafted=True)

    def run(self, folder: Path) -> Result:
        """Resume it, and return the result of `verify`."""
        self._pack(folder, "--resume")
        shutil.rmtree(folder / "out" / ".parts", ignore_errors=True)
        said = command("verify", folder / "out", "--workers", "1")
        return Result({"out": digest_folder(folder / "out"), "verify": said[-16:]})
