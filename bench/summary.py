"""`python -m bench.summary`: figures of `pytest bench/ --benchmark-json FILE` as a table and a picture.

A row a comparison: the time of ours, and how many times as long each peer takes, the median of pairs taken in turn.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from bench import OURS
from engine import command
from pipelines.errors import InputError

BEGIN, END = "<!-- bench.summary: begin -->", "<!-- bench.summary: end -->"
FOLDED = 8  # rows of a table from which on a page shows it when it is asked for
MACHINE = ("processor", "cores", "instructions", "gpu", "versions", "python_version")


@dataclass(frozen=True, slots=True)
class Arguments:
    """Prints the figures of the benchmarks as a table in Markdown, with the machine that they were taken on.

    Attributes:
        files: JSON of pytest-benchmark, all of one machine.
        out: a picture of the comparisons, too, as PNG.
        readme: a page to put the table into, with the picture if there is one, between its lines
            "<!-- bench.summary: begin -->" and "<!-- bench.summary: end -->".
    """

    files: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FILE.json ...")]
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE.png")] = None
    readme: Annotated[Path | None, tyro.conf.arg(metavar="FILE.md")] = None


@dataclass(frozen=True, slots=True)
class Case:
    """A comparison; or, without peers, a time alone.

    Attributes:
        suite: file of bench/ that it comes from, "step" of test_step.py.
        name: what is done.
        seconds: that ours takes.
        peers: how many times as long each takes.
        apart: peers that were not timed in turn with ours, but after it.
    """

    suite: str
    name: str
    seconds: float
    peers: dict[str, float]
    apart: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Summary:
    """Of all files.

    Attributes:
        cases: in their order.
        machine: MACHINE's entries.
        quick: whether figures are of the quick form.
        when: days and revisions, and of these which had changes that were not committed.
    """

    cases: list[Case]
    machine: dict[str, Any]
    quick: bool
    when: str


def read_summary(files: Sequence[Path]) -> Summary:
    """What the files say.

    Raises:
        InputError: no files, or not of this suite; files of different machines, or with the same figures.
    """
    contents = [_read(file) for file in files]
    machines = [{key: content["machine_info"][key] for key in MACHINE} for content in contents]
    for file, machine in zip(files, machines, strict=True):
        if differs := [key for key in MACHINE if machine[key] != machines[0][key]]:
            raise InputError(f"{file}: another machine than {files[0]}'s ({', '.join(differs)})")
    groups: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for file, content in zip(files, contents, strict=True):
        for row in content["benchmarks"]:
            suite = Path(row["fullname"].split("::")[0]).stem.removeprefix("test_")
            group, provider = groups.setdefault((suite, row["group"]), {}), row["extra_info"]["provider"]
            if provider in group:
                raise InputError(f"{file}: {row['group']}, {provider}: is there twice")
            group[provider] = row
    rows = [row for group in groups.values() for row in group.values()]
    cases = [case for (suite, name), group in groups.items() for case in _cases(suite, name, group)]
    return Summary(cases, machines[0], any(row["extra_info"].get("quick") for row in rows), _when(contents))


def _when(contents: Sequence[dict[str, Any]]) -> str:
    """Days and revisions of all files, each once."""
    days = dict.fromkeys(content["datetime"][:10] for content in contents)
    commits = [content["commit_info"] for content in contents]
    revisions = dict.fromkeys(
        f"{str(commit.get('id'))[:12]}{' with changes' * bool(commit.get('dirty'))}" for commit in commits
    )
    return f"{' and '.join(days)}, revision{'s' * (len(revisions) > 1)} {' and '.join(revisions)}"


def _read(file: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(file.read_text())
        for row in content["benchmarks"]:
            float(row["stats"]["median"])
            _ = row["fullname"], row["group"], row["extra_info"]["provider"]
        _ = content["datetime"], content["commit_info"].get("id"), [content["machine_info"][key] for key in MACHINE]
    except FileNotFoundError:
        raise InputError(f"{file}: no such file") from None
    except (UnicodeDecodeError, json.JSONDecodeError):
        raise InputError(f"{file}: not JSON, or a part of it") from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        why = f"{type(error).__name__}: {error}"
        raise InputError(f"{file}: not of pytest bench/ --benchmark-only --benchmark-json ({why})") from None
    if not content["benchmarks"]:
        raise InputError(f"{file}: has no figures")
    return content


def _cases(suite: str, name: str, group: dict[str, dict[str, Any]]) -> list[Case]:
    """One of a comparison; of a group without ours, one of each row."""
    seconds = {provider: float(row["stats"]["median"]) for provider, row in group.items()}
    if OURS not in group:
        return [Case(suite, f"{name}: {provider}", took, {}) for provider, took in seconds.items()]
    ratios = {
        provider: float(row["extra_info"].get("times_as_long", seconds[provider] / seconds[OURS]))
        for provider, row in group.items()
        if provider != OURS
    }
    apart = frozenset(provider for provider in ratios if not group[provider]["extra_info"].get("in_turn", True))
    return [Case(suite, name, seconds[OURS], ratios, apart)]


def markdown(summary: Summary) -> str:
    """A table a suite, and under them what was measured, where and how."""
    suites = list(dict.fromkeys(case.suite for case in summary.cases))
    tables = [_table(suite, [case for case in summary.cases if case.suite == suite]) for suite in suites]
    return "\n\n".join([*tables, _under(summary, suites)])


def _table(suite: str, cases: Sequence[Case]) -> str:
    peers = list(dict.fromkeys(peer for case in cases for peer in case.peers))
    rows = [[suite, OURS, *peers], ["---", *["---:"] * (1 + len(peers))]]
    for case in cases:
        rows.append([case.name, duration(case.seconds), *(_times(case, peer) for peer in peers)])
    table = "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows)
    if len(cases) <= FOLDED:
        return table
    return f"<details><summary>{suite}: {len(cases)} rows</summary>\n\n{table}\n\n</details>"


def duration(seconds: float) -> str:
    """Three digits and a unit."""
    unit, value = next(
        (unit, seconds * factor)
        for unit, factor in (("s", 1.0), ("ms", 1e3), ("µs", 1e6))
        if seconds * factor >= 1 or unit == "µs"
    )
    return f"{value:.{max(0, 3 - len(str(int(value))))}f} {unit}"


def _times(case: Case, peer: str) -> str:
    return f"{case.peers[peer]:.2f}{'*' * (peer in case.apart)}" if peer in case.peers else ""


def _under(summary: Summary, suites: Sequence[str]) -> str:
    machine = summary.machine
    parts = [
        machine["processor"],
        f"{machine['cores']} core{'s' * (machine['cores'] != 1)}",
        " ".join(machine["instructions"]),
    ]
    where = ", ".join(part for part in (*parts, machine["gpu"] or "no GPU") if part)
    versions = {"Python": machine["python_version"], **machine["versions"]}
    software = ", ".join(f"{name} {version}" for name, version in versions.items())
    every = {path.stem.removeprefix("test_") for path in Path(__file__).parent.glob("test_*.py")}
    what = "bench/" if every <= set(suites) else " ".join(f"bench/test_{suite}.py" for suite in suites)
    quick = " --quick" if summary.quick else ""
    lines = [
        "Ours: median time. Others: how many times as long as ours, median of pairs taken in turn.",
        f"`pytest {what} --benchmark-only{quick}`, {summary.when}: {where}; {software}.",
    ]
    if any(case.apart for case in summary.cases):
        lines[0] += " *: not in turn, but after the others."
    if summary.quick:
        lines.insert(0, "**The quick form: small shapes and few rounds, which say that all runs, not how fast.**")
    return "\n".join(lines)


def put_into(page: Path, text: str) -> None:
    """Replaces what stands between the lines BEGIN and END of a page.

    Raises:
        InputError: no such page, or one without these lines, each once and in this order.
    """
    try:
        content = page.read_text()
    except FileNotFoundError:
        raise InputError(f"{page}: no such file") from None
    before, begin, rest = content.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end) or BEGIN in rest or END in before + after:
        raise InputError(f"{page}: has no place for the table, {BEGIN} and then {END}, each once")
    from pipelines.cache import replace_file

    with replace_file(page) as temporary:
        temporary.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")


def main() -> int:
    """Parses the command line and prints the table; the exit status."""
    given = command.parse(Arguments, "python -m bench.summary")
    if not given.files:
        raise InputError("give a JSON file of pytest bench/ --benchmark-only --benchmark-json FILE.json")
    if given.out is not None and given.out.suffix != ".png":
        raise InputError(f"--out {given.out}: the file's name must end in .png")
    summary = read_summary(given.files)
    text = markdown(summary)
    print(text)
    if given.out is not None:
        from bench.summary_picture import draw
        from engine.run_figures import save

        save(draw(summary.cases), given.out)
    if given.readme is not None:
        if given.out is not None:
            place = os.path.relpath(given.out, given.readme.parent)
            text = f"![How many times as long as ours each peer takes]({place})\n\n{text}"
        put_into(given.readme, text)
    return command.OK


if __name__ == "__main__":
    command.main(main)
