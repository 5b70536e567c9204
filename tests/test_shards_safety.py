"""Interruptions of packing: kill -9, a full disk, two packers, other input on resume, a cluster. The bytes never change."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from shards_data import deadly_pose, edit_manifest, folder_bytes, write_motion_set, write_video
from waiting import wait_for

from svdata2vec.shards.annotations import ClipAnnotation, DataSet, PoseFile, Skipped
from svdata2vec.shards.atomic import WriteFailedError
from svdata2vec.shards.errors import MachineError, UserError, WorkerDiedError
from svdata2vec.shards.executors import run_tasks
from svdata2vec.shards.layouts import COCO17, JointLayout
from svdata2vec.shards.packing import tarwriter
from svdata2vec.shards.packing.pack import PackOptions, Progress, pack
from svdata2vec.shards.packing.plan import fingerprint, make_plan
from svdata2vec.shards.readers.pyskl import read_pyskl
from svdata2vec.shards.readers.skeleton_text import read_text_skeleton
from svdata2vec.shards.readers.smarthome import read_smarthome, read_smarthome_json
from svdata2vec.shards.reading.manifest import PROGRAM
from svdata2vec.shards.reading.verify import verify

OPTIONS = PackOptions(workers=1, size=96, clips_per_shard=2)
RESUME = replace(OPTIONS, resume=True)

PACK_SCRIPT = """
import sys
from svdata2vec.shards.packing.pack import PackOptions, pack
from svdata2vec.shards.readers.pyskl import read_pyskl
if __name__ == "__main__":
    pickle_path, videos, out, workers = sys.argv[1:]
    options = PackOptions(workers=int(workers), size=96, clips_per_shard=2, resume=True)
    pack(read_pyskl(pickle_path, videos), out, options, progress=lambda state: print(state.clips_done, flush=True))
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Pickle and videos of ten clips, one of them broken."""
    root = tmp_path_factory.mktemp("source")
    pickle_path, videos = write_motion_set(root, 10)
    (videos / "S001C001P001R001A004.mp4").write_bytes(b"broken")
    return pickle_path, videos


@pytest.fixture(scope="module")
def dataset(source: tuple[Path, Path]) -> DataSet:
    """The ten clips."""
    return read_pyskl(*source)


@pytest.fixture(scope="module")
def undisturbed(dataset: DataSet, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Hashes of the files of a run without any trouble."""
    out = tmp_path_factory.mktemp("undisturbed") / "set"
    pack(dataset, out, OPTIONS)
    return folder_bytes(out)


@pytest.mark.parametrize("workers", [1, 2])
def test_kill_at_random_moments(source: tuple[Path, Path], undisturbed: dict[str, str], tmp_path: Path,
                                workers: int) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-c", PACK_SCRIPT, *map(str, source), str(out), str(workers)]
    if workers > 1:  # worker processes import the main module again: it must be a file
        (tmp_path / "packing.py").write_text(PACK_SCRIPT)
        command = [sys.executable, str(tmp_path / "packing.py"), *command[3:]]
    rng = random.Random(workers)
    seen_partial = 0
    for _ in range(3):
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()  # at least one shard is done
        time.sleep(rng.uniform(0, 0.03))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        seen_partial += not (out / "manifest.json").exists()
    assert seen_partial >= 1, "no run was cut in the middle"
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert folder_bytes(out) == undisturbed
    assert verify(out) == []


def test_workers_die_with_their_parent(source: tuple[Path, Path], tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import os, time\n"
        "from svdata2vec.shards.executors import run_tasks\n"
        "def worker(_):\n"
        "    return os.getpid()\n"
        "if __name__ == '__main__':\n"
        "    for pid in run_tasks(worker, [0], workers=2):\n"
        "        print(pid, flush=True)\n"
        "        time.sleep(60)\n")
    process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    worker = int(process.stdout.readline())
    process.kill()
    process.wait()
    wait_for(lambda: not running(worker), 10)


@pytest.mark.parametrize("starting", [False, True])
def test_ctrl_c_ends_workers_at_once_and_in_silence(tmp_path: Path, starting: bool) -> None:
    """A terminal sends it to all processes, including those that are still importing modules."""
    script = tmp_path / "parent.py"
    script.write_text(
        "import signal, sys, time\n"
        "from svdata2vec.shards.executors import run_tasks\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a job in the background inherits "ignore"
        "def worker(seconds):\n"
        "    print('begun', flush=True)\n"
        "    time.sleep(seconds)\n"
        "if __name__ == '__main__':\n"
        "    list(run_tasks(worker, [30] * 4, workers=2))\n"
        "elif sys.argv[1:]:\n"
        "    worker(30)\n")
    process = subprocess.Popen([sys.executable, str(script), *["starting"] * starting], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None
    process.stdout.readline()
    begun = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate()
    assert time.monotonic() - begun < 15
    assert said.count("Traceback") == 1 and said.endswith("KeyboardInterrupt\n"), said


def running(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("limit_bytes", [0, 700, 20_000, 150_000])
def test_full_disk_ends_cleanly(dataset: DataSet, undisturbed: dict[str, str], tmp_path: Path, limit_bytes: int,
                                monkeypatch: pytest.MonkeyPatch) -> None:
    left = limit_bytes
    real_write = tarwriter._HashingFile.write

    def write(self: tarwriter._HashingFile, content: bytes) -> int:
        nonlocal left
        left -= len(content)
        if left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real_write(self, content)

    monkeypatch.setattr(tarwriter._HashingFile, "write", write)
    with pytest.raises(MachineError, match=r"out: the disk is full \(No space left on device\); finished shards are kept: "
                                           r"free some space and run the same command with --resume"):
        pack(dataset, tmp_path / "out", OPTIONS)
    assert not list((tmp_path / "out").rglob("*.tmp")), "no half file is left"
    assert not (tmp_path / "out" / "manifest.json").exists()
    monkeypatch.undo()
    resumed: list[int] = []
    pack(dataset, tmp_path / "out", RESUME, progress=lambda state: resumed.append(state.resumed_clips))
    assert folder_bytes(tmp_path / "out") == undisturbed
    if limit_bytes == 150_000:
        assert resumed[-1] >= 1, "finished shards are not packed again"


def test_full_disk_in_a_worker_process(source: tuple[Path, Path], tmp_path: Path) -> None:
    """The system itself refuses to write more: files of this process tree are limited to 30 kB."""
    (tmp_path / "packing.py").write_text(
        "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (30000, 30000))\n" + PACK_SCRIPT)
    command = [sys.executable, str(tmp_path / "packing.py"), *map(str, source), str(tmp_path / "out"), "2"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode != 0
    assert "the disk is full (File too large); finished shards are kept" in result.stderr.splitlines()[-1]
    assert not list((tmp_path / "out").rglob("*.tmp"))


def test_two_packers_in_one_folder(dataset: DataSet, undisturbed: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    at_work, may_go = threading.Event(), threading.Event()

    def wait(_: Progress) -> None:
        at_work.set()
        assert may_go.wait(30)

    first = threading.Thread(target=pack, args=(dataset, out, OPTIONS, wait))
    first.start()
    assert at_work.wait(30)
    for options in (OPTIONS, RESUME):
        with pytest.raises(UserError, match=rf"out: process {os.getpid()} on .* is packing into this folder; wait"):
            pack(dataset, out, options)
    may_go.set()
    first.join()
    assert folder_bytes(out) == undisturbed


def test_resume_refuses_another_codec_and_other_bits(dataset: DataSet, tmp_path: Path) -> None:
    """By name: a codec's options are in the plan, those of another codec are not."""
    blocks = replace(RESUME, codec="blocks")
    stop_after_first_shard(dataset, tmp_path / "jpeg")
    with pytest.raises(UserError, match=r"cannot resume with other input: codec was 'jpeg', now 'blocks'.*; give the same"):
        pack(dataset, tmp_path / "jpeg", blocks)
    stop_after_first_shard(dataset, tmp_path / "blocks", replace(OPTIONS, codec="blocks"))
    with pytest.raises(UserError, match=r"cannot resume with other input: codec was 'blocks', now 'jpeg'"):
        pack(dataset, tmp_path / "blocks", RESUME)
    with pytest.raises(UserError, match=r"cannot resume with other input: luma_bits was 3, now 2; give the same input"):
        pack(dataset, tmp_path / "blocks", replace(blocks, luma_bits=2))
    pack(dataset, tmp_path / "blocks", blocks)
    pack(dataset, tmp_path / "whole", replace(OPTIONS, codec="blocks"))
    assert folder_bytes(tmp_path / "blocks") == folder_bytes(tmp_path / "whole")


def test_resume_refuses_other_input(dataset: DataSet, tmp_path: Path) -> None:
    out = tmp_path / "out"
    stop_after_first_shard(dataset, out)
    with pytest.raises(UserError, match="out: holds an unfinished packing; continue it with --resume, or delete the folder"):
        pack(dataset, out, OPTIONS)
    with pytest.raises(UserError, match=r"cannot resume with other input: quality was 90, now 50; give the same input"):
        pack(dataset, out, replace(RESUME, quality=50))
    fewer = replace(dataset, clips=dataset.clips[1:], splits={})
    gone = dataset.clips[0].key
    with pytest.raises(UserError, match=f"cannot resume with other input: clips was 10, now 9; missing are {gone}; give"):
        pack(fewer, out, RESUME)
    other = replace(dataset, clips=[replace(dataset.clips[0], key="other"), *dataset.clips[1:]], splits={})
    with pytest.raises(UserError, match=f"cannot resume with other input: new are other; missing are {gone}; give"):
        pack(other, out, RESUME)
    moved = replace(dataset, clips=[replace(dataset.clips[0], label=2), *dataset.clips[1:]])
    with pytest.raises(UserError, match="cannot resume with other input: the annotations have changed;"):
        pack(moved, out, RESUME)
    video = Path(dataset.clips[3].video)
    content = video.read_bytes()
    try:
        for change, message in ((lambda: video.write_bytes(content + b"more"), f"now it has {len(content) + 4};"),
                                (video.unlink, "now it is gone;")):
            change()
            with pytest.raises(UserError, match=rf"other input: {video} had {len(content)} bytes, {message}"):
                pack(dataset, out, RESUME)
    finally:
        video.write_bytes(content)


def test_resume_refuses_other_skeletons(tmp_path: Path) -> None:
    """A data set's skeletons come in versions, under the same names, even of the same size: one folder holds one of them."""
    videos, skeletons, out = tmp_path / "mp4", tmp_path / "skeletons", tmp_path / "out"
    videos.mkdir()
    skeletons.mkdir()
    stems = [f"Walk_p{subject:02d}_r00_v00_c01" for subject in (3, 4, 6, 7)]

    def write_version(digit: int) -> None:
        frames = [[{"pose2d": [float(f"1{digit}0"), *range(20, 45)]}]] * 4
        for stem in stems:
            (skeletons / f"{stem}_pose3d.json").write_text(json.dumps({"frames": frames}))

    for stem in stems:
        write_video(videos / f"{stem}.mp4", 4, height=144)  # of the shape of 640x480
    write_version(1)
    stop_after_first_shard(read_smarthome(videos, skeletons), out)
    sizes = [path.stat().st_size for path in sorted(skeletons.iterdir())]
    write_version(2)
    assert sizes == [path.stat().st_size for path in sorted(skeletons.iterdir())]
    with pytest.raises(UserError, match=r"out: cannot resume with other input: the skeletons have changed; give the same "
                                        "input, or delete the folder$"):
        pack(read_smarthome(videos, skeletons), out, RESUME)
    write_version(1)
    skeletons = skeletons.rename(tmp_path / "moved")  # other places and time stamps are the same input
    manifest = pack(read_smarthome(videos, skeletons), out, RESUME)
    write_version(2)
    with pytest.raises(UserError, match="out: holds a data set packed from other annotations"):
        pack(read_smarthome(videos, skeletons), out, RESUME)
    again = pack(read_smarthome(videos, skeletons), tmp_path / "again", OPTIONS)
    assert again.fingerprint != manifest.fingerprint and again.num_clips == manifest.num_clips == 4


@pytest.mark.parametrize(("changes", "name"), [
    ({"video_box": True}, "annotations"), ({"start_frame": 1}, "annotations"), ({"end_frame": 5}, "annotations"),
    ({"width": 640}, "annotations"), ({"pose_MTVC": np.zeros((2, 4, 17, 2), np.float32)}, "annotations"),
    ({"pose_file": PoseFile(read_text_skeleton, "b.txt", ((5, 6), 17, None, None))}, "annotations"),
    ({"pose_file": PoseFile(read_smarthome_json, "a.txt", ((0, 1), 17, None, None))}, "annotations"),
    ({"pose_file": PoseFile(read_text_skeleton, "other/a.txt", ((0, 1), 17, None, None))}, "skeletons"),
    ({"video": "other/clip.mp4"}, "videos"),
])
def test_the_plan_holds_what_decides_on_the_bytes(dataset: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                  changes: dict[str, object], name: str) -> None:
    monkeypatch.chdir(tmp_path)
    for folder, text in ((".", "one"), ("other", "others")):
        Path(folder).mkdir(exist_ok=True)
        for file in ("clip.mp4", "a.txt", "b.txt"):
            Path(folder, file).write_text(text)
    clip = ClipAnnotation("a", 0, "clip.mp4", pose_MTVC=np.zeros((1, 8, 17, 2), np.float32),
                          pose_file=PoseFile(read_text_skeleton, "a.txt", ((0, 1), 17, None, None)))
    before, after = (make_plan(replace(dataset, clips=[entry]), OPTIONS) for entry in (clip, replace(clip, **changes)))
    assert [field for field in before if before[field] != after[field]] == [name]
    assert fingerprint(before) != fingerprint(after)


OTHER: dict[type, dict[str, object]] = {  # a change of every field
    ClipAnnotation: {
        "key": "b", "label": 1, "video": "b.mp4", "num_frames": 8, "width": 640, "height": 480,
        "pose_MTVC": np.ones((1, 8, 3, 2), np.float32), "score_MTV": np.zeros((1, 8, 3)), "box_T4": np.zeros((8, 4)),
        "subject": 1, "camera": 2, "setup": 3, "pose_file": None, "video_box": True, "start_frame": 1, "end_frame": 7},
    PoseFile: {"read": read_smarthome_json, "path": "b.txt", "arguments": ((0, 2), 3, None, None)},
    JointLayout: {"name": "other", "joints": ("nose", "l_ear", "r_ear"), "edges": ((0, 2),), "left": (0,), "right": (0,)},
    DataSet: {
        "name": "other", "layout": COCO17, "classes": ("x", "y", "z"), "splits": {"train": ["a"]}, "clips": [],
        "skipped": [Skipped("c", "broken")], "published": {"test": 9}, "split_classes": {"test": ("y",)}},
    PackOptions: {
        "codec": "h264", "quality": 30, "chroma": "444", "gop": 5, "size": 64, "clips_per_shard": 3, "seed": 1,
        "pose_slack": 1, "workers": 3, "cluster": "tcp://a:1", "resume": True, "luma_bits": 2, "chroma_bits": 3},
}
CODEC_OF = {"gop": "h264", "luma_bits": "blocks", "chroma_bits": "blocks"}  # of options that jpeg does not have


@pytest.mark.parametrize(("kind", "name"), [(kind, field.name) for kind in OTHER for field in fields(kind)])
def test_every_field_is_in_the_plan(kind: type, name: str) -> None:
    """Except those for where and how fast to pack: all others determine the bytes and the manifest."""
    def plan(changes: dict[str, object]) -> dict[str, object]:
        def made(part: Any, **values: Any) -> Any:
            return part(**values | (changes if part is kind else {}))

        pose_file = made(PoseFile, read=read_text_skeleton, path="a.txt", arguments=((0, 1), 3, None, None))
        clip = made(ClipAnnotation, key="a", label=0, video="a.mp4", pose_MTVC=np.zeros((1, 8, 3, 2), np.float32),
                    pose_file=pose_file)
        layout = made(JointLayout, name="own", joints=("nose", "l_eye", "r_eye"), edges=((0, 1),), left=(1,), right=(2,))
        dataset = made(DataSet, name="own", layout=layout, classes=("x", "y"), splits={"test": ["a"]}, clips=[clip])
        return make_plan(dataset, made(PackOptions, workers=1, codec=CODEC_OF.get(name, "jpeg")))

    before, after = plan({}), plan({name: OTHER[kind][name]})
    assert (fingerprint(before) == fingerprint(after)) == (name in ("workers", "cluster", "resume"))
    if kind is PackOptions:
        assert before.get(name) != after.get(name) or name in ("workers", "cluster", "resume")


def stop_after_first_shard(dataset: DataSet, out: Path, options: PackOptions = OPTIONS) -> None:
    """Start to pack and be interrupted from the keyboard."""
    def interrupt(_: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(dataset, out, options, progress=interrupt)


def test_resume_packs_again_what_is_not_as_recorded(dataset: DataSet, undisturbed: dict[str, str],
                                                    tmp_path: Path) -> None:
    out = tmp_path / "out"
    stop_after_first_shard(dataset, out)
    tar = next(out.glob("*.tar"))
    tar.write_bytes(tar.read_bytes()[:1000])
    (out / "shard-000003.tar.0123.tmp").write_bytes(b"left by a killed run")
    pack(dataset, out, RESUME)
    assert folder_bytes(out) == undisturbed


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"[" * 100_000, b'{"number": 0, "rows": [1]}'])
def test_torn_files_of_a_packing(dataset: DataSet, undisturbed: dict[str, str], tmp_path: Path, content: bytes) -> None:
    """As a failing disk leaves them. Shards with damaged records are packed again; without a plan packing cannot continue."""
    out = tmp_path / "out"
    stop_after_first_shard(dataset, out)
    whole = (out / ".parts" / "plan.json").read_bytes()
    (out / ".parts" / "plan.json").write_bytes(content)
    with pytest.raises(UserError, match=r"plan\.json: damaged; expected|out: an unfinished packing by another version"):
        pack(dataset, out, RESUME)
    (out / ".parts" / "plan.json").write_bytes(whole)
    for name in ("shard-000000.json", *([] if b"number" in content else ["refused.json"])):
        (out / ".parts" / name).write_bytes(content)
    pack(dataset, out, RESUME)
    assert folder_bytes(out) == undisturbed


def test_folders_of_another_version_are_left_alone(dataset: DataSet, undisturbed: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    stop_after_first_shard(dataset, out)
    plan = out / ".parts" / "plan.json"
    plan.write_text(json.dumps(json.loads(plan.read_text()) | {"version": "svdata2vec 0.1.0"}))
    with pytest.raises(UserError, match=r"out: an unfinished packing by another version \(svdata2vec 0\.1\.0, this is "
                                        rf"{PROGRAM}\); continue with the version that started it, or pack into another f"):
        pack(dataset, out, RESUME)
    same = json.loads(plan.read_text()) | {"version": PROGRAM}
    plan.write_text(json.dumps(same | {"earlier_option": 1}))
    with pytest.raises(UserError, match=rf"out: an unfinished packing by another state of {PROGRAM}; continue with the"):
        pack(dataset, out, RESUME)
    with pytest.raises(UserError, match=r"codec was 'jpeg', now 'vp9'; quality was 90, now 24; give the same input"):
        pack(dataset, out, replace(RESUME, codec="vp9"))
    plan.write_text(json.dumps(same))
    pack(dataset, out, RESUME)
    manifest = (out / "manifest.json").read_text()
    edit_manifest(out, created_with="svdata2vec 0.1.0")
    with pytest.raises(UserError, match=rf"out: holds a data set packed by svdata2vec 0\.1\.0, which {PROGRAM} reads but does "
                                        "not compare with its own input; keep it, or pack into another folder$"):
        pack(dataset, out, RESUME)
    (out / "manifest.json").write_text(manifest)
    assert folder_bytes(out) == undisturbed


def test_finished_folders_are_left_alone(dataset: DataSet, undisturbed: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    manifest = pack(dataset, out, RESUME)
    with pytest.raises(UserError, match=r"out: holds a finished data set \(motion\); choose another folder or"):
        pack(dataset, out, OPTIONS)
    with pytest.raises(UserError, match="out: holds a data set packed from other annotations or with other options"):
        pack(dataset, out, replace(RESUME, pose_slack=3))
    for change, message in (
        ({"quality": 50}, "quality was 90, now 50"),
        ({"codec": "blocks", "size": 64}, "codec was jpeg, now blocks, size was 96, now 64"),
    ):
        with pytest.raises(UserError, match=f"out: holds a data set packed with other options: {message}; nothing is added"):
            pack(dataset, out, replace(RESUME, **change))  # type: ignore[arg-type]
    (out / ".parts").mkdir()  # as a run leaves it that is killed right after the manifest
    assert pack(dataset, out, RESUME) == manifest
    assert folder_bytes(out) == undisturbed
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match=r"other: the folder is not empty \(thesis\.tex\); choose another one"):
        pack(dataset, tmp_path / "other", RESUME)


def test_cannot_write_is_named(dataset: DataSet, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "a" / "b"):
        with pytest.raises(WriteFailedError, match=f"^{out} could not be written: {tmp_path / 'file'} is no folder$"):
            pack(dataset, out, OPTIONS)


def test_cluster_gives_the_same_bytes(dataset: DataSet, undisturbed: dict[str, str], tmp_path: Path) -> None:
    import dask
    import distributed
    local = {"n_workers": 2, "threads_per_worker": 1, "processes": True, "dashboard_address": None}
    with dask.config.set({"distributed.scheduler.allowed-failures": 0}), distributed.LocalCluster(**local) as cluster:
        address = cluster.scheduler_address
        pack(dataset, tmp_path / "out", replace(OPTIONS, cluster=address))
        assert folder_bytes(tmp_path / "out") == undisturbed
        with pytest.raises(WorkerDiedError, match=f"--cluster {address}: workers died"):
            list(run_tasks(os._exit, [1], workers=1, cluster=address))


def test_a_clip_that_crashes_its_worker_is_listed(dataset: DataSet, tmp_path: Path) -> None:
    deadly = [replace(clip, pose_MTVC=None, score_MTV=None, pose_file=PoseFile(deadly_pose, clip.key), num_frames=None)
              if clip.key.endswith("A009") else clip for clip in dataset.clips]
    pack(replace(dataset, clips=deadly), tmp_path / "out", replace(OPTIONS, workers=2))
    found = [json.loads(line) for line in (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()]
    assert [entry["key"][-4:] for entry in found] == ["A004", "A009"]
    assert "A009.mp4: crashes the process that decodes it (a fault in the decoder, or more memory" in found[1]["reason"]
    assert found[1]["splits"] == ["train", "half_val"]
    assert verify(tmp_path / "out") == []


def test_cluster_that_is_not_there(dataset: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("svdata2vec.shards.executors.CONNECT_SECONDS", 1.0)
    with pytest.raises(UserError, match=r"--cluster tcp://127\.0\.0\.1:9: no dask scheduler answers there"):
        pack(dataset, tmp_path / "out", replace(OPTIONS, cluster="tcp://127.0.0.1:9"))


def test_memory_stays_flat(tmp_path: Path) -> None:
    """Packing 30 clips needs hardly more memory than packing 3: nothing is kept per clip."""
    videos = tmp_path / "videos"
    (videos / "walk").mkdir(parents=True)
    first = write_video(videos / "walk" / "v00.mp4", 6, width=640, height=480)
    for i in range(1, 30):
        (videos / "walk" / f"v{i:02d}.mp4").hardlink_to(first)
    script = (
        "import json, resource, sys\n"
        "from dataclasses import replace\n"
        "from svdata2vec.shards.packing.pack import PackOptions, pack\n"
        "from svdata2vec.shards.readers.videos import read_video_folder\n"
        "whole = read_video_folder(sys.argv[1])\n"
        "peaks = []\n"
        "for count in (3, 30):\n"
        "    keys = [clip.key for clip in whole.clips[:count]]\n"
        "    part = replace(whole, clips=whole.clips[:count], splits={'train': keys})\n"
        "    pack(part, f'{sys.argv[2]}/{count}', PackOptions(workers=1, clips_per_shard=15))\n"
        "    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)\n"
        "print(json.dumps(peaks))\n")
    result = subprocess.run([sys.executable, "-c", script, str(videos), str(tmp_path)], check=True,
                            stdout=subprocess.PIPE)
    few_mib, many_mib = json.loads(result.stdout)
    assert many_mib - few_mib < 8, f"{few_mib:.0f} MiB for 3 clips, {many_mib:.0f} for 30"
