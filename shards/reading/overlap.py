"""Finds clips that are both in training and in test, or twice in a split, by their names and the bytes of their videos."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from svdata2vec.shards.split_names import is_everything, parsed


@dataclass(frozen=True)
class Overlap:
    """Two splits that should share no clip, and the pairs of clips, one of each, that are the same or of the same bytes."""

    first: str
    second: str
    pairs: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        shown = ", ".join(a if a == b else f"{a} = {b} (same bytes)" for a, b in self.pairs[:5])
        more = f" and {len(self.pairs) - 5} more" if len(self.pairs) > 5 else ""
        return f"{len(self.pairs)} clips in both: {shown}{more}"


def overlaps(splits: Mapping[str, Sequence[str]], sources: Mapping[str, str]) -> Iterator[Overlap]:
    """All overlaps. `sources`: clip -> `ClipMeta.pictures`, without clips of unknown source.

    Splits of one protocol are compared (xsub_train with xsub_val, not with xview_val); splits of other names with all.
    """
    found = {name: {sources[key]: key for key in keys if key in sources} for name, keys in splits.items()}
    for first, second in combinations(splits, 2):
        if not _should_differ(first, second):
            continue
        named = sorted(set(splits[first]) & set(splits[second]))
        same = found[first].keys() & found[second].keys()
        alike = sorted({(found[first][source], found[second][source]) for source in same} - {(key, key) for key in named})
        pairs = (*((key, key) for key in named), *alike)
        if pairs:
            yield Overlap(first, second, pairs)


def doubles(splits: Mapping[str, Sequence[str]], sources: Mapping[str, str]) -> list[tuple[str, str]]:
    """Sorted pairs of clips of one split with the same pictures; if more than two have them, the first with each other one."""
    found = set()
    for keys in splits.values():
        first: dict[str, str] = {}
        found |= {(first[sources[key]], key) for key in sorted(keys)
                  if key in sources and first.setdefault(sources[key], key) != key}
    return sorted(found)


def _should_differ(first: str, second: str) -> bool:
    if is_everything(first) or is_everything(second):
        return False
    (protocol, role), (other, other_role) = parsed(first), parsed(second)
    if role is None or other_role is None:
        return True
    return protocol == other and role != other_role and not (role in other_role or other_role in role)
