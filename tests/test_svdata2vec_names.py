"""Names from files cannot leave their folder, secrets of URLs are never written, and output cannot control a terminal."""

import dataclasses
import json
import logging
import shutil
from pathlib import Path

import fsspec
import numpy as np
import pytest
from matplotlib.figure import Figure
from shards_data import edit_manifest
from tiny import pretrain_config

from svdata2vec.cli.main import MessageFormatter, main
from svdata2vec.config.files import to_json
from svdata2vec.reports.html_page import figure_image, table
from svdata2vec.runs.folder import changed_settings, read_config, write_config
from svdata2vec.shards.annotations import DataSet, Skipped
from svdata2vec.shards.errors import UserError
from svdata2vec.shards.layouts import COCO17
from svdata2vec.shards.packing.pack import PackOptions, pack
from svdata2vec.shards.reading.manifest import Manifest
from svdata2vec.shards.reading.remote import RemoteShardSet
from svdata2vec.shards.reading.shardset import ShardSet
from svdata2vec.shards.shown import public, shown

URL = "https://me:pass-word@host.example/ntu60?X-Amz-Signature=5ec4e7&part=2&sig=5ec4e7#top"
PUBLIC = "https://host.example/ntu60?X-Amz-Signature=***&part=2&sig=***#top"
ESCAPE = "\x1b]0;title\x07\x1b[31m"


@pytest.fixture
def folder(tiny_shard_folder: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return shutil.copytree(tiny_shard_folder, tmp_path / "shards")


@pytest.mark.parametrize("name", ["../../../x", "/etc/passwd", "a/b.tar", "..", ".", "", ".lock", "a\n.tar", "x" * 200])
def test_a_shard_is_a_file_of_its_folder(folder: Path, tmp_path: Path, name: str) -> None:
    shards = json.loads((folder / "manifest.json").read_text())["shards"]
    edit_manifest(folder, shards=[shards[0] | {"name": name}, *shards[1:]])
    before = sorted(tmp_path.rglob("*"))
    memory = fsspec.filesystem("memory")
    memory.put(str(folder), "/names", recursive=True)
    for read in (ShardSet.open, lambda _: RemoteShardSet("memory://names", cache=tmp_path / "cache", fetch="shards")):
        with pytest.raises(UserError, match=r"manifest\.json: field missing or wrong: shards: the name .* is not that of a f"):
            read(folder)
    assert main(["verify", str(folder), "--workers", "1"]) == 2
    memory.rm("/names", recursive=True)
    new = {path for path in tmp_path.rglob("*") if path not in before}
    own = {"index.npy", "manifest.json", ".lock"}
    assert {path.name for path in new if path.is_file()} <= own, "nothing but the cache's own files"


@pytest.mark.parametrize("key", [b"../../x", b"/x", b"a.b", b"a\nb", b"\x1b[31m", b"", b"\xff"])
def test_a_clip_has_a_name_that_leads_nowhere(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], key: bytes
) -> None:
    index = np.load(folder / "index.npy")
    index["key"][3] = key
    np.save(folder / "index.npy", index)
    edit_manifest(folder, crc32=None)
    with pytest.raises(UserError, match=r"the key .* cannot be that of a clip; pack or copy it again"):
        ShardSet.open(folder)
    words = ["inspect", folder, "--split", "all", "--keys", key.decode("latin-1") or "x", "--out", tmp_path / "out" / "in"]
    assert main([str(word) for word in words]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.isprintable() and not list(tmp_path.rglob("*.png"))


@pytest.mark.parametrize(("field", "value"), [
    ("components", ["../x", "offsets.npy"]), ("components", []), ("classes", ["a", "a", "b", "c", "d"]), ("classes", [1]),
    ("splits", {"all": "clip00000"}), ("splits", {"all": [3]}), ("splits", {"all": ["x" * 1000]}), ("packed_size", -1),
    ("layout", {"name": "x", "joints": [1], "edges": [], "left": [], "right": []}), ("published", {"all": "many"}),
    ("crc32", {"index.npy": -1}), ("codec", 3), ("packed_size", "9"),
    ("shards", [{"name": "a.tar"}]), ("shards", "abc"), ("without_joints", [99]), ("fingerprint", None),
])
def test_a_field_of_a_wrong_value_is_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], field: str, value: object
) -> None:
    fields = json.loads((folder / "manifest.json").read_text()) | {field: value}
    fields.pop("manifest_crc32")
    (folder / "manifest.json").write_text(json.dumps(fields))
    with pytest.raises(UserError, match=r"manifest\.json: field missing or wrong: "):
        ShardSet.open(folder)
    assert main(["verify", str(folder), "--workers", "1"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_two_classes_of_one_name_are_refused_before_packing(tmp_path: Path) -> None:
    dataset = DataSet("x", COCO17, ("walk", "walk"), {}, [])
    with pytest.raises(UserError, match="no clip to pack"):
        dataset.check()
    with pytest.raises(UserError, match="classes is"):
        Manifest("x", "jpeg", 96, COCO17, ("walk", "walk"), ("mp4",), {}, (), "")


def test_secrets_of_urls() -> None:
    assert public(URL) == PUBLIC
    plain = "s3://bucket/a@b/key=3 and https://host/x?frame=3&monkey=1, see user@host.example"
    assert public(plain) == plain
    assert public("a https://u:p@h/x, b ftp://v@h/y") == "a https://h/x, b ftp://h/y"
    assert public("'https://u:it's@me@h:8/x',http://v:p@k,s3://b/c@d") == "'https://h:8/x',http://k,s3://b/c@d"
    assert public("https://h?by=u@k") == "https://h?by=u@k"


def test_secrets_of_urls_are_not_written_down(tmp_path: Path) -> None:
    config = pretrain_config(Path("data"), tmp_path / "run")
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, shards=URL))
    write_config(tmp_path / "run", config)
    text = (tmp_path / "run" / "config.json").read_text()
    assert PUBLIC in text and "pass-word" not in text and "5ec4e7" not in text
    stored = read_config(tmp_path / "run")
    assert stored.data.shards == PUBLIC and config.data.shards == URL, "what reads the shards keeps the URL"
    assert changed_settings(json.loads(to_json(stored)), json.loads(to_json(config))) == []
    dataset = DataSet("x", COCO17, ("walk",), {}, [], [Skipped("a", f"{URL}: no such file", URL)])
    with pytest.raises(UserError) as refused:
        pack(dataset, tmp_path / "out", PackOptions(workers=1))
    assert "pass-word" not in shown(str(refused.value))


def test_secrets_of_urls_are_not_in_messages(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("svdata2vec.shards.reading.remote.RETRY_SECONDS", (0.0,))
    url = "http://me:pass-word@127.0.0.1:9/shards"
    with pytest.raises(UserError, match=r"http://127\.0\.0\.1:9/shards/index\.npy: cannot be read") as refused:
        RemoteShardSet(url, cache=tmp_path)
    assert "pass-word" not in str(refused.value)
    assert main(["pretrain", "demo", "--data.shards", url, "--run.out", str(tmp_path / "run"), "--run.device", "cpu"]) == 1
    said = capsys.readouterr()
    assert "pass-word" not in said.out + said.err and "127.0.0.1" in said.err


def test_control_codes_for_terminals_are_escaped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(f"a{ESCAPE}b\n\u202e\udcff\u00e9\u6f22\\n") == "a\\x1b]0;title\\x07\\x1b[31mb\\n\\u202e\\udcff\u00e9\u6f22\\n"
    assert main(["verify", str(tmp_path / ESCAPE)]) == 2
    said = capsys.readouterr().err
    assert "\x1b" not in said and "\\x1b[31m" in said
    record = logging.LogRecord("x", logging.INFO, "x", 1, "skipping %s of %s", (ESCAPE, URL), None)
    assert MessageFormatter("%(message)s").format(record) == f"skipping {shown(ESCAPE)} of {PUBLIC}"


def test_names_of_classes_are_drawn_as_they_are() -> None:
    def picture(name: str) -> str:
        figure = Figure(figsize=(2, 2))
        axes = figure.add_subplot()
        axes.set_xticks([0, 1], [name, "b"])
        axes.plot([0, 1], label=name)
        axes.legend()
        axes.set_title(name)
        return figure_image(figure, name)

    assert picture("$x^{$ \\frac") and picture("$a$") != picture("a"), "no formula"
    assert "&lt;b&gt;\\x1b" in table(["x"], [["<b>\x1b"]])
