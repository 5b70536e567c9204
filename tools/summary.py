"""Prints three lines about fine-tuning runs on the same labels: chance, then each run. Usage: summary.py SCRATCH PRETRAINED"""

import json
import sys
from pathlib import Path


def main(scratch: Path, pretrained: Path) -> None:
    """Compare two finished runs; they must have seen the same number of labels."""
    results = [json.loads((folder / "result.json").read_text()) for folder in (scratch, pretrained)]
    if len({result["labels"] for result in results}) != 1:
        raise SystemExit(f"{scratch} and {pretrained} were trained on different numbers of labelled clips")
    labels, clips, classes = results[0]["labels"], results[0]["count"], len(results[0]["classes"])
    print(f"chance                       {100 / classes:5.1f} %   ({classes} classes, {clips} test clips of unseen subjects)")
    print(f"RGB from scratch             {100 * results[0]['top1']:5.1f} %   ({labels} labelled clips)")
    print(f"RGB after pretraining        {100 * results[1]['top1']:5.1f} %   (same labels, same fine-tuning steps)")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
