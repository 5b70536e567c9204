"""The packing benchmark measures what it claims: fidelity of the model's crop, shares that add up."""

import json
from pathlib import Path

import bench_block_encoder
import bench_packing
import cv2
import numpy as np
import pytest
from shards_data import write_video

from svdata2vec.shards.packing.pack import PackOptions


def test_rows_rank_the_encodings(tmp_path: Path) -> None:
    dataset = bench_packing.file_set([write_video(tmp_path / "film.mp4", 6, width=384, height=288)])
    assert [clip.key for clip in dataset.clips] == ["film-0", "film-1", "film-2"]
    rows = {name: bench_packing.measure(dataset, options, tmp_path / name) for name, options in {
        "fine": PackOptions(workers=1, quality=95), "coarse": PackOptions(workers=1, quality=20, chroma="420"),
        "copy": PackOptions(workers=1, codec="copy")}.items()}
    assert rows["copy"]["psnr_db_worst_clip"] > rows["fine"]["psnr_db_worst_clip"] > rows["coarse"]["psnr_db_mean"]
    assert rows["fine"]["kib_per_frame"] > 2 * rows["coarse"]["kib_per_frame"]
    for row in rows.values():
        assert row["clips"] == 3 and row["frames"] == 18
        assert abs(sum(row["shares"].values()) + row["own_share"] - 1) < 1e-3 and 0 <= row["own_share"] < 1


def test_crops_of_both_kinds_agree() -> None:
    """Resizing a crop, and sampling the whole picture through the map, give the same pixels."""
    picture = np.random.default_rng(0).integers(0, 255, (300, 400, 3), np.uint8)
    box = (-20, 40, 280, 340)
    resized = cv2.resize(bench_packing.padded_crop(picture, box), (224, 224), interpolation=cv2.INTER_LINEAR)
    scale = 300 / 224
    sampled = bench_packing.warp(picture, np.array([[scale, 0, box[0]], [0, scale, box[1]]]))
    inside = np.s_[2:190, 20:]  # away from the picture's edge, where the two treat the outside differently
    assert np.abs(resized[inside].astype(int) - sampled[inside]).max() <= 6


def test_the_encoders_record_has_a_row_for_each_of_every_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also for videos with the same name."""
    folders = [tmp_path / name for name in "ab"]
    for folder in folders:
        folder.mkdir()
    films = [str(write_video(folder / "film.mp4", 4, width=384, height=288)) for folder in folders]
    out = tmp_path / "encoder.json"
    monkeypatch.setattr("sys.argv", ["bench", "--files", *films, "--rounds", "1", "--out", str(out)])
    bench_block_encoder.main()
    record = json.loads(out.read_text())
    assert [(row["pictures"], row["encoder"]) for row in record["rows"]] == [
        (name, encoder) for name in ("noisy", "smooth", *films) for encoder in ("jpeg", "blocks 3-2", "blocks 2-2")]
    assert all(0 < row["least_ms"] <= row["median_ms"] for row in record["rows"]) and record["machine"]["cores"]


def test_pictures_are_packed_by_every_encoder(tmp_path: Path) -> None:
    made = bench_block_encoder.made_pictures()
    film = bench_block_encoder.pictures_of(write_video(tmp_path / "film.mp4", 12, width=384, height=288))
    assert len(film) == 2 and {picture.shape for picture in [*film, *made["noisy"], *made["smooth"]]} == {(320, 320, 3)}
    assert np.diff(made["noisy"][0].astype(int), axis=1).std() > 2 * np.diff(made["smooth"][0].astype(int), axis=1).std()
    times = bench_block_encoder.measure(film, rounds=2)
    assert set(times) == {"jpeg", "blocks 3-2", "blocks 2-2"}
    assert all(len(found) == 4 and min(found) > 0 for found in times.values())
