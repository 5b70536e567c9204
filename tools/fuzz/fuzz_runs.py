"""Areas of the fuzzer: run folders, checkpoints, and the values of options."""

import json
import random
from pathlib import Path
from typing import Any

from fuzz_case import Damage, Result, command, digest
from fuzz_damage import damage_bytes, damage_text, damage_value, edit, replace_file
from tiny import finetune_config, pretrain_config, tiny_shards
from tiny_command import command_words

WEIGHTS = (".safetensors", ".pt", ".pth")
ODD_WORDS = ("nan", "inf", "-inf", "-1", "0", "", "x", "1e30", "-0.0", "99999999999999999999", "0.5", "\u0663", "a" * 300,
             "../x", "\x1b[31m", "1e-400", "None", "true", "1 2", "--", "$x^{")


def words(config: Any) -> list[str]:
    """The words of a command line behind `python -m svdata2vec`."""
    return command_words(config)[3:]


class RunFolderArea:
    """A finished fine-tuning with a damaged file, read by any command."""

    def prepare(self, folder: Path) -> None:
        """Shards, and a run of one epoch on them."""
        tiny_shards(folder / "shards")
        command(*words(finetune_config(folder / "shards", folder / "run", epochs=1)))

    def damage(self, rng: random.Random, folder: Path) -> Damage:
        """Damage one file of the run folder. Text without checksums may lead to other text, weights never to other weights."""
        files = sorted(path for path in (folder / "run").rglob("*") if path.is_file() and path.suffix != ".tfevents")
        weights = [path for path in files if path.suffix in WEIGHTS]
        path = rng.choice(weights if weights and rng.random() < 0.4 else files)
        if rng.random() < 0.1:
            return Damage(f"{path.name} {replace_file(rng, path, files)}", crafted=True)
        if path.suffix == ".json" and rng.random() < 0.6:
            path.write_text(json.dumps(damage_value(rng, json.loads(path.read_text()))))
        elif path.suffix in (".jsonl", ".md", ".json"):
            edit(path, lambda content: damage_text(rng, content))
        else:
            edit(path, lambda content: damage_bytes(rng, content))
        return Damage(path.name, crafted=path.suffix not in WEIGHTS)

    def run(self, folder: Path) -> Result:
        """Read it with a command."""
        raise NotImplementedError


class ReportArea(RunFolderArea):
    """`svdata2vec report`."""

    def run(self, folder: Path) -> Result:
        """The page is made."""
        command("report", folder / "run", "--out", folder / "report.html")
        return Result({"page": str((folder / "report.html").is_file())})


class EvaluateArea(RunFolderArea):
    """`svdata2vec evaluate`."""

    def run(self, folder: Path) -> Result:
        """Its figures."""
        said = command("evaluate", folder / "run", "--device", "cpu", "--json")
        found = json.loads(said)
        return Result({"figures": digest(json.dumps([found.get(name) for name in ("top1", "top5", "loss", "count")]).encode())})


class ResumeArea(RunFolderArea):
    """A pretraining that resumes from damaged checkpoints, logs and settings."""

    def prepare(self, folder: Path) -> None:
        """Shards, and a pretraining stopped after its second epoch."""
        tiny_shards(folder / "shards")
        command(*words(pretrain_config(folder / "shards", folder / "run", epochs=3, checkpoint_every=2)))
        last = sorted((folder / "run").glob("checkpoints/step-*.pt"))[-1]
        published = [*(folder / "run").glob("result.json*"), *(folder / "run").glob("model.*")]
        for path in [*published, *last.parent.glob(f"{last.name}*")]:
            path.unlink()

    def run(self, folder: Path) -> Result:
        """The weights at its end."""
        command(*words(pretrain_config(folder / "shards", folder / "run", epochs=3, checkpoint_every=2)))
        return Result({"weights": digest((folder / "run" / "model.safetensors").read_bytes())})


class OptionsArea(RunFolderArea):
    """One option of a training with an odd value."""

    def damage(self, rng: random.Random, folder: Path) -> Damage:
        """Write down the command line."""
        config = pretrain_config(folder / "shards", folder / "new", epochs=1) if rng.random() < 0.5 else finetune_config(
            folder / "shards", folder / "new", epochs=1)
        line = words(config)
        options = [number for number, word in enumerate(line) if word.startswith("--") and word != "--run.out"
                   and number + 1 < len(line) and not line[number + 1].startswith("--")]
        place = rng.choice(options)
        line[place + 1] = rng.choice(ODD_WORDS)
        (folder / "words.json").write_text(json.dumps(line))
        return Damage(f"{line[place]} {line[place + 1]!r}", crafted=True)

    def run(self, folder: Path) -> Result:
        """Train, unless the options are refused."""
        if not (folder / "words.json").is_file():
            return Result()
        command(*json.loads((folder / "words.json").read_text()))
        log = (folder / "new" / "metrics.jsonl").read_text()
        assert "NaN" not in log, "NaN in the log of a run that ended well"
        return Result({"trained": "yes"})

