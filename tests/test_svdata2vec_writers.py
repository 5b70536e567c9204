"""Writers on a disk that fills up: one line with path and reason, and nothing half-written that looks finished.

A process whose files may only have N bytes (RLIMIT_FSIZE) gets the same kind of error there as on a full disk.
"""

import errno
import os
import pickle
import resource
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
from tiny import MODEL, pretrain_config

from svdata2vec.cli.main import main
from svdata2vec.config.schema import DataConfig, FinetuneConfig, HeadConfig
from svdata2vec.evaluation.features import Features, write_features
from svdata2vec.model.classifier import Classifier
from svdata2vec.reports.html_page import save_figure
from svdata2vec.runs.card import model_card
from svdata2vec.runs.checkpoint import Checkpoints
from svdata2vec.runs.failures import SaveFailedError
from svdata2vec.runs.metrics_log import MetricsLog, read_metrics
from svdata2vec.runs.provenance import save
from svdata2vec.runs.published import publish
from svdata2vec.shards.atomic import WriteFailedError, append_line, make_folder, require_writable, write_atomically
from svdata2vec.shards.errors import UserError
from svdata2vec.training.pretrain import pretrain

WEIGHTS = {"a": torch.zeros(5000)}
FEATURES = Features([f"clip{number}" for number in range(500)], np.zeros((500, 8), np.float32), np.zeros(500, np.int64))
WRITERS: dict[str, Callable[[Path], object]] = {
    "text.json": lambda path: write_atomically(path, bytes(20_000)),
    "log.jsonl": lambda path: append_line(path, "x" * 20_000),
    "model.safetensors": lambda path: publish(path.parent, WEIGHTS, {"kind": "pretrain"}),
    "features.npy": lambda path: write_features(path, FEATURES, ["x"]),
    "features.parquet": lambda path: write_features(path, FEATURES, ["x"]),
    "record.json": lambda path: save({"values": [0] * 20_000}, path),
    "chart.png": lambda path: save_figure(Figure(figsize=(20, 20)), path, dpi=300),
}


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """Writing beyond so many bytes of a file fails with EFBIG."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("size", [0, 1000])
def test_a_file_that_cannot_be_written_is_named_and_not_there(name: str, size: int, tmp_path: Path) -> None:
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    path = tmp_path / name
    with files_up_to(size), pytest.raises(WriteFailedError) as caught:
        WRITERS[name](path)
    assert str(caught.value) == f"{path} could not be written: File too large"
    assert name == "log.jsonl" or not list(tmp_path.iterdir())
    path.unlink(missing_ok=True)
    WRITERS[name](path)
    assert path.stat().st_size > 1000


@pytest.mark.parametrize("size", [0, 100, 30_000])
def test_a_checkpoint_names_the_reason(size: int, tmp_path: Path) -> None:
    """PyTorch's own writer speaks of an unexpected position."""
    with files_up_to(size), pytest.raises(SaveFailedError) as caught:
        Checkpoints(tmp_path, 2).save(3, {"a": torch.zeros(10_000)})
    path = tmp_path / "checkpoints" / "step-000000003.pt"
    assert str(caught.value).startswith(f"{path} could not be written (File too large); the run stops")
    assert not list(path.parent.iterdir())


@pytest.mark.parametrize(("blocked", "name"), [("metrics.jsonl", "metrics.jsonl"), ("tensorboard", "events.out.tfevents")])
def test_a_log_that_cannot_be_written_ends_the_run_in_one_line(
    blocked: str, name: str, tiny_shard_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whichever of the two meets the full disk first."""
    if blocked == "tensorboard":
        monkeypatch.setattr("svdata2vec.runs.metrics_log.append_line", lambda *_: None)
    config = pretrain_config(tiny_shard_folder, tmp_path / "run")
    write = MetricsLog.write

    def on_a_full_disk(log: MetricsLog, *arguments: object) -> None:
        with files_up_to(10):
            write(log, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(MetricsLog, "write", on_a_full_disk)
    with pytest.raises(WriteFailedError, match=rf"{name}.* could not be written: File too large"):
        pretrain(config)
    assert "Traceback" not in capsys.readouterr().err


def test_tensorboard_reads_what_the_log_writes(tmp_path: Path) -> None:
    """A run that goes on from step 2 takes back what came after it."""
    for first, steps in ((0, (1, 2, 3)), (2, (3, 4))):
        log = MetricsLog(tmp_path, first, enabled=True)
        for step in steps:
            log.write(step, {"epoch": step / 2, "clips_per_second": 1.0, "seconds_total": 1.0, "loss": 10.0 * step}, "")
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3, 4]
    files = sorted((tmp_path / "tensorboard").iterdir())
    events = [event for file in files for event in LegacyEventFileLoader(str(file)).Load()]
    found = [(event.step, value.simple_value) for event in events for value in event.summary.value if value.tag == "loss"]
    assert found == [(1, 10.0), (2, 20.0), (3, 30.0), (3, 30.0), (4, 40.0)]
    assert [event.step for event in events if event.HasField("session_log")] == [0, 2]


def test_an_export_on_a_full_disk_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """PyTorch's own writer ends the process."""
    config = FinetuneConfig(data=DataConfig(num_frames=6, size=32), model=MODEL, head=HeadConfig(hidden=16))
    run = tmp_path / "run"
    publish(run, Classifier(config, 17, 3).state_dict(), model_card("finetune", config, num_joints=17, classes=["a", "b", "c"]))
    with files_up_to(1000):
        assert main(["export", str(run), str(tmp_path / "model.pt2")]) == 1
    said = capsys.readouterr().err.strip().splitlines()
    assert said[-1] == f"svdata2vec export: {tmp_path / 'model.pt2'} could not be written: File too large"
    assert list(tmp_path.iterdir()) == [run]


def test_the_error_comes_out_of_a_worker_process_as_it_went_in() -> None:
    error = WriteFailedError(Path("a/b"), OSError(28, "No space left on device"))
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is WriteFailedError and str(again) == str(error) and again.errno == 28 and again.path == Path("a/b")


def test_devices_and_pipes_stay_what_they_are(tmp_path: Path) -> None:
    """To rename a file to /dev/null would be to lose /dev/null."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/null")
    for path in (tmp_path / "pipe", tmp_path / "link", Path("/dev/no-such-device")):
        with pytest.raises(WriteFailedError, match=f"^{path} could not be written: a device or pipe"):
            write_atomically(path, b"x")
    assert (tmp_path / "pipe").is_fifo() and (tmp_path / "link").is_symlink() and not Path("/dev/no-such-device").exists()


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name, place in (("file", "file"), ("file/a/b", "file"), ("link", "link"), ("link/a", "link")):
        for path, make in ((tmp_path / name, make_folder), (tmp_path / name / "x.json", require_writable)):
            with pytest.raises(WriteFailedError) as caught:
                make(path)
            refused = path if make is make_folder else path.parent
            assert str(caught.value) == f"{refused} could not be written: {tmp_path / place} is no folder"
    assert (tmp_path / "file").read_text() == "precious" and not (tmp_path / "nowhere").exists()


READ_ONLY = OSError(errno.EROFS, os.strerror(errno.EROFS))


def test_a_folder_that_may_not_be_written_to_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There even the removal of a file that is not there is refused."""
    def refuse(*_: object, **__: object) -> None:
        raise READ_ONLY

    with monkeypatch.context() as context:
        context.setattr(Path, "open", refuse)
        context.setattr(Path, "unlink", refuse)
        with pytest.raises(WriteFailedError, match=f"^{tmp_path / 'x.json'} could not be written: Read-only file system$"):
            write_atomically(tmp_path / "x.json", b"x")
    with monkeypatch.context() as context:
        context.setattr(tempfile, "TemporaryFile", refuse)
        with pytest.raises(WriteFailedError, match=f"^{tmp_path / 'x.json'} could not be written: Read-only file system$"):
            require_writable(tmp_path / "x.json")
    require_writable(tmp_path / "new" / "x.json")
    require_writable(None)
    (tmp_path / "x.png").mkdir()
    with pytest.raises(WriteFailedError, match=r"x\.png.*a folder has this name"):
        require_writable(tmp_path / "x.json", ".png")
    with pytest.raises(UserError, match=r"y\.png: a file that ends in \.png is written beside it"):
        require_writable(tmp_path / "y.png", ".png")
    assert not list((tmp_path / "new").iterdir())


@pytest.mark.parametrize("words", [
    "export nowhere OUT.pt2", "embed nowhere --split all --out OUT.npy", "bench compare a.json b.json --out OUT",
    "bench run demo --data.shards nowhere --out OUT", "bench batch demo --data.shards nowhere --out OUT",
    "bench host demo --data.shards nowhere --out OUT", "bench scale demo --data.shards nowhere --out OUT",
    "bench data --out OUT", "bench data --tune --out OUT",
])
def test_an_output_is_tried_before_the_work(words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                            monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever else is wrong would be found later."""
    out = tmp_path / next(word for word in words.split() if word.startswith("OUT"))
    out.mkdir()
    monkeypatch.chdir(tmp_path)
    assert main([str(out) if word == out.name else word for word in words.split()]) == 1
    assert capsys.readouterr().err.endswith(f": {out} could not be written: a folder has this name\n")


@pytest.mark.parametrize(("words", "beside"), [
    ("export nowhere OUT.pt2", "OUT.pt2.json"), ("embed nowhere --split all --out OUT.npy", "OUT.npy.json"),
    ("bench run demo --data.shards nowhere --out OUT.json", "OUT.png"), ("bench data --out OUT.json", "OUT.png"),
    ("bench run demo --data.shards nowhere --out OUT.json", "OUT.html"),
])
def test_files_beside_an_output_are_tried_before_the_work(
    words: str, beside: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / beside).mkdir()
    monkeypatch.chdir(tmp_path)
    assert main(words.split()) == 1
    assert capsys.readouterr().err.endswith(f": {beside} could not be written: a folder has this name\n")
    assert [path.name for path in tmp_path.iterdir()] == [beside]


@pytest.mark.parametrize("words", ["bench run demo --data.shards nowhere --out x.html", "bench data --out x.png"])
def test_a_record_does_not_take_the_place_of_its_chart(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words.split()) == 2
    assert "give it the ending .json" in capsys.readouterr().err


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_atomically(tmp_path / "f", b"old")

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(tmp_path / "f", b"new")
    assert (tmp_path / "f").read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1
