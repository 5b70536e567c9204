"""pipeline/README.md: its snippet runs, and the files and names that it mentions exist."""

import re

from repository import ROOT

from svdata2vec.pipeline import decoders, graph, loader, plan
from svdata2vec.shards.reading import decode

TEXT = (ROOT / "pipeline" / "README.md").read_text()


def test_the_snippet_runs(tiny_shard_folder, capsys):
    (snippet,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    given = {'"data/ntu60"': repr(str(tiny_shard_folder)), '"xsub_train"': '"all"'}
    for words, replacement in given.items():
        assert words in snippet
        snippet = snippet.replace(words, replacement)
    exec(compile(snippet, "pipeline/README.md", "exec"), {})
    (line,) = capsys.readouterr().out.splitlines()  # one batch of 8 of the 12 clips
    assert line.startswith("torch.Size([8, 16, 64, 64, 3]) torch.Size([8, 2, 16, 17, 2]) [")


def test_every_file_is_listed_and_every_listed_file_exists():
    listed = {name for row in TEXT.splitlines() if row.startswith("| `") for name in re.findall(r"`(\w+\.py)`", row)}
    assert listed == {path.name for path in (ROOT / "pipeline").glob("*.py")}
    mentioned = re.findall(r"`((?:tools|tests|shards|svdata2vec)/[\w./]+\.\w+)`", TEXT)
    assert mentioned and all((ROOT / name).exists() for name in mentioned)
    for owner, name in [(decoders, "DALI_CPU_CODECS"), (decode, "cut_off_reason"), (graph, "_copy"), (plan, "make_plans"),
                        (loader.ClipLoader, "state_dict")]:
        assert hasattr(owner, name) and name in TEXT
