"""Predictions of one network on clips that are packed in two ways: the counts, and a run from end to end."""

import json
from pathlib import Path

import codec_agreement as agreement
import numpy as np
import pytest
from pipeline_factory import shard_set
from tiny import NUM_CLIPS, finetune_config

from svdata2vec.evaluation.evaluate import Predictions
from svdata2vec.shards.errors import UserError
from svdata2vec.training.finetune import finetune


def predicted(classes: list[int], labels: list[int], sure: float = 1.0) -> Predictions:
    """Scores of three classes, `sure` of them on one."""
    scores_nc = np.full((len(classes), 3), (1 - sure) / 2)
    scores_nc[range(len(classes)), classes] = sure
    return Predictions([f"clip{i}" for i in range(len(classes))], scores_nc, np.array(labels))


def test_clips_are_compared_one_by_one() -> None:
    labels = [0, 1, 2, 0, 1, 2]
    base, other = predicted([0, 1, 2, 0, 0, 0], labels), predicted([0, 1, 2, 1, 1, 2], labels, sure=0.8)
    found = agreement.compare(base, other)
    assert (found["clips"], found["right_on_other_alone"], found["right_on_base_alone"]) == (6, 2, 1)
    assert found["same_class"] == 3 / 6 and found["top1"] == [4 / 6, 5 / 6] and found["difference"] == pytest.approx(1 / 6)
    assert found["interval"][0] < 0 < 1 / 6 < found["interval"][1] and found["mcnemar_p"] == 1.0
    assert found["score_change"] == pytest.approx((3 * 0.2 + 3 * 0.9) / 6)  # on the same class 0.2 leave it, else 0.9 move
    with pytest.raises(UserError, match="do not hold the same clips"):
        agreement.compare(base, predicted([0] * 6, labels[::-1]))


def test_intervals_of_paired_shares() -> None:
    """Agresti and Min: (54 - 34) / 242 with a half in each cell; no clip that differs is no certainty."""
    low, high = agreement.paired_interval(54, 34, 240)
    assert (low, high) == pytest.approx((0.00695, 0.15834), abs=1e-5)
    low, high = agreement.paired_interval(0, 0, 100)
    assert low == -high and 0.015 < high < 0.025


@pytest.mark.parametrize(("gained", "lost", "p"), [
    (0, 0, 1.0), (5, 5, 1.0), (0, 5, 2 / 32), (1, 9, 22 / 1024), (9, 1, 22 / 1024),
])
def test_mcnemar_is_the_binomial_test(gained: int, lost: int, p: float) -> None:
    assert agreement.mcnemar(gained, lost) == pytest.approx(p)


def test_a_run_on_its_own_clips_and_on_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for codec in ("jpeg", "blocks"):
        shard_set(tmp_path / codec, NUM_CLIPS, codec=codec, size=64)
    finetune(finetune_config(tmp_path / "jpeg", tmp_path / "run", epochs=1))
    out, same = tmp_path / "record.json", f"same={tmp_path / 'jpeg'}"
    words = ["codec_agreement.py", str(tmp_path / "run"), "--others", f"blocks={tmp_path / 'blocks'}", same, "--out", str(out)]
    monkeypatch.setattr("sys.argv", words)
    assert agreement.main() == 0
    record = json.loads(out.read_text())
    blocks, same_clips = record["others"]["blocks"], record["others"]["same"]
    assert blocks["clips"] == same_clips["clips"] == NUM_CLIPS
    assert same_clips["same_class"] == 1.0 and same_clips["score_change"] == 0 and same_clips["difference"] == 0
    assert 0 < blocks["score_change"] < 0.1
    assert capsys.readouterr().out.splitlines()[0].startswith("blocks: ")
    monkeypatch.setattr("sys.argv", [*words[:3], "blocks", "--out", str(out)])
    with pytest.raises(SystemExit):
        agreement.main()
    assert "expected NAME=FOLDER" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", [*words[:5], "blocks=other", "--out", str(out)])
    assert agreement.main() == 2
    assert capsys.readouterr().err.endswith("error: --others names blocks, same, blocks: expected every name once\n")
    monkeypatch.setattr("sys.argv", [*words[:3], "blocks=nowhere", "--out", str(out)])
    assert agreement.main() == 2 and "error: " in capsys.readouterr().err
