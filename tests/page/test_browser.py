"""What a person sees and does, in Chromium; each test has a page of its own, all share two services."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, Request, expect, sync_playwright

from codistill.outcome import ReplicaOutcome, attempt_result
from codistill.run_dir import RunDir, write_json
from jobs.callers import LOCAL, Scope
from jobs.status import State
from tests.left_out import CHROMIUM
from tests.page.place import Place
from tests.unit.jobs.fakes import leave_checkpoints

expect.set_options(timeout=15_000)
SERIOUS = {"serious", "critical"}


# Playwright's loop lives in this thread while it is open: it ends with this file, before tests with loops of their own.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    made = Place(tmp_path_factory.mktemp("open"))
    yield made
    made.close()


# Of a chart's pixels: the greatest share of a row that has the colour of that name.
IN_ONE_ROW = """([title, name]) => {
    const heading = [...document.querySelectorAll('.chart h2')].find((h) => h.textContent === title);
    const canvas = heading.closest('section').querySelector('canvas');
    const hex = getComputedStyle(document.documentElement).getPropertyValue(name).trim();
    const wanted = [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
    const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
    const rows = new Array(canvas.height).fill(0);
    for (let i = 0; i < data.length; i += 4) {
        const close = wanted.every((part, c) => Math.abs(part - data[i + c]) < 9);
        if (close && data[i + 3] > 100) rows[Math.floor(i / 4 / canvas.width)] += 1;
    }
    return Math.max(...rows) / canvas.width;
}"""


class Visit:
    """A tab, what it asked for, and what went wrong in it."""

    def __init__(self, page: Page, url: str) -> None:
        self.page, self.url = page, url
        self.requests: list[Request] = []
        self.errors: list[str] = []
        page.on("request", lambda request: self.requests.append(request))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)

    def open(self, path: str) -> Page:
        self.page.goto(self.url + path)
        return self.page

    def asked(self, ending: str) -> list[dict[str, str]]:
        """The queries of all requests to paths that end so."""
        found = [urlsplit(request.url) for request in self.requests]
        return [{k: v[0] for k, v in parse_qs(url.query).items()} for url in found if url.path.endswith(ending)]


@pytest.fixture
def visit(browser: Browser, place: Place) -> Iterator[Visit]:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    made = Visit(context.new_page(), place.url)
    yield made
    context.close()
    assert [r.url for r in made.requests if not r.url.startswith(made.url)] == [], "nothing is asked of anybody else"
    assert made.errors == []


def row(page: Page, job: str) -> Any:
    return page.locator(f"tr[data-key='{job}']")


# ---------------------------------------------------------------- what follows by itself


def test_the_list_follows_what_happens(visit: Visit, place: Place) -> None:
    page = visit.open("/")
    expect(page.locator("#live")).to_have_text("live")
    job = place.submit(name="followed")
    expect(row(page, job)).to_contain_text("queued")
    place.move(job, State.ADMITTED, State.STARTING, State.RUNNING)
    expect(row(page, job)).to_contain_text("running")
    place.reach(job, 250)
    expect(row(page, job)).to_contain_text("500 of 2\u202f000 steps")
    place.move(job, State.FAILED)
    expect(row(page, job)).to_contain_text("failed")


def test_a_job_follows_and_fetches_only_what_is_new(visit: Visit, place: Place) -> None:
    job = place.running(name="watched")
    place.measure(job, range(0, 300, 10))
    place.reach(job, 300)
    page = visit.open(f"/jobs/{job}")
    loss = page.locator("section.chart", has=page.get_by_role("heading", name="Loss in training"))
    loss.get_by_text("Table").click()
    expect(loss.locator("tbody tr").last).to_contain_text("290")
    expect(page.get_by_role("heading", name="Disagreement")).to_be_visible()
    expect(page.locator("#facts")).to_contain_text(re.compile(r"of CPU time reserved.*has to end by \d"))
    place.measure(job, range(300, 500, 10), incarnation=1)
    place.reach(job, 500)
    expect(loss.locator("tbody tr").last).to_contain_text("490")
    expect(page.locator("#replicas tr").first).to_contain_text("500 of 1\u202f000")
    after = [int(query["after_step"]) for query in visit.asked("/metrics") if query["replica"] == "replica-0"]
    assert after[0] == -1
    assert max(after) == 289, "all but the last step, which may not have been whole"
    assert after.count(-1) == 1
    peers = page.locator("section", has=page.get_by_role("heading", name="Who taught whom"))
    expect(peers.locator("tbody tr").first).to_contain_text("replica-1")
    expect(peers.locator("tbody tr").first).to_contain_text("50")
    place.finish(job)
    expect(page.locator("#facts")).to_contain_text("succeeded")
    expect(page.locator("table.matrix")).to_contain_text("25 %")
    expect(page.get_by_role("button", name="Delete")).to_be_visible()


def test_a_log_is_followed_until_it_is_not(visit: Visit, place: Place) -> None:
    job = place.running(name="logged")
    place.write_log(job, "first\nsec")
    page = visit.open(f"/jobs/{job}")
    log = page.locator("#log")
    expect(log).to_have_text("first\nsec")
    place.write_log(job, "ond\n<img src=x onerror=alert(1)>\n")
    expect(log).to_contain_text("second\n<img src=x onerror=alert(1)>")
    assert log.locator("img").count() == 0
    page.get_by_label("Only lines with").fill("SECOND")
    expect(log).to_have_text("second")
    page.get_by_label("Only lines with").fill("")
    page.get_by_label("follow").uncheck()
    place.write_log(job, "unseen\n")
    page.wait_for_timeout(2500)
    expect(log).not_to_contain_text("unseen")
    page.get_by_label("follow").check()
    expect(log).to_contain_text("unseen")
    place.write_log(job, "of the other\n", "replica-1")
    page.locator("#log-replica").select_option("replica-1")
    expect(log).to_have_text("of the other\n")


def test_a_hundred_thousand_points_leave_the_tab_alive(visit: Visit, place: Place) -> None:
    job = place.running(name="long")
    place.measure(job, range(100_000))
    page = visit.open(f"/jobs/{job}")
    page.evaluate(
        "() => { window.longest = 0; new PerformanceObserver((list) => { for (const e of list.getEntries())"
        " window.longest = Math.max(window.longest, e.duration); }).observe({ type: 'longtask', buffered: true }); }"
    )
    loss = page.locator("section.chart", has=page.get_by_role("heading", name="Loss in training"))
    expect(loss).to_contain_text("Thinned: extremes are kept.", timeout=60_000)
    loss.get_by_text("Table").click()
    expect(loss.locator("tbody tr").last).to_contain_text("99\u202f999")
    assert page.evaluate("window.longest") < 2000, "milliseconds without an answer to a click"


# ---------------------------------------------------------------- what a person does


def test_the_list_is_filtered(visit: Visit, place: Place) -> None:
    kept = place.submit(name="keep", labels={"team": "red", "note": "<b>bold</b>"})
    other, ended = (
        place.submit(name="other", labels={"team": "blue"}),
        place.submit(name="over", labels={"team": "red"}),
    )
    place.move(ended, State.CANCELLED)
    page = visit.open("/")
    expect(row(page, kept)).to_contain_text("<b>bold</b>")
    page.get_by_label("Label").fill("team=red")
    expect(row(page, other)).to_have_count(0)
    expect(row(page, ended)).to_be_visible()
    page.get_by_label("State").select_option("queued")
    expect(row(page, ended)).to_have_count(0)
    assert parse_qs(urlsplit(page.url).query) == {"label": ["team=red"], "state": ["QUEUED"]}
    page.reload()
    expect(row(page, kept)).to_be_visible()
    expect(row(page, ended)).to_have_count(0)
    page.get_by_label("Text").fill("nothing like it")
    expect(page.locator("#empty")).to_have_text("No job is like that.")


def test_a_job_is_cancelled_and_deleted_after_a_question(visit: Visit, place: Place) -> None:
    job = place.submit(name="unwanted")
    page = visit.open(f"/jobs/{job}")
    page.get_by_role("button", name="Cancel").click()
    page.get_by_role("button", name="Back").click()
    expect(page.locator("#facts")).to_contain_text("queued")
    page.get_by_role("button", name="Cancel").click()
    page.get_by_role("button", name="Cancel the job").click()
    expect(page.locator("#facts")).to_contain_text("cancelled")
    page.get_by_role("button", name="Delete").click()
    page.get_by_role("button", name="Delete the job").click()
    page.wait_for_url(f"{place.url}/")
    assert place.store.get(job) is None


def test_another_job_goes_on_from_one_that_has_ended(visit: Visit, place: Place) -> None:
    parent = place.running(name="parent")
    page = visit.open(f"/jobs/{parent}")
    expect(page.get_by_role("button", name="Cancel")).to_be_visible()
    expect(page.get_by_role("button", name="Fork")).to_have_count(0)
    leave_checkpoints(RunDir(place.storage, parent), 7)
    ended = {"replica-0": ReplicaOutcome("succeeded", steps=1000, incarnations=1, step_s=0.01, hardware="a slow GPU")}
    result = attempt_result(parent, 1, ended, started_at=0.0, ended_at=15.0)
    write_json(RunDir(place.storage, parent).result(1), result)
    place.finish(parent)
    fork = page.get_by_role("button", name="Fork")
    fork.press("Enter")
    box, send, says = page.get_by_label("What changes"), page.locator("#go-on-yes"), page.locator("#go-on-says")
    expect(box).to_be_focused()
    expect(box).to_have_value("{}")
    expect(says).to_contain_text("2 × 1000 steps")
    expect(page.locator("#go-on-price")).to_contain_text("15\u202fs")
    box.fill('{"recipe": {"width": 9}}')
    expect(says).to_contain_text("recipe.width a fork may not change this")
    expect(send).to_be_disabled()
    page.keyboard.press("Escape")
    expect(fork).to_be_focused()
    page.get_by_role("button", name="Resume").click()
    expect(box).to_have_value("{}")
    expect(page.locator("#go-on-text")).to_contain_text("more need")
    box.fill('{"name": "again", ')
    expect(says).to_contain_text("This is no JSON")
    box.fill('{"name": "again", "labels": {"note": "<b>"}, "training": {"steps": 1200}}')
    expect(says).to_contain_text("2 × 1200 steps")
    expect(send).to_have_text("Resume")
    send.click()
    page.wait_for_url(re.compile("/jobs/again-"))
    child = place.store.get(page.url.rpartition("/")[2])
    assert child is not None
    assert (child.parent, child.spec.training.steps, dict(child.labels)) == (parent, 1200, {"note": "<b>"})
    page.get_by_role("link", name=f"goes on from {parent}").click()
    expect(page.locator("#children")).to_contain_text(child.id)
    visit.errors.clear()  # the browser's own note of each 422


def test_a_price_is_told_before_and_set_beside_what_it_came_to(visit: Visit, place: Place) -> None:
    spec = {"name": "priced", "training": {"steps": 1000, "batch_size": 48}}
    page = visit.open("/submit")
    expect(page.locator("#verdict.good")).to_be_visible()  # the form has its first spec
    page.locator("#json").fill(json.dumps(spec))
    told = page.locator("#price")
    expect(told).to_contain_text("512\u202fkB")
    expect(told).to_contain_text("Not known: seconds: no job like this one")
    page.locator("#json").fill(json.dumps({**spec, "training": {"steps": 0}}))
    expect(told).to_be_hidden()
    job = place.running(**spec)
    place.tell_the_end(job)
    place.finish(job)
    page = visit.open(f"/jobs/{job}")
    memory = page.locator("#price tr", has_text="Tensors of a rank")
    expect(memory.locator("td")).to_have_text(["512\u202fkB", "500\u202fkB"])
    expect(page.locator("#price tr", has_text="Whole time").locator("td")).to_have_text(["–", "1\u202fmin 00\u202fs"])
    page = visit.open("/submit")
    expect(page.locator("#verdict.good")).to_be_visible()  # the form has its first spec
    page.locator("#json").fill(json.dumps({**spec, "training": {"steps": 2000, "batch_size": 48}}))
    expect(told).to_contain_text("from 1 job like it on Chip 1")
    expect(page.locator("#price tr", has_text="Whole time").locator("td")).to_have_text(["1\u202fmin 50\u202fs"])
    visit.errors.clear()  # the browser's own note of a 422


def test_what_a_job_has_left_is_taken_away(visit: Visit, place: Place) -> None:
    job = place.running(name="left")
    place.export(job, "model.safetensors", b"weights")
    place.finish(job)
    page = visit.open(f"/jobs/{job}")
    model = page.locator("tr[data-key='export/replica-0/model.safetensors']")
    expect(model).to_contain_text("7\u202fB")
    expect(page.locator("#artifacts tr").last).to_contain_text("attempt-1/predictions/replica-1/test.parquet")
    digest = hashlib.sha256(b"weights").hexdigest()
    expect(model.locator("button")).to_have_text(f"{digest[:12]}…")
    assert model.locator("button").get_attribute("title") == digest
    with page.expect_download() as download:
        model.get_by_role("link").click()
    assert download.value.suggested_filename == "model.safetensors"
    assert Path(download.value.path()).read_bytes() == b"weights"
    expect(page.locator("#artifacts-all")).to_have_text(f"codistill export {job}")


def test_what_was_refused_is_marked_where_it_was(visit: Visit, place: Place) -> None:
    job = place.running(name="refused", exchange={"max_lag_steps": 60, "max_offset_steps": 5000})
    place.measure(job, range(0, 1000, 10))
    for step, verdict in ((55, "bad_digest"), (125, "non_finite"), (126, "norm_out_of_bound"), (131, "too_old")):
        place.refuse(job, step, verdict)
    page = visit.open(f"/jobs/{job}")
    chart = page.locator("section.chart", has=page.get_by_role("heading", name="Staleness of teachers"))
    expect(chart).to_contain_text("max_lag_steps is 60. max_offset_steps is 5\u202f000, far above.")
    legend = chart.locator(".legend")
    for says in ("✕replica-0 refuses replica-1 1", "◆replica-0 puts replica-1 in quarantine 2", "too old 1"):
        expect(legend).to_contain_text(says)
    chart.get_by_text("Table").click()
    told = chart.locator(".refusals tbody tr")
    expect(told).to_have_text(["replica-1replica-0121", "replica-0replica-1000"])
    firsts = chart.locator("td:first-child").all_inner_texts()
    steps = [int(text) for text in firsts if text.isdigit()]
    assert {55, 125, 126} <= set(steps), "never left out, as of 104 steps most are"
    assert len(steps) < 50
    assert page.evaluate(IN_ONE_ROW, ["Staleness of teachers", "--bad"]) > 0.3, "a dashed line, all across"
    peers = page.locator("section", has=page.get_by_role("heading", name="Who taught whom"))
    expect(peers.locator("tbody tr").first.locator("td").last).to_have_text("3")


def test_a_form_says_what_is_wrong_where_it_is(visit: Visit, place: Place) -> None:
    page = visit.open("/submit")
    send = page.get_by_role("button", name="Submit")
    expect(send).to_be_enabled()
    page.locator("#field-training-steps").fill("many")
    expect(page.locator("#wrong-training-steps")).to_contain_text("valid integer")
    expect(send).to_be_disabled()
    page.locator("#field-training-steps").fill("70")
    expect(page.locator("#wrong-training-steps")).to_be_empty()
    page.locator("#field-method-kind").select_option("solo")
    assert json.loads(page.locator("#json").input_value())["method"] == {"kind": "solo"}
    page.locator("#json").fill('{"name": "typed", "training": {"stepz": 3}}')
    expect(page.locator("#verdict")).to_contain_text("did you mean 'steps'")
    page.locator("#json").fill('{"name": "typed", "training": {"steps": 3}}')
    expect(page.locator("#field-training-steps")).to_have_value("3")
    expect(send).to_be_enabled()
    send.click()
    page.wait_for_url(re.compile("/jobs/typed-"))
    job = place.store.get(page.url.rpartition("/")[2])
    assert job is not None
    assert job.spec.training.steps == 3
    visit.errors.clear()  # the browser's own note of each 422


def test_another_like_it_says_only_what_differs_from_the_defaults(visit: Visit, place: Place) -> None:
    job = place.submit(name="again", method={"kind": "codistillation", "weight": 0.5}, training={"steps": 44})
    page = visit.open(f"/submit?from={job}")
    expect(page.locator("#field-training-steps")).to_have_value("44")
    assert json.loads(page.locator("#json").input_value()) == {
        "name": "again", "method": {"kind": "codistillation", "weight": 0.5}, "training": {"steps": 44},
    }  # fmt: skip


def test_jobs_are_compared(visit: Visit, place: Place) -> None:
    jobs = [place.running(name="left"), place.running(name="right", method={"kind": "solo"})]
    for job in jobs:
        place.measure(job, range(0, 100, 10))
        place.reach(job, 100)
    page = visit.open("/")
    expect(page.get_by_role("button", name="Compare")).to_be_disabled()
    for job in jobs:
        page.get_by_label(f"choose {job}").check()
    page.get_by_role("button", name="Compare (2)").click()
    expect(page.locator("#body tr", has_text="Method")).to_contain_text("codistillation")
    expect(page.locator("#diff tr", has_text="method.kind")).to_contain_text("solo")
    expect(page.locator("#diff tr", has_text="training.steps")).to_have_count(0)
    page.get_by_label("Chart of").select_option("train/task_loss")
    page.get_by_text("Table").click()
    expect(page.locator(".numbers tbody tr").last).to_contain_text("90")
    page.get_by_label(f"leave {jobs[0]} out").click()
    expect(page.locator("#hint")).to_be_visible()


def test_all_of_it_works_with_the_keyboard(visit: Visit, place: Place) -> None:
    job = place.submit(name="keys")
    page = visit.open("/")
    expect(row(page, job)).to_be_visible()
    page.keyboard.press("Tab")
    expect(page.locator(":focus")).to_have_text("To the content")
    page.keyboard.press("Enter")
    for _ in range(40):
        if page.evaluate("document.activeElement.textContent") == job:
            break
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_url(f"{place.url}/jobs/{job}")
    cancel = page.get_by_role("button", name="Cancel", exact=True)
    expect(cancel).to_be_visible()
    cancel.focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Back")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(cancel).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator("#facts")).to_contain_text("cancelled")


# ---------------------------------------------------------------- a study


def test_a_study_sets_its_arms_side_by_side(visit: Visit, place: Place) -> None:
    place.study("weights")
    page = visit.open("/studies")
    page.get_by_role("link", name="weights").click()
    expect(page.locator("#jobs .chip.succeeded")).to_have_count(9)
    expect(page.locator("#tried tr")).to_have_count(2)
    expect(page.locator("#tried tr[data-key='pair 1']")).to_contain_text("chosen")
    pair = page.locator("#differences tr[data-key='pair log_loss']")
    expect(pair).to_contain_text("better")
    expect(pair).to_contain_text("−0.1")
    expect(page.locator("#reach tr[data-key='pair']")).to_contain_text(re.compile(r"3 of 3.*0\.96 ×"))
    expect(page.locator("#notes")).to_contain_text(f"Made with codistill {metadata.version('codistill')}")
    page.locator("#baseline").select_option("pair")
    expect(page.locator("#differences tr[data-key='solo log_loss']")).to_contain_text("worse")
    expect(page.locator("#reach tr[data-key='solo']")).to_contain_text("0 of 3")
    expect(page.locator("#charts h2").first).to_have_text("Against steps")
    page.locator("#axis").select_option("flops")
    shown = page.locator("#charts section:visible")
    expect(shown.get_by_role("heading")).to_have_text("Against billions of operations of all replicas")
    shown.get_by_text("Table").click()
    # Two replicas of 1,000 steps of 2 billion each.
    expect(shown.locator("tbody tr").last.locator("td").first).to_have_text(re.compile(r"4.000"))


# ---------------------------------------------------------------- for everybody


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(browser: Browser, place: Place, scheme: str) -> None:
    job = place.running(name=f"axe-{scheme}")
    place.measure(job, range(0, 200, 10))
    place.reach(job, 200)
    place.refuse(job, 55, "non_finite")
    place.export(job, "model.safetensors", b"weights")
    place.submit(name="waits", labels={"team": "red"})
    other = place.running(name=f"other-{scheme}")
    place.measure(other, range(0, 200, 10))
    place.finish(other)
    place.study(f"axe-{scheme}", seeds=(1,))
    for path, drawn in {
        "/": "tr[data-key]", "/queue": "tr[data-key]", "/submit": ".verdict.good",
        f"/jobs/{job}": "canvas", f"/jobs/{other}": "canvas", f"/compare?ids={job},{other}": "canvas",
        "/studies": "tr[data-key]", f"/studies/axe-{scheme}": "canvas",
    }.items():  # fmt: skip
        context = browser.new_context(color_scheme="dark" if scheme == "dark" else "light")
        page = context.new_page()
        page.goto(place.url + path)
        page.locator(drawn).first.wait_for(timeout=15_000)
        if path == f"/jobs/{other}":
            page.get_by_role("button", name="Fork").click()
            page.locator("#go-on-says.bad").wait_for()
        found = Axe().run(page).response["violations"]
        bad = [(v["id"], v["nodes"][0]["html"]) for v in found if v["impact"] in SERIOUS]
        assert bad == [], path
        context.close()


def test_a_phone_scrolls_down_only(browser: Browser, place: Place) -> None:
    job = place.running(name="a-job-with-a-rather-long-name-for-a-small-screen", labels={"team": "x" * 60})
    place.measure(job, range(0, 200, 10))
    place.reach(job, 200)
    place.export(job, "model.safetensors", b"weights")
    place.finish(job)
    place.study("on-a-phone", seeds=(1,))
    context = browser.new_context(viewport={"width": 360, "height": 740})
    page = context.new_page()
    for path in ("/", "/queue", "/submit", "/compare", f"/jobs/{job}", "/studies", "/studies/on-a-phone"):
        page.goto(place.url + path)
        page.wait_for_load_state("load")
        page.wait_for_timeout(500)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, path
    context.close()


def test_a_token_is_asked_for_once_and_sent_with_everything(browser: Browser, tmp_path: Path) -> None:
    place = Place(tmp_path, needs_token=True)
    token = place.store.accounts.create("ann", Scope.WRITE, lifetime_s=None, by=LOCAL)[1]
    context = browser.new_context()
    visit = Visit(context.new_page(), place.url)
    page = visit.open("/")
    dialog = page.get_by_role("dialog")
    expect(dialog).to_be_visible()
    page.locator("#token-value").fill("nonsense")
    page.keyboard.press("Enter")
    expect(dialog).to_contain_text("does not know this token")
    page.locator("#token-value").fill(token)
    page.keyboard.press("Enter")
    expect(dialog).to_have_count(0)
    expect(page.locator("#live")).to_have_text("live")
    page.goto(f"{place.url}/queue")
    expect(page.locator("#nobody")).to_have_text("Nobody waits.")
    expect(dialog).to_have_count(0)
    to_api = [request for request in visit.requests if "/api/v1/" in request.url]
    assert any(request.url.endswith("/api/v1/events") for request in to_api)
    assert all("authorization" in request.headers for request in to_api)
    assert all("authorization" not in request.headers for request in visit.requests if "/static/" in request.url)
    assert token not in page.url
    job = place.running(token=token, name="left")
    place.export(job, "model.safetensors", b"weights")
    place.export(job, "large.bin", b"", 100_000_001)
    page.goto(f"{place.url}/jobs/{job}")
    with page.expect_download() as download:
        page.get_by_label("Download export/replica-0/model.safetensors").click()
    assert Path(download.value.path()).read_bytes() == b"weights"
    large = page.locator("tr[data-key='export/replica-0/large.bin']")
    large.get_by_text("By command").click()
    expect(large.locator("code")).to_contain_text(f"{place.url}/api/v1/jobs/{job}/artifacts/export/replica-0/large.bin")
    assert token not in page.content()
    context.close()
    place.close()
