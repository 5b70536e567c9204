"""Sections of the result pages about label efficiency: what each row reaches, how far rows are apart, what they cost."""

from collections.abc import Sequence
from statistics import mean

from result_cells import Record, measured, percent, table

from svdata2vec.studies.study import differences, fewer_seeds


def label_efficiency(record: Record, chart: str = "label_efficiency.png") -> str:
    """Accuracy of every row over the share of labels, with the half width of its interval over seeds."""
    shares = record["settings"]["fractions"]
    labels = {cell["fraction"]: cell["labels"] for row in record["rows"] for cell in row["cells"]}
    header = ["", *(f"{100 * share:g} % ({labels[share]})" if share in labels else f"{100 * share:g} %" for share in shares)]
    rows = []
    for row in record["rows"]:
        cells = {cell["fraction"]: with_half(cell) for cell in row["cells"]}
        rows.append([row["title"], *(cells.get(share, "") for share in shares)])
    data, seeds = record["data"], len(record["seeds"])
    clips = data["clips"]
    validated = ""
    if record["search"] and data["val_split"]:
        searched = " and ".join(f"{100 * share:g} %" for share in sorted({each["fraction"] for each in record["search"]}))
        validated = f", hyper-parameters chosen at {searched} of the labels on {clips[data['val_split']]} validation clips"
    return table(header, rows) + (
        f"\n{_figure(record).capitalize()} on {clips[data['test_split']]} clips of "
        f"{data['name']} ({data['classes']} classes, chance {percent(1 / data['classes'])}), mean of {seeds} seeds ± half "
        "of its 95 % interval over seeds, which draw labels, weights and pretraining; the test clips are the same throughout, "
        f"and the interval does not account for their number. {clips[data['train_split']]} clips to train on{validated}. "
        f"In brackets the number of labelled clips. {commits(record)} {measured(record)}\n"
        f"\n![Accuracy over labelled clips]({chart})\n"
    )


def _figure(record: Record) -> str:
    """What the scores are."""
    return "mean over classes" if record["metric"] == "mean_class" else "top-1"


def at_one_share(record: Record, *longer: Record | None, share: float = 0.1, ours: str = "pretrained") -> str:
    """Rows trained end to end with one share of the labels: those of a record, and beside them those with more steps.

    The lead of one of ours over a row of as many steps is paired by seed. `longer`: records of the same steps.
    """
    _require_pairs(record, *longer)
    more = [each for each in longer if each is not None]
    columns = [_Column(rows, share, ours) for rows in (record["rows"], [row for each in more for row in each["rows"]]) if rows]
    titles = {name: title for column in reversed(columns) for name, title in column.titles.items()}
    order = dict.fromkeys(name for column in columns for name in column.titles)
    rows = [[titles[name], *(cell for column in columns for cell in column.cells(name))] for name in order]
    data, clips = record["data"], record["data"]["clips"]
    machines = dict.fromkeys(f"{measured(other)}{_packed_anew(record, other)}" for other in more)
    others = "".join(f" Rows with {columns[-1].steps:,} steps: {machine}" for machine in machines)
    header = [text for column in columns for text in (f"{_figure(record)} after {column.steps:,} steps",
                                                      f"lead of {titles[ours]}, points")]
    return table(["", *header], rows) + (
        f"\n{100 * share:g} % of the labels of {clips[data['train_split']]} synthetic clips ({columns[0].labels}), all of "
        f"which are pretrained on; the same {clips[data['test_split']]} test clips of other performers throughout, chance "
        f"{percent(1 / data['classes'])}. All rows are trained end to end, for the steps on labels that the column names; "
        f"pretraining comes on top. Mean of {len(record['seeds'])} seeds with its 95 % interval over seeds; points are paired "
        f"by seed, bold where the interval excludes 0, not corrected for their number, "
        f"{sum(column.compared for column in columns)}. {measured(record)}{others}\n"
    )


class _Column:
    """Rows of one number of steps on labels, with one share of the labels; probes are left out.

    Attributes:
        steps: that most rows have; a cell of another row says its own.
        labels: how many clips the share is.
        compared: how many rows ours is compared with.
    """

    def __init__(self, rows: Sequence[Record], share: float, ours: str) -> None:
        self._found = {row["name"]: (row, cell) for row in rows for cell in row["cells"]
                       if cell["fraction"] == share and not row["name"].endswith(("_linear", "_attentive"))}
        cells = [cell for _, cell in self._found.values()]
        self.steps, self.labels = min(cell["steps"] for cell in cells), cells[0]["labels"]
        self.titles = {name: row["title"] for name, (row, _) in self._found.items()}
        mine = self._found[ours][0] if ours in self._found else None
        self._leads = {name: _better(mine, row)[share] for name, (row, _) in self._found.items() if mine and row is not mine}
        self.compared = len(self._leads)

    def cells(self, name: str) -> tuple[str, str]:
        if name not in self._found:
            return "", ""
        cell = self._found[name][1]
        other_steps = "" if cell["steps"] == self.steps else f" ({cell['steps']:,} steps)"
        return f"{with_half(cell)}{other_steps}", self._leads.get(name, "")


def _packed_anew(record: Record, other: Record) -> str:
    """A remark where another record's clips were packed by themselves: pairs then share labels, not what is seen of them."""
    return "" if other["data"]["fingerprint"] == record["data"]["fingerprint"] else " Their clips were packed anew."


def more_steps(record: Record, *more: Record | None, of_ours: str) -> str:
    """What is trained without pretraining, for few and for many steps on labels (`more`: further records), against the network
    after pretraining, which the last record has; `of_ours` says of which pretraining."""
    *others, longest = [each for each in more if each is not None]
    _require_pairs(record, *others, longest)
    ours = next(row for row in longest["rows"] if row["name"] == "pretrained")
    labels = {cell["fraction"]: cell["labels"] for cell in ours["cells"]}
    shares = [share for share in record["settings"]["fractions"] if share in labels]
    records, rows, compared = [record, *others], [], 0
    for row in (*(row for each in records for row in each["rows"]), ours):
        better = _better(ours, row) if row is not ours else {}
        compared += sum(share in better for share in shares)
        cells = [text for share in shares for text in (_cell_at(row, share), better.get(share, ""))]
        shown = [cell for cell in row["cells"] if cell["fraction"] in shares]
        steps = " and ".join(f"{number:,}" for number in sorted({cell["steps"] for cell in shown}))
        rows.append([row["title"], steps, f"{mean(_spent_on(*shown)):,.0f}", *cells])
    header = [text for share in shares for text in (f"{100 * share:g} % ({labels[share]})", f"lead of {ours['title']}, points")]
    return table(["", "steps", "CPU s", *header], rows) + (
        f"\n{_figure(record).capitalize()}, mean of {len(record['seeds'])} seeds with its 95 % interval; points are paired by "
        f"seed, bold where the interval excludes 0, not corrected for their number, {compared}. "
        f"{ours['title'].capitalize()}: {of_ours}; its CPU seconds exclude pretraining. "
        f"{' '.join(f'{commits(each)} {measured(each)}' for each in [*records, longest])}\n"
    )


def _better(ours: Record, other: Record) -> dict[float, str]:
    """By how much one of ours is better than a row of any record, by share of the labels."""
    seeds = len(ours["cells"][0]["scores"])
    return {each["fraction"]: _points(each, seeds) for each in differences([ours, {**other, "kind": "rival"}])}


def _require_pairs(record: Record, *others: Record | None) -> None:
    """Rows of several records are paired by the places of their seeds."""
    assert all(other is None or other["seeds"] == record["seeds"] for other in others), "seeds that do not pair"


def _spent_on(*cells: Record) -> list[float]:
    """CPU seconds of the cells' runs that are finished."""
    return [seconds for cell in cells for seconds in cell["cpu_seconds"] if seconds is not None]


def commits(record: Record) -> str:
    """Of which commits a record and its runs are, as far as that was written down."""
    rows = record["rows"]
    with_labels = {commit for row in rows for cell in row["cells"] for commit in cell.get("commits", ["unknown"])}
    before = {commit for row in rows for run in row.get("pretraining", []) for commit in run.get("commits", ["unknown"])}
    return (
        f"Collected at commit {record['commit'] or 'unknown'}; commits of the runs with labels: "
        f"{', '.join(sorted(with_labels))}; of pretraining: {', '.join(sorted(before)) or 'none'}."
    )


def with_half(cell: Record) -> str:
    """61.2 ± 3.4 %, in per cent; of one seed the value alone; of how many, where some are missing."""
    scores = cell["scores"]
    few = fewer_seeds(len(scores) - scores.count(None), len(scores))
    if cell["interval"] is None:
        return percent(cell["mean"]) + few
    return f"{100 * cell['mean']:.1f} ± {50 * (cell['interval'][1] - cell['interval'][0]):.1f} %{few}"


def label_differences(record: Record) -> str:
    """Each row of ours against those that are not, paired by seed; what the intervals say of it in words."""
    ours, others = ([row for row in record["rows"] if (row["kind"] == "ours") == wanted] for wanted in (True, False))
    shares = record["settings"]["fractions"]
    found = {(each["row"], each["against"], each["fraction"]): each for each in record["differences"]}
    rows = [
        [mine["title"], other["title"],
         *(_points(each, len(record["seeds"])) if (each := found.get((mine["name"], other["name"], share))) else ""
           for share in shares)]
        for mine in ours for other in others
    ]
    shown = sum(text != "" for row in rows for text in row[2:])
    return table(["", "better than", *(f"{100 * share:g} %" for share in shares)], rows) + (
        "\nPoints: mean of the differences seed by seed, with its 95 % interval; bold where the interval excludes 0. "
        f"Intervals are not corrected for their number, {shown}.\n"
    )


def _points(each: Record, seeds: int) -> str:
    """A difference; `seeds`: of how many it should be."""
    few = fewer_seeds(each.get("seeds", seeds), seeds)
    if each["interval"] is None:
        return f"{100 * each['mean']:+.1f}{few}"
    low, high = each["interval"]
    text = f"{100 * each['mean']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f}){few}"
    return f"**{text}**" if low > 0 or high < 0 else text


def label_costs(record: Record) -> str:
    """Steps, clips and CPU seconds of a row at the largest share of labels, and of its pretraining."""
    rows = []
    for row in record["rows"]:
        cell, before = max(row["cells"], key=lambda cell: cell["fraction"]), row.get("pretraining") or []
        spent, chosen = _spent_on(cell), ", ".join(f"{name} {value:g}" for name, value in cell["choice"].items())
        rows.append([
            row["title"], *(f"{cell[name]:,}" if cell[name] else "" for name in ("labels", "steps", "clips_seen")),
            f"{mean(spent):,.0f}" if spent else "", *(_average(before, name) for name in ("clips_seen", "cpu_seconds")), chosen,
        ])
    header = ["", "labels", "steps", "clips seen", "CPU s", "pretraining: clips", "CPU s", "chosen"]
    return table(header, rows) + (
        "\nFor one run with the most labels that the row has had; CPU seconds are the training process's, a mean over seeds; a "
        "probe's include its frozen tokens of these clips.\n"
    )


def _average(costs: Sequence[Record], name: str) -> str:
    return f"{mean(each[name] for each in costs):,.0f}" if costs else ""


def skeletons(record: Record, positions: Record, rgb: Record) -> str:
    """Classifiers of skeletons alone, whose tokens tell motion or positions alone, against one of RGB after pretraining."""
    shares, seeds = record["settings"]["fractions"], record["seeds"]
    _require_pairs(record, positions, rgb)
    (moving,), (still,) = record["rows"], positions["rows"]
    ours = next(row for row in rgb["rows"] if row["name"] == "pretrained")
    better = _better(ours, moving)
    labels = {cell["fraction"]: cell["labels"] for cell in moving["cells"]}
    rows = [
        ["skeletons, positions and motion", *(_cell_at(moving, share) for share in shares)],
        ["skeletons, positions alone", *(_cell_at(still, share) for share in shares)],
        ["RGB after 80 epochs, fine-tuned", *(_cell_at(ours, share) for share in shares)],
        ["... is better than the first line by", *(better.get(share, "") for share in shares)],
    ]
    data = record["data"]
    return table(["", *(f"{100 * share:g} % ({labels[share]})" for share in shares)], rows) + (
        f"\n{_figure(record).capitalize()} on {data['clips'][data['test_split']]} test clips, mean of {len(seeds)} seeds with "
        "its 95 % interval; points are paired by seed, bold where the interval excludes 0, not corrected for their number, "
        f"{len(better)}. The third line is from [the claim](README.md#claim). {commits(record)} {measured(record)}\n"
    )


WAYS = {"": "fine-tuned", "_linear": "linear probe", "_attentive": "attentive probe"}


def sides(record: Record) -> str:
    """Ways to pretrain against the first one: accuracy of that, and the paired differences of the others."""
    names, shares = [*record["sides"]], record["settings"]["fractions"]
    first, rows = names[0], {row["name"]: row for row in record["rows"]}
    ways = [(suffix, share) for suffix in WAYS if first + suffix in rows for share in shares]
    found = {(each["row"], each["against"], each["fraction"]): each for each in record["differences"]}
    header = ["", *(f"{WAYS[suffix]}, {100 * share:g} %" for suffix, share in ways), "pretraining, CPU s"]
    table_rows = [[first, *(_cell_at(rows[first + suffix], share) for suffix, share in ways), _spent(rows, first)]]
    for name in names[1:]:
        pairs = [found.get((first + suffix, name + suffix, share)) for suffix, share in ways]
        points = [_points(_turned(each), len(record["seeds"])) if each else "" for each in pairs]
        table_rows.append([f"{name}{_other_epochs(record['sides'][name])}, difference", *points, _spent(rows, name)])
    data, seeds, epochs = record["data"], len(record["seeds"]), record["pretraining"]["run"]["epochs"]
    return table([header[0], *header[1:]], [[cells[0].replace("_", " "), *cells[1:]] for cells in table_rows]) + (
        f"\n{_figure(record).capitalize()} on {data['clips'][data['test_split']]} test clips, mean of {seeds} seeds with its "
        "95 % interval; differences to the first line are paired by seed, bold where the interval excludes 0, not corrected "
        f"for their number. {epochs} epochs of {data['clips'][data['train_split']]} clips unless a line says otherwise. "
        f"{commits(record)} {measured(record)}\n"
    )


def _other_epochs(changes: Sequence[str]) -> str:
    """For how long a side was pretrained, in brackets; nothing if as long as the first one."""
    epochs = next((change.split()[-1] for change in changes if change.startswith("run.epochs ")), "")
    return epochs and f" ({epochs} epoch{'' if epochs == '1' else 's'})"


def finetuning(record: Record) -> str:
    """Ways to fine-tune against the first one, on validation clips."""
    (first, *_), data, seeds = record["sides"], record["data"], len(record["seeds"])
    rows = [
        [name.replace("_", " "), with_half(side), "" if name == first else _points(side["difference"], seeds),
         _average(side["costs"], "clips_seen"), _average(side["costs"], "cpu_seconds")]
        for name, side in record["sides"].items()
    ]
    return table(["", f"validation clips, {_figure(record)}", "difference (95 % interval)", "clips seen", "CPU s"], rows) + (
        f"\n{data['labels']} labels, judged on {data['clips']} clips of other performers, mean of {seeds} seeds with its "
        "95 % interval; differences to the first line are paired by seed, bold where the interval excludes 0, not corrected "
        f"for their number. Pretraining: {record['pretraining']['epochs']} epochs. Commits of the runs: "
        f"{', '.join(record['commits'])}. {measured(record)}\n"
    )


def _cell_at(row: Record, share: float) -> str:
    return next((with_half(cell) for cell in row["cells"] if cell["fraction"] == share), "")


def _spent(rows: dict[str, Record], side: str) -> str:
    """CPU seconds of a side's pretraining, by any of its rows."""
    return next((_average(rows[side + way].get("pretraining") or [], "cpu_seconds") for way in WAYS if side + way in rows), "")


def _turned(each: Record) -> Record:
    """The difference the other way round."""
    low, high = each["interval"] or (0.0, 0.0)
    return {**each, "mean": -each["mean"], "interval": [-high, -low] if each["interval"] else None}
