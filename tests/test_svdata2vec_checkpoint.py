"""Checkpoints and published weights: damage is noticed, older intact ones are used, crafted ones end in one line."""

import collections
import errno
import io
import json
import pickle
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from svdata2vec.config.schema import OptimConfig
from svdata2vec.runs import checkpoint
from svdata2vec.runs.checkpoint import Checkpoints, read_checkpoint
from svdata2vec.runs.failures import SaveFailedError
from svdata2vec.runs.published import load_published, publish
from svdata2vec.runs.torch_file import StandIn, read_torch_file
from svdata2vec.shards.errors import UserError
from svdata2vec.training.optim import build_optimizer, load_optimizer

DAMAGES = 200


def state(step: int) -> dict[str, Any]:
    """What checkpoints hold, small: tensors of several types, also views and shared ones, and plain values."""
    generator = torch.Generator().manual_seed(step)
    weight = torch.randn(20, 30, generator=generator)
    return {
        "model": collections.OrderedDict(weight=weight, transposed=weight.T, part=weight[3:5, ::2], half=weight.bfloat16()),
        "optimizer": {"state": {0: {"step": torch.tensor(3.0), "exp_avg": weight * 2}}, "param_groups": [{"params": [0]}]},
        "counts": torch.arange(7), "flags": torch.tensor([True, False]), "empty": torch.empty(0, 3),
        "stepper": {"values": {"lr": 1e-3}, "skipped": 0}, "config": "{}",
    }


def assert_same(a: Any, b: Any) -> None:
    """Equal in structure and bit for bit in tensors."""
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b) and a.dtype == b.dtype and a.stride() == b.stride()
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for name in a:
            assert_same(a[name], b[name])
    elif isinstance(a, list):
        assert len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            assert_same(one, other)
    else:
        assert a == b


@pytest.mark.parametrize("older", [False, True])
def test_saved_settings_are_read_back(older: bool, tmp_path: Path) -> None:
    """As PyTorch reads it, in both of its formats; views share their memory as before."""
    path = tmp_path / "x.pt"
    torch.save(state(1), path, _use_new_zipfile_serialization=not older)
    found = read_torch_file(path)
    assert_same(found, torch.load(path, weights_only=True))
    found["model"]["weight"][4, 0] = 77.0
    assert found["model"]["transposed"][0, 4] == found["model"]["part"][1, 0] == 77


def test_a_checkpoint_of_ours_is_one_for_pytorch_too(tmp_path: Path) -> None:
    path = Checkpoints(tmp_path, 2).save(5, state(5))
    assert_same(torch.load(path, weights_only=True), read_checkpoint(path))
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None and archive.comment.startswith(b"sha256=")


def test_no_damaged_byte_is_taken_for_good(tmp_path: Path) -> None:
    """One byte anywhere, a piece cut off or added, zeros: the checkpoint before it is taken, with the file named."""
    checkpoints = Checkpoints(tmp_path, 2)
    checkpoints.save(4, state(4))
    path = checkpoints.save(5, state(5))
    whole, rng = path.read_bytes(), random.Random(0)
    for number in range(DAMAGES):
        content = bytearray(whole)
        place = rng.randrange(len(whole))
        if number % 5 == 0:
            content = content[:place]
        elif number % 5 == 1:
            content[place : place + 64] = bytes(len(content[place : place + 64]))
        else:
            content[place] ^= 1 << rng.randrange(8)
        if content == whole:
            continue
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"step-000000005\.pt is damaged: "):
            read_checkpoint(path)
    found = checkpoints.load_newest()
    assert found is not None and found["step"] == 4
    path.write_bytes(whole + b"more")
    with pytest.raises(UserError, match="its end is not that of a checkpoint"):
        read_checkpoint(path)


@pytest.mark.parametrize("keep", [1, 2])
def test_checkpoints_saved_after_a_damaged_one_stay(keep: int, tmp_path: Path) -> None:
    """The run is behind the step of the damaged file, which is no newer than what the run saves then."""
    checkpoints = Checkpoints(tmp_path, keep)
    for step in (5, 10):
        Checkpoints(tmp_path, 2).save(step, state(step))
    checkpoints.paths()[-1].write_bytes(b"torn")
    for step in (6, 7, 8):
        assert checkpoints.save(step, state(step)).is_file()
        assert read_step(checkpoints) == step
    assert [path.stem for path in checkpoints.paths()] == [f"step-{step:09d}" for step in (7, 8, 10)[2 - keep :]]


def test_a_full_disk_is_rid_of_torn_checkpoints_before_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The room that they take may be what the next one lacks."""
    checkpoints = Checkpoints(tmp_path, 2)
    torn = checkpoints.save(5, state(5)).with_name("step-000000006.pt.0123.tmp")
    torn.write_bytes(b"left by a killed run")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_hashed", full)
    with pytest.raises(SaveFailedError, match="No space left on device"):
        checkpoints.save(6, state(6))
    assert [path.name for path in checkpoints.folder.iterdir()] == ["step-000000005.pt"]


def read_step(checkpoints: Checkpoints) -> int:
    found = checkpoints.load_newest()
    assert found is not None
    return found["step"]


def test_a_checkpoint_under_another_name_is_not_taken(tmp_path: Path) -> None:
    path = Checkpoints(tmp_path, 2).save(5, state(5))
    with pytest.raises(UserError, match="does not say that it is of this step"):
        read_checkpoint(path.rename(path.with_name("step-000000006.pt")))


def test_checksums_of_the_archive_guard_what_has_no_hash(tmp_path: Path) -> None:
    """As checkpoints of earlier versions."""
    path = tmp_path / "step-000000005.pt"
    torch.save({**state(5), "step": 5}, path)
    assert read_checkpoint(path)["step"] == 5
    content = bytearray(path.read_bytes())
    place = content.index(struct.pack("<f", 6.0) if struct.pack("<f", 6.0) in content else struct.pack("<q", 6))
    content[place] ^= 4
    path.write_bytes(content)
    with pytest.raises(UserError, match="Bad CRC-32"):
        read_checkpoint(path)


class Op:
    """A call in a crafted pickle."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


class Storage:
    """What a crafted pickle says of a storage."""

    def __init__(self, *identity: Any) -> None:
        self.identity = identity


def crafted(value: Any = None, code: bytes | None = None) -> io.BytesIO:
    """A checkpoint with this value, or this pickle, beside a storage "0"."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: Any) -> Any:
            return obj.identity if isinstance(obj, Storage) else None

    if code is None:
        Pickler(buffer := io.BytesIO(), protocol=2).dump(value)
        code = buffer.getvalue()
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in (("data.pkl", code), ("byteorder", b"little"), ("data/0", bytes(40)), ("version", b"3\n")):
            archive.writestr(f"x/{name}", content)
    return file


def storage(key: Any = "0", count: Any = 10, kind: Any = torch.FloatStorage) -> Storage:
    return Storage("storage", kind, key, "cpu", count)


def tensor(offset: Any, size: Any, stride: Any, of: Storage | None = None) -> Op:
    return Op(torch._utils._rebuild_tensor_v2, of or storage(), offset, size, stride, False, collections.OrderedDict())


DEEP = b"\x80\x02}" + b"N" + b"\x85" * 100_000 + b"Ns."
CRAFTED: dict[str, Callable[[], io.BytesIO]] = {
    "beyond its storage": lambda: crafted(tensor(0, (11,), (1,))),
    "beyond it by its offset": lambda: crafted(tensor(8, (3,), (1,))),
    "beyond it by its stride": lambda: crafted(tensor(0, (4,), (4,))),
    "negative stride": lambda: crafted(tensor(5, (4,), (-1,))),
    "negative offset": lambda: crafted(tensor(-5, (4,), (1,))),
    "more elements than the storage": lambda: crafted(tensor(0, (10**12,), (0,))),
    "sizes that overflow": lambda: crafted(tensor(0, (2**40, 2**40), (2**62, 2**62))),
    "sizes and strides of other lengths": lambda: crafted(tensor(0, (2, 2), (1,))),
    "size that is no number": lambda: crafted(tensor(0, ("a",), (1,))),
    "a storage of other bytes": lambda: crafted(tensor(0, (1,), (1,), storage(count=10**9))),
    "a storage of two types": lambda: crafted([tensor(0, (1,), (1,)), tensor(0, (1,), (1,), storage(kind=torch.IntStorage))]),
    "a storage that is not there": lambda: crafted(tensor(0, (1,), (1,), storage("9"))),
    "a storage that is no name": lambda: crafted(tensor(0, (1,), (1,), storage(["0"]))),
    "a member outside the folder": lambda: crafted(tensor(0, (1,), (1,), storage("../version"))),
    "a sparse tensor": lambda: crafted(
        Op(torch._utils._rebuild_sparse_tensor, torch.sparse_coo, (tensor(0, (1, 1), (1, 1)), tensor(0, (1,), (1,)), (1,)))
    ),
    "a quantised tensor": lambda: crafted(Op(torch._utils._rebuild_qtensor, storage())),
    "a tensor with a state": lambda: crafted(code=pickled_call(b"(tb", tensor(0, (1,), (1,)))),
    "code": lambda: crafted(Op(print, "run")),
    "a deep key": lambda: crafted(code=DEEP),
    "a deep list": lambda: crafted(code=b"\x80\x02" + b"]" * 50_000 + b"a" * 49_999 + b"e."),
    "a place in the memo": lambda: crafted(code=b"\x80\x02Nr\xff\xff\xff\x7f0}."),
    "bytes that are not there": lambda: crafted(code=b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"."),
    "an empty pickle": lambda: crafted(code=b""),
    "no operation": lambda: crafted(code=b"\xff" * 10),
    "a call of a number": lambda: crafted(code=b"\x80\x02K\x01)R."),
}


def pickled_call(after: bytes, value: Any) -> bytes:
    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: Any) -> Any:
            return obj.identity if isinstance(obj, Storage) else None

    Pickler(buffer := io.BytesIO(), protocol=2).dump(value)
    return buffer.getvalue()[:-1] + after + b"."


@pytest.mark.parametrize("name", CRAFTED)
def test_a_crafted_file_ends_in_one_line(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "step-000000005.pt"
    path.write_bytes(CRAFTED[name]().getvalue())
    for read in (lambda: read_torch_file(path), lambda: read_torch_file(path, set()), lambda: read_checkpoint(path)):
        try:
            found = read()
        except UserError as error:
            assert "\n" not in str(error)
            continue
        assert isinstance(found, StandIn | dict | list)  # what the last of them never gives
    assert capsys.readouterr().out == ""
    with pytest.raises(UserError):
        read_checkpoint(path)


def test_a_compressed_archive_is_no_checkpoint(tmp_path: Path) -> None:
    """A few bytes could be gigabytes."""
    with zipfile.ZipFile(tmp_path / "x.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", b"\x80\x02}.")
        archive.writestr("x/data/0", bytes(1 << 24))
    with pytest.raises(UserError, match="its members are compressed"):
        read_torch_file(tmp_path / "x.pt")


def publish_tiny(folder: Path) -> Path:
    publish(folder, {"a": torch.arange(600.0), "b.c": torch.ones(3, 4, dtype=torch.int64)}, {
        "kind": "finetune", "config": {}, "num_joints": 17, "classes": ["sit", "stand"],
    })
    return folder / "model.safetensors"


def test_no_damage_to_published_weights_is_taken_for_good(tmp_path: Path) -> None:
    path = publish_tiny(tmp_path / "run")
    whole, rng = path.read_bytes(), random.Random(0)
    weights, _ = load_published(tmp_path / "run")
    for number in range(DAMAGES):
        content = bytearray(whole)
        place = rng.randrange(len(whole) if number % 2 else 400)  # every second one in the header
        content[place] ^= 1 << rng.randrange(8)
        path.write_bytes(content if number % 7 else content[:place])
        try:
            found, _ = load_published(tmp_path / "run")
        except UserError as error:
            assert f"{path} is damaged" in str(error) and "\n" not in str(error)
            continue
        assert_same(dict(sorted(found.items())), dict(sorted(weights.items())))  # of the word "sha256" alone


def test_the_hash_travels_with_the_weights_and_old_files_have_none(tmp_path: Path) -> None:
    path = publish_tiny(tmp_path / "run")
    weights, _ = load_published(path)
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "model.json").write_bytes((tmp_path / "run" / "model.json").read_bytes())
    (copy / "model.safetensors").write_bytes(path.read_bytes()[:-1] + b"\1")
    with pytest.raises(UserError, match="is not what was written"):
        load_published(copy)
    with safetensors.safe_open(path, "pt") as file:
        written = file.metadata()
    for other in (weights["a"][None], weights["a"].view(torch.int32)):  # the same bytes, of another shape or type
        (copy / "model.safetensors").write_bytes(safetensors.torch.save({**weights, "a": other}, written))
        with pytest.raises(UserError, match="is not what was written"):
            load_published(copy)
    for header in (None, {"format": "pt"}):  # as 0.2.0 and others write it
        (copy / "model.safetensors").write_bytes(safetensors.torch.save(weights, header))
        assert_same(load_published(copy)[0], weights)
    with safetensors.safe_open(path, "pt") as file:
        assert len(json.loads(file.metadata()["svdata2vec"])["sha256"]) == 64
    path.with_name("model.json").unlink()
    with pytest.raises(UserError, match=r"no model\.json; expected the folder of a finished run"):
        load_published(path)


def optimizer() -> tuple[list[torch.nn.Parameter], torch.optim.AdamW]:
    parameters = [torch.nn.Parameter(torch.ones(3, 4)), torch.nn.Parameter(torch.ones(5))]
    made = build_optimizer([("a", parameters[0]), ("b", parameters[1])], OptimConfig())
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    return parameters, made


@pytest.mark.parametrize(
    "damage",
    [
        lambda saved: saved["state"][0].update(exp_avg=torch.zeros(1)),
        lambda saved: saved["state"][1].update(exp_avg_sq=torch.zeros(5, dtype=torch.float64)),
        lambda saved: saved["state"][1].update(step=torch.zeros(5)),
        lambda saved: saved["state"].update({7: saved["state"][0]}),
        lambda saved: saved["param_groups"].pop(),
    ],
)
def test_averages_of_other_shapes_never_reach_the_kernels(damage: Callable[[Any], Any]) -> None:
    """They would be read beyond their ends."""
    _, first = optimizer()
    first.step()
    saved = first.state_dict()
    damage(saved)
    with pytest.raises((ValueError, LookupError)):
        load_optimizer(optimizer()[1], saved)


def test_averages_are_taken_and_settings_stay() -> None:
    (parameters, first), (others, second) = optimizer(), optimizer()
    first.step()
    saved = first.state_dict()
    for group in saved["param_groups"]:
        group.update(betas=(5, 7), weight_decay=9.0)
    load_optimizer(second, saved)
    with torch.no_grad():
        for other, parameter in zip(others, parameters, strict=True):
            other.copy_(parameter)
    first.step()
    second.step()
    assert all(torch.equal(a, b) for a, b in zip(parameters, others, strict=True))
    assert all(group["betas"] == OptimConfig().betas for group in second.param_groups)
