"""Areas of the fuzzer whose program is broken in one way each."""

import os
import random
import signal
import time
from pathlib import Path

from fuzz_case import Damage, Result

from svdata2vec.shards.errors import UserError


class Area:
    """Two parts; every odd case is damaged, and only then `act` is called."""

    crafted = False

    def prepare(self, folder: Path) -> None:
        (folder / "file").touch()

    def damage(self, rng: random.Random, folder: Path) -> Damage:
        (folder / "file").write_text("damaged")
        return Damage("the file", self.crafted)

    def run(self, folder: Path) -> Result:
        return self.act() if (folder / "file").read_text() else Result({"a": "1", "b": "2"})

    def act(self) -> Result:
        raise UserError("file: damaged")


class Traceback(Area):
    def act(self) -> Result:
        raise KeyError("missing")


class Signal(Area):
    def act(self) -> Result:
        os.kill(os.getpid(), signal.SIGSEGV)
        raise AssertionError


class Exit(Area):
    def act(self) -> Result:
        os._exit(0)


class Hang(Area):
    def act(self) -> Result:
        time.sleep(1000)
        raise AssertionError


class Changed(Area):
    def act(self) -> Result:
        return Result({"a": "1", "b": "3"})


class Lost(Area):
    def act(self) -> Result:
        return Result({"a": "1"})


class Skipped(Area):
    def act(self) -> Result:
        return Result({"a": "1"}, skipped=1)


class Crafted(Changed):
    crafted = True
