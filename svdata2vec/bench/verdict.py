"""What bounds a run, in words, from the rates of its stages; and which figures to doubt. Pure functions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from svdata2vec.bench.advice import Surroundings, advise_decode, advise_loader, advise_model, advise_overlap, advise_read
from svdata2vec.bench.limits import Rates
from svdata2vec.bench.record import EXCEEDED
from svdata2vec.config.schema import PretrainConfig

Bound = Literal["read", "decode", "upload", "loader", "model", "overlap"]
OVERLAPPED = 0.75  # a run below this share of its slower half loses its time between the halves
SPREAD = 1.5  # the 80 % quantile of a stage's rounds over its 20 % quantile: beyond it something else used the machine
BUSY = 0.3  # load per core, of others, from which on speeds are doubtful


@dataclass(frozen=True)
class Verdict:
    """The stage that bounds the run, and a sentence about it and what to change."""

    bound: Bound
    text: str


def judge(rates: Rates, wait_share: float, config: PretrainConfig, where: Surroundings) -> Verdict:
    """What bounds the run.

    Training can be as fast as the slower of loader and model, the loader as the slower of reading and decoding (or
    uploading what the step decodes). The bound is the half that is as fast as it can be; where both stay below, they hinder
    each other.
    """
    slower = min(rates.data, rates.model)
    wait = f"the step waits for data {100 * wait_share:.0f} % of the time"
    if rates.train < OVERLAPPED * slower:
        text = (
            f"overlap-bound: train {rates.train:.1f} clips/s, although the loader alone gives {rates.data:.1f} and the "
            f"model alone takes {rates.model:.1f} ({wait}); {advise_overlap(rates, config, where)}"
        )
        return Verdict("overlap", text)
    if rates.model <= rates.data:
        text = (
            f"model-bound: train {rates.train:.1f} of {rates.data:.1f} clips/s that the loader could give ({wait}); "
            f"{advise_model(config, where)}"
        )
        return Verdict("model", text)
    second = where.second_half
    bound: Bound = "read" if rates.read < rates.decode else second
    advice = advise_read(rates, config, where) if bound == "read" else advise_decode(rates, config, where)
    alone = f"{bound} alone reaches {min(rates.read, rates.decode):.1f}"
    if rates.data < OVERLAPPED * min(rates.read, rates.decode):
        bound, advice = "loader", advise_loader(where)
        alone = f"read alone reaches {rates.read:.1f}, {second} alone {rates.decode:.1f}, both together {rates.data:.1f}"
    text = (
        f"{bound}-bound: train {rates.train:.1f} of {rates.model:.1f} clips/s that the model could take ({wait}); "
        f"{alone}; {advice}"
    )
    return Verdict(bound, text)


def doubts(stages: dict[str, dict[str, Any]], roofline: dict[str, dict[str, Any]]) -> list[str]:
    """Why figures and limits should not be trusted, one sentence each; empty where nothing speaks against them."""
    found = [
        f"doubtful: the rounds of {name} go from {row['q20']:.1f} to {row['q80']:.1f} clips/s; measure again on a quiet machine"
        for name, row in stages.items() if row["q80"] > SPREAD * row["q20"]
    ]
    slower = min(stages["data"]["q80"], stages["model"]["q80"])
    if stages["train"]["q20"] > slower:
        found.append(
            f"doubtful: train ({stages['train']['clips_per_s']:.1f} clips/s) is faster than its slower half ({slower:.1f}); "
            "the machine changed its speed meanwhile: measure again"
        )
    found += [
        f"doubtful: {name} reaches {row['efficiency']:.1f} times its limit ({row['limited_by']}), which is therefore left out"
        for name, row in roofline.items() if (row["efficiency"] or 0) > EXCEEDED
    ]
    return found


def notes(processes: Sequence[int], cores: int, threads: int, decoding: int, load: float, on_cpu: bool) -> list[str]:
    """What a table of weak scaling does not say; empty on a quiet machine where every process has its own cores (or GPU).

    load: processes that others ran when the benchmark began. threads, decoding: of each process.
    """
    found = []
    if load > BUSY * cores:
        found.append(f"doubtful: the machine was busy before the first step (load {load:.1f} on {cores} cores); measure again")
    return found + (_shared_cores(processes, cores, threads, decoding) if on_cpu else [])


def _shared_cores(processes: Sequence[int], cores: int, threads: int, decoding: int) -> list[str]:
    crowded = [str(count) for count in processes if count > cores]
    tight = [str(count) for count in processes[1:] if count <= cores < count * (threads + decoding)]
    found = []
    if crowded:
        found.append(
            f"{' and '.join(crowded)} processes share {cores} cores: clips/s, step time and efficiency say nothing about "
            "speed there; bytes, correctness and the CPU time that the exchange adds do hold"
        )
    if tight:
        found.append(
            f"{' and '.join(tight)} processes of {threads} computing and {decoding} decoding threads each on {cores} cores: "
            "the efficiency is a lower bound"
        )
    return found
