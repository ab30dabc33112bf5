"""Every error that a user meets ends with the next thing to try: all sentences in the code are looked through."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PLACE = {"ApiProblem": 2}
"""Which argument the sentence is, where it is not the first."""
KINDS = {
    "ApiProblem", "ArmError", "CommandError", "DataError", "DownloadDiffers", "HeadError", "NothingToCompare",
    "NothingToGoOnFrom", "PlotError", "PlotsNotInstalled", "StorageError", "StoreError",
}  # fmt: skip
PASSED_ON = re.compile(
    r"<str\((error|problem|error\.detail)\)>|<detail>|<'; '\.join\(map\(str, errors\)\)>"
    r"|(--name|--incumbent|\{TOKENS_FILE_VARIABLE\}): \{error\}"
    r"|the store \{[^}]*\} \{meaning_of_\w+\(.*\)\}"
)
"""Another's sentence, which is looked at where it is made."""
TO_DO = re.compile(
    r"\b(add|cancel|check|choose|codistill|correct|create|end|fork|free|GET|give|grant|install|leave|make"
    r"|name|open|pip|raise|remove|restore|resume|see|send|set|start|submit|take|try|use|wait|write|CODISTILL_\w+)\b"
    r"|--[a-z]|\?$|[A-Z]+=[A-Z]+"
)
"""What a remedy says: something to do, an option or a setting to give, or a question to answer."""


def text(node: ast.expr) -> str:
    """A sentence, with what is filled in in braces."""
    match node:
        case ast.Constant(value=str() as value):
            return value
        case ast.JoinedStr(values=parts):
            return "".join(map(text, parts))
        case ast.FormattedValue(value=value):
            return "{" + ast.unparse(value) + "}"
        case _:
            return f"<{ast.unparse(node)}>"


def sentences() -> Iterator[tuple[str, str]]:
    """Where each is raised, and what it says; of one in a variable, all that the variable may be."""
    for path in sorted([*(ROOT / "jobs").rglob("*.py"), *(ROOT / "codistill").rglob("*.py")]):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        values: dict[str, list[ast.expr]] = {}
        for node in ast.walk(tree):
            match node:
                case ast.Assign(targets=[ast.Name(id=name)], value=value):
                    values.setdefault(name, []).append(value)
        for node in ast.walk(tree):
            match node:
                case ast.Call(func=ast.Name(id=kind), args=args) if kind in KINDS and len(args) > PLACE.get(kind, 0):
                    given = args[PLACE.get(kind, 0)]
                    known = values.get(given.id, []) if isinstance(given, ast.Name) else []
                    for one in known or [given]:
                        yield f"{path.relative_to(ROOT)}:{node.lineno}", text(one)


def has_remedy(sentence: str) -> bool:
    """Beside what is filled in, and what could not be done."""
    return bool(TO_DO.search(re.sub(r"\{[^}]*\}|cannot (be )?\w+", "...", sentence)))


SENTENCES = [(where, said) for where, said in sentences() if not PASSED_ON.fullmatch(said)]


def test_there_are_sentences() -> None:
    assert len(SENTENCES) > 120


def test_every_sentence_says_what_to_do() -> None:
    assert [f"{where}: {said}" for where, said in SENTENCES if not has_remedy(said)] == []


@pytest.mark.parametrize(
    ("said", "has"),
    [
        ("storage {storage} does not exist; create it", True),
        ("the image {name} is damaged", False),
        ("cannot write {use}: {error}", False),
        ("cannot read {path}: is the download complete?", True),
        ("port {port} is in use; choose another --port", True),
    ],
)
def test_what_counts_as_a_remedy(said: str, has: bool) -> None:
    assert has_remedy(said) is has
