"""What the name of a split says: what it is for, of which protocol it is, and whether it is a misspelt one."""

import re
from collections.abc import Mapping, Sequence

# What a split is for, in its name: train1, xsub_val, my-test. The rest of the name is its protocol.
_ROLE = re.compile(r"(?<![a-z])(trainval|train(?:ing)?|valid(?:ation)?|val|dev|test(?:ing)?|eval(?:uation)?)(?![a-z])")
_SAME = {"training": "train", "validation": "val", "valid": "val", "dev": "val", "testing": "test", "eval": "test",
         "evaluation": "test"}
_EVERYTHING = {"all", "full", "everything", "complete"}
_ROLES = ("train", "val", "test", "trainval", *_SAME)


def parsed(name: str) -> tuple[str, str | None]:
    """(protocol, role) of a split; no role if its name does not say what it is for."""
    match = _ROLE.search(name.lower())
    if match is None:
        return name, None
    rest = name[: match.start()] + " " + name[match.end() :]
    return " ".join(re.findall(r"[^\W_]+", rest)), _SAME.get(match[1], match[1])


def is_everything(name: str) -> bool:
    """Whether a split of this name shares clips with others on purpose."""
    return name.lower() in _EVERYTHING


def meant(name: str) -> str | None:
    """The usual name that another one comes near: test for tset, xsub_val for xsub_vla. None if the name is a usual one
    itself, or near none."""
    if parsed(name)[1] is not None or is_everything(name):
        return None
    for word in re.findall(r"[a-z]+", name.lower()):
        if near := [role for role in _ROLES if _misspelt(word, role)]:
            return name.lower().replace(word, near[0], 1)
    return None


def _misspelt(word: str, role: str) -> bool:
    """Letters in another order, one too few or one too many: not `rest` for test, nor `trainset` for train."""
    short, long = sorted((word, role), key=len)
    one_off = len(long) - len(short) == 1 and any(long[:place] + long[place + 1 :] == short for place in range(len(long)))
    return len(short) > 2 and (one_off or sorted(word) == sorted(role))


def alike_names(what: str, clips: Mapping[str, int]) -> list[str]:
    """A sentence about names of splits or classes (`what`), with their numbers of clips, that differ in case alone."""
    alike: dict[str, list[str]] = {}
    for name in clips:
        alike.setdefault(name.casefold(), []).append(name)
    found = []
    for names in alike.values():
        if len(names) > 1:
            counts = " and ".join(f"{name!r} of {clips[name]} clips" for name in names)
            found.append(f"{what} {counts} differ in case alone, and are {len(names)} {what}: spell them alike if they are "
                         "one, and pack again")
    return found


def unusual_names(splits: Mapping[str, Sequence[str]]) -> list[str]:
    """A sentence about every split whose name does not say what it is for, and about names that differ in case alone."""
    found = alike_names("splits", {name: len(keys) for name, keys in splits.items()})
    for name, keys in splits.items():
        if parsed(name)[1] is None and not is_everything(name):
            near = meant(name)
            question = f"did you mean {near!r}? If so, correct it and pack again; else" if near else "no preset looks for it;"
            found.append(f"split {name!r} of {len(keys)} clips: {question} name it where it is used, as in --data.train-split")
    return found
