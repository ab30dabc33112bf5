"""The page of evidence is what the kept results say, and its studies are ones that can be trained."""

from __future__ import annotations

import pytest

from codistill.study import load_study, trials_of
from tests.benchmarks.evidence import PAGE, PLACE, STUDIES, page


def test_the_page_is_what_the_results_say() -> None:
    assert PAGE.read_text() == page(), "make evidence writes it anew"


@pytest.mark.parametrize("name", STUDIES)
def test_studies_have_five_seeds_and_kept_results_are_of_their_arms(name: str) -> None:
    study = load_study(PLACE / f"{name}.toml")
    assert study.name == name
    assert len(study.seeds) >= 5
    assert trials_of(study)
    kept = {path.stem for path in (PLACE / "results" / name).glob("*.json")}
    assert kept <= set(study.arms)
