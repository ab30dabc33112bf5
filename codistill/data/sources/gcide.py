"""GCIDE, the GNU Collaborative International Dictionary of English (Webster 1913, with additions): 31 MB of text."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping

from codistill.data.card import Part
from codistill.data.layouts import Layout, text_layout
from codistill.data.sources.base import Package, Source

FILE = "gcide.dict"
BETWEEN_ENTRIES = re.compile(r"\n\n(?=\S)")
EDITORS_MARKS = re.compile(r"\[(?:1913 Webster|PJC|WordNet 1\.5)[^\]]*\]|[{}]")
AFTER_HEADWORD = re.compile(r"[\\\[,(]")
MIN_CHARACTERS = 21


def build(files: Mapping[str, bytes]) -> Layout:
    """Entries by a hash of their headword: of a hundred parts one is for validation and one for the test. By headword,
    since entries of one word share phrases; by hash, since the file is in alphabetical order."""
    entries: dict[Part, list[str]] = {"train": [], "validation": [], "test": []}
    for raw in BETWEEN_ENTRIES.split(files[FILE].decode("utf-8", errors="replace")):
        entry = cleaned(raw)
        if len(entry) >= MIN_CHARACTERS:
            entries[part_of(entry)].append(entry)
    return text_layout(entries)


def cleaned(raw: str) -> str:
    """An entry on one line, without editors' marks and braces around cross-references."""
    return " ".join(EDITORS_MARKS.sub("", raw).split())


def part_of(entry: str) -> Part:
    """The split of an entry: a function of its headword alone."""
    headword = AFTER_HEADWORD.split(entry, maxsplit=1)[0].strip().lower()
    lot = int(hashlib.md5(headword.encode(), usedforsecurity=False).hexdigest()[:8], 16) % 100
    return "validation" if lot == 0 else "test" if lot == 1 else "train"


SOURCE = Source(
    name="gcide",
    title="GNU Collaborative International Dictionary of English",
    description=(
        "126,000 dictionary entries, one a line, without editors' marks; those of fewer than 21 characters are left"
        " out. Cut by a hash of the headword: 98 % training, 1 % validation, 1 % test."
    ),
    licence="GPL-2.0-or-later",
    url="https://gcide.gnu.org.ua/",
    package=Package(
        "apt",
        "dict-gcide",
        "0.48.5+nmu2",
        "7b0af5cfde3cbdef5e9d6e78f92ec335ced7c2790f37a40f49bebc6f7347ac0f",
        15,
    ),
    files=(FILE,),
    build=build,
    rows={"train": 123_791, "validation": 1_201, "test": 1_259},
)
