"""`codistill methods NAME` and `docs/methods.md`: made from the code, whole, and true."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs import examples
from jobs.cli.exits import Exit
from jobs.method_page import costs, example_of, needs, page, section
from jobs.offered import method_choices, offered_methods
from tests.unit.jobs.conftest import Call

DOCS = Path(__file__).parents[3] / "docs" / "methods.md"


def test_the_page_in_the_docs_is_what_the_code_says() -> None:
    """Written anew by `python -P -m jobs.method_page > docs/methods.md`."""
    assert DOCS.read_text() == page()


@pytest.mark.parametrize("offer", offered_methods(), ids=lambda offer: offer.name)
def test_a_section_tells_formulas_options_and_an_example(offer: object) -> None:
    name: str = offer.name  # type: ignore[attr-defined]
    text = section(offer)  # type: ignore[arg-type]
    assert text.startswith(f"## `{name}`\n")
    assert "*Needs*: " in text
    for option in method_choices()[name].model_fields:
        assert (f"| `{option}` |" in text) == (option != "kind"), option
    if (example := example_of(name)) is not None:
        assert f"jobs/examples/{example.relative_to(Path(examples.__file__).parent)}`" in text
        assert (name in costs()) == (example.parent.name == "methods")
    if name in costs():
        assert f"*Cost of a step*: {costs()[name].predicted:.2f} in operations" in text


def test_needs_are_those_that_specs_are_checked_for() -> None:
    assert needs("solo") == "any model"
    assert needs("be_your_own_teacher") == "a model of at least 2 stages"
    assert needs("afd") == "a model of at least 1 stage"
    assert needs("codistillation") == "any model; at least two replicas"
    assert needs("hints").endswith("; a teacher: trained first, of a job that has ended, or registered")


def test_one_is_printed_whole_and_a_slip_is_named(call_at_home: Call) -> None:
    code, out, _ = call_at_home("methods", "afd")
    assert code == Exit.DONE
    assert "features   (1 - D_k(t_k(G_k x)))^2" in out
    code, out, error = call_at_home("methods", "adf")
    assert (code, out) == (Exit.USAGE, "")
    assert "did you mean 'afd'?" in error
