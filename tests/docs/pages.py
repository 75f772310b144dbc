"""The pages of the project as data: their blocks of code, commands, options, links and paths."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")
SOURCE = re.compile(r"[\w.-]+(?:/[\w.-]+)*\.(?:py|sh|md)")


@dataclass(frozen=True)
class Block:
    """A fenced block: where it stands, its language, its text."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(language: str) -> list[Block]:
    """All blocks of a language, in the pages' order."""
    found = []
    for page in PAGES:
        text = page.read_text()
        for match in FENCE.finditer(text):
            if match[1] == language:
                line = text.count("\n", 0, match.start()) + 2
                found.append(Block(str(page.relative_to(ROOT)), line, language, match[2]))
    return found


def commands() -> dict[str, str]:
    """Each shell command once, without comments and line breaks, and where it first stands."""
    found: dict[str, str] = {}
    for block in blocks("bash"):
        number = block.line
        for line in block.text.replace("\\\n", "\0").splitlines():
            command = " ".join(shlex.split(line.replace("\0", " "), comments=True, posix=False))
            if command:
                found.setdefault(command, f"{block.page}:{number}")
            number += 1 + line.count("\0")
    return found


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return FENCE.sub("", page.read_text())


def anchors(page: Path) -> set[str]:
    """What a link may name after `#`, as GitHub makes it of headings."""
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in HEADING.findall(prose(page))}


def table(page: str, heading: str) -> list[list[str]]:
    """The cells of the first table below a heading, without its head."""
    below = (ROOT / page).read_text().split(f"# {heading}\n", 1)[1]
    rows = re.search(r"^\|.*?(?=^[^|])", below + "\n.", re.MULTILINE | re.DOTALL)
    assert rows is not None, f"{page}: no table below {heading}"
    lines = rows[0].splitlines()[2:]
    return [
        [cell.strip().replace("\0", "|") for cell in line.replace("\\|", "\0").strip("|").split("|")] for line in lines
    ]
