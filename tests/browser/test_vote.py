"""The vote page in a real Chromium, and the votes that are stored."""

from __future__ import annotations

import json
import signal
from collections import Counter

import pytest
from playwright.sync_api import expect
from vote_study import ServedStudy, make_prompts, make_set

from evaluation.image_set import Prompt
from evaluation.vote.study import StudyFolder, make_study
from evaluation.vote.votes import VoteFile, counted, read_votes

NAMES = ("modelalpha", "modelbeta")
DENSE = "a weathered lighthouse with peeling crimson paint above a turquoise sea, two boats with mustard yellow sails "
KEYS = {"left": ("ArrowLeft", "1"), "right": ("ArrowRight", "2"), "tie": ("ArrowDown", "Space")}


def study(root, pairs, **options):
    prompts = [
        Prompt(id=prompt.id, text=prompt.text + ", " + DENSE * (number % 6), category="anything")
        for number, prompt in enumerate(make_prompts(pairs))
    ]
    sets = {name: make_set(root / name, name, prompts) for name in NAMES}
    folder = StudyFolder(root / "study")
    folder.create(make_study(folder.path, sets, pairs=pairs, **options))
    return folder


class Voter:
    """A rater at the page.

    Attributes:
        errors: of the page.
        told: address, headers and body of every answer, where it is listened to.
    """

    def __init__(self, browser, server, name, listen=False, **context):
        self.server = server
        self.name = name
        self.errors, self.told = [], []
        self.context = browser.new_context(**context)
        if listen:
            self.context.route("**/*", self._listen)
        self.open()

    def open(self):
        self.page = self.context.new_page()
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(self.server.url)

    def _listen(self, route):
        answer = route.fetch()
        self.told.append((route.request.url, str(answer.headers), answer.body()))
        route.fulfill(response=answer)

    def begin(self):
        self.page.get_by_label("Your name").fill(self.name)
        self.page.keyboard.press("Enter")
        self.at(0)

    def at(self, step):
        """Wait until that question can be answered."""
        self.page.wait_for_selector(f"#vote.ready[data-step='{step}']")

    def press(self, key, then):
        self.page.keyboard.press(key)
        if then is None:
            self.page.wait_for_selector("#end:not([hidden])")
        else:
            self.at(then)

    def saved(self):
        expect(self.page.locator("#saved")).to_have_text("Saved")


def tasks_of(folder, rater):
    return list(VoteFile(folder.study, folder.votes).tasks(rater).values())


def votes_of(folder, rater):
    return [vote for vote in read_votes(folder.study, folder.votes) if vote.rater == rater]


def said(folder, rater, task, question):
    """The choice that counts."""
    (vote,) = (
        vote
        for vote in counted(votes_of(folder, rater))
        if (vote.pair, vote.repeat, vote.question) == (task.pair.id, task.repeat, question)
    )
    assert (vote.left, vote.right) == (task.left.model, task.right.model)
    return vote.choice


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A server for tests that do not stop it, each with its own rater. Six pairs, texts of 5 to 100 words."""
    with ServedStudy(study(tmp_path_factory.mktemp("vote"), 6, repeat=0).path) as server:
        yield server


@pytest.fixture(scope="module")
def phone():
    return {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}


def test_twenty_pairs_by_keyboard_with_a_reload(browser, tmp_path):
    """Every key, a correction, a reload, the end: each vote is stored once, and no response names a model."""
    folder = study(tmp_path, 20, repeat=0)
    tasks = tasks_of(folder, "ada")
    chosen = [("left", "right", "tie")[(number * 7 // 3) % 3] for number in range(40)]
    with ServedStudy(folder.path) as server:
        ada = Voter(browser, server, "Ada", listen=True, viewport={"width": 1280, "height": 800})
        ada.begin()
        for step, choice in enumerate(chosen):
            expect(ada.page.locator("#prompt")).to_have_text(tasks[step // 2].pair.text.strip())
            if step == 17:
                ada.page.reload()
                ada.at(17)
                expect(ada.page.locator("#place")).to_have_text("Pair 9 of 20, question 2 of 2")
            if step == 30:  # two steps back, one of them corrected, the other one kept
                ada.press("Backspace", 29)
                ada.press("Backspace", 28)
                chosen[28] = "right" if chosen[28] == "left" else "left"
                ada.press(KEYS[chosen[28]][0], 29)
                expect(ada.page.locator(".answers .chosen")).to_have_attribute("data-choice", chosen[29])
                ada.press("Enter", 30)
            ada.press(KEYS[choice][step % 2], step + 1 if step < 39 else None)
        expect(ada.page.locator("#end")).to_contain_text("answered all questions on 20 pairs")
        expect(ada.page.locator("#end")).to_contain_text("All of your answers are saved")
        assert ada.errors == []
        for url, headers, body in ada.told:
            assert url.startswith(server.url)
            assert not any(name in url + headers + body.decode("latin-1") for name in NAMES)
        assert len({url for url, _, _ in ada.told if "/images/" in url}) == 40
        ada.page.reload()
        expect(ada.page.locator("#end")).to_be_visible()
        ada.context.close()
    rows = list(read_votes(folder.study, folder.votes))
    assert len(rows) == 41 and len({row.id for row in rows}) == 41 and len(counted(rows)) == 40
    for step, choice in enumerate(chosen):
        assert said(folder, "ada", tasks[step // 2], ("quality", "alignment")[step % 2]) == choice
    assert all(row.seconds > 0 for row in rows)


@pytest.mark.slow
def test_a_killed_server_loses_no_vote(browser, tmp_path):
    """Voting continues without a server; votes that are left when the page is closed are sent once, later."""
    folder = study(tmp_path, 6, repeat=0)
    tasks = tasks_of(folder, "ada")
    with ServedStudy(folder.path) as server:
        ada = Voter(browser, server, "Ada")
        ada.begin()
        ada.press("1", 1)
        ada.saved()
        server.stop(signal.SIGKILL)
        ada.press("2", 2)
        banner = ada.page.get_by_role("alert").filter(has_text="The server cannot be reached")
        expect(banner).to_be_visible()
        ada.press("ArrowDown", 3)  # the next pair had been loaded ahead
        ada.press("Backspace", 2)
        ada.press("ArrowLeft", 3)  # a correction of what was not sent yet
        expect(banner).to_contain_text("2 answers wait in this browser")
        server.start()
        ada.saved()
        expect(banner).to_be_hidden()
        assert [row.choice for row in read_votes(folder.study, folder.votes)] == ["left", "right", "left"]
        server.stop(signal.SIGKILL)
        ada.press("ArrowRight", 4)
        ada.page.close()
        server.start()
        ada.open()
        ada.at(4)
        ada.saved()
        ada.press("ArrowRight", 5)
        ada.saved()
        assert ada.errors == []
        ada.context.close()
    rows = list(read_votes(folder.study, folder.votes))
    assert [row.choice for row in rows] == ["left", "right", "left", "right", "right"]
    assert [said(folder, "ada", tasks[n // 2], ("quality", "alignment")[n % 2]) for n in range(5)] == [
        row.choice for row in rows
    ]


def test_a_vote_whose_answer_was_lost_is_not_written_twice(browser, served):
    cleo = Voter(browser, served, "Cleo")
    cleo.begin()
    lost = []

    def lose(route):
        if lost:
            return route.continue_()
        lost.append(route.fetch().status)  # it reached the server, and its answer does not reach the page
        return route.abort()

    cleo.page.route("**/api/votes", lose)
    cleo.press("ArrowLeft", 1)
    expect(cleo.page.get_by_role("alert").filter(has_text="cannot be reached")).to_be_visible()
    cleo.saved()
    assert lost == [200] and len(votes_of(StudyFolder(served.folder), "cleo")) == 1
    cleo.context.close()


def test_no_choice_before_both_images_are_visible(browser, served):
    """Votes need visible images; an image that failed is loaded again."""
    folder = StudyFolder(served.folder)
    task = tasks_of(folder, "dora")[0]
    dora = Voter(browser, served, "Dora")
    failing = [True]
    dora.page.route(f"**/images/{task.right.id}.png*", lambda route: route.abort() if failing[0] else route.continue_())
    dora.page.get_by_label("Your name").fill("Dora")
    dora.page.keyboard.press("Enter")
    expect(dora.page.get_by_role("alert").filter(has_text="An image cannot be loaded")).to_be_visible()
    dora.page.keyboard.press("ArrowLeft")
    dora.page.wait_for_timeout(300)
    expect(dora.page.locator(".image img")).to_have_count(0)
    expect(dora.page.locator("#vote")).to_have_attribute("data-step", "0")
    failing[0] = False
    dora.at(0)
    expect(dora.page.locator(".image img")).to_have_count(2)
    assert votes_of(folder, "dora") == []
    dora.press("ArrowLeft", 1)
    dora.context.close()


@pytest.mark.parametrize("size", [(1440, 900), (1024, 700), (820, 1180), (390, 844), (844, 390)], ids=str)
def test_images_have_equal_sizes_and_fixed_places(browser, served, size):
    """Over all pairs and questions, for any text; nothing is cut off or outside of the window."""
    eve = Voter(browser, served, f"Eve {size}", viewport={"width": size[0], "height": size[1]})
    eve.begin()
    places = set()
    for step in range(12):
        left, right = (eve.page.locator(f"#image-{side} img").bounding_box() for side in ("left", "right"))
        assert (left["width"], left["height"]) == pytest.approx((right["width"], right["height"]))
        places.add(tuple(round(box[name]) for box in (left, right) for name in ("x", "y", "width")))
        page_width, window_width, text_height, shown_height = eve.page.evaluate(
            """() => {
                const text = document.querySelector('#prompt')
                return [document.documentElement.scrollWidth, innerWidth, text.scrollHeight, text.clientHeight]
            }"""
        )
        assert page_width <= window_width and text_height <= shown_height
        if step < 11:
            eve.press("ArrowLeft", step + 1)
    assert len(places) == 1, places
    assert left["width"] >= 220
    eve.context.close()


def test_on_a_phone(browser, served, phone):
    """Both images and the answers are on one screen; images, answers and Back can be tapped."""
    folder = StudyFolder(served.folder)
    first = tasks_of(folder, "fay")[0]
    fay = Voter(browser, served, "Fay", **phone)
    fay.begin()
    answers = fay.page.locator(".answers").bounding_box()
    assert answers["y"] + answers["height"] <= 844.5
    for name in ("#question", "#image-left", "#image-right"):
        box = fay.page.locator(name).bounding_box()
        assert box["y"] >= 0 and box["y"] + box["height"] <= answers["y"], name
    fay.page.locator("#image-right").tap()
    fay.at(1)
    fay.page.get_by_role("button", name="No difference").tap()
    fay.at(2)
    fay.page.get_by_role("button", name="Back to the last question").tap()
    fay.at(1)
    fay.page.get_by_role("button", name="Image A", exact=True).tap()
    fay.at(2)
    fay.page.wait_for_function("localStorage.getItem('llm4gen-vote.unsent') === '[]'")
    assert fay.errors == []
    fay.context.close()
    assert said(folder, "fay", first, "quality") == "right" and said(folder, "fay", first, "alignment") == "left"


def test_accessible_names_and_focus(browser, served):
    gil = Voter(browser, served, "Gil")
    expect(gil.page.get_by_label("Your name")).to_be_focused()
    gil.begin()
    assert gil.page.locator("img").evaluate_all("(images) => images.map((one) => one.alt)") == ["Image A", "Image B"]
    expect(gil.page.get_by_role("heading", name="Which image looks better?")).to_be_focused()
    expect(gil.page.locator("[aria-live]")).to_have_text("Pair 1 of 6. Which image looks better?")
    expect(gil.page.get_by_role("progressbar")).to_have_attribute("aria-valuemax", "12")
    for button in gil.page.locator("#vote button:visible").all():
        assert button.get_attribute("aria-label") or button.inner_text().strip()
    # Space on a button that was reached by Tab is that button; elsewhere it is "no difference".
    gil.page.get_by_role("button", name="Image B", exact=True).focus()
    gil.press("Space", 1)
    gil.page.locator("#image-left").click()
    gil.at(2)
    gil.press("Space", 3)
    gil.page.keyboard.press("?")
    expect(gil.page.get_by_role("dialog", name="How to vote")).to_be_visible()
    gil.page.keyboard.press("ArrowLeft")  # no vote behind the help
    gil.page.keyboard.press("Escape")
    expect(gil.page.get_by_role("dialog")).to_have_count(0)
    expect(gil.page.locator("#vote")).to_have_attribute("data-step", "3")
    gil.saved()
    assert gil.errors == []
    gil.context.close()
    assert [vote.choice for vote in votes_of(StudyFolder(served.folder), "gil")] == ["right", "left", "tie"]


def test_two_raters_at_once_and_one_resumes_on_another_device(browser, tmp_path, phone):
    folder = study(tmp_path, 4, repeat=0.5)
    with ServedStudy(folder.path) as server:
        ada, bob = Voter(browser, server, "Ada"), Voter(browser, server, "Bob")
        ada.begin()
        bob.begin()
        for step in range(4):
            ada.press("1", step + 1)
            bob.press("2", step + 1)
        ada.saved()
        ada.context.close()
        elsewhere = Voter(browser, server, " ADA", **phone)
        elsewhere.page.get_by_label("Your name").fill(elsewhere.name)
        elsewhere.page.get_by_role("button", name="Begin").tap()
        elsewhere.at(4)
        expect(elsewhere.page.locator("#place")).to_have_text("Pair 3 of 6, question 1 of 2")
        for step in range(4, 12):
            elsewhere.press("1", step + 1 if step < 11 else None)
        elsewhere.context.close()
        bob.page.get_by_role("button", name="Help").click()
        bob.page.get_by_role("button", name="I am not Bob").click()
        bob.page.get_by_label("Your name").fill("\u200b")
        bob.page.keyboard.press("Enter")
        expect(bob.page.locator("#name-error")).to_contain_text("expected 1 to 60 printable")
        bob.context.close()
    rows = list(read_votes(folder.study, folder.votes))
    assert Counter(row.rater for row in rows) == {"ada": 12, "bob": 4} and len({row.key for row in rows}) == 16


@pytest.mark.slow
def test_votes_for_a_study_wait_until_it_is_served_again(browser, tmp_path):
    """Another study is served on the same port while a rater still has the page open."""
    one, other = study(tmp_path / "one", 3, repeat=0), study(tmp_path / "other", 2, repeat=0, seed=9)
    server = ServedStudy(one.path)
    with server:
        ada = Voter(browser, server, "Ada")
        ada.begin()
        server.stop(signal.SIGTERM)
        server.folder = other.path
        server.start()
        ada.press("1", 1)
        expect(ada.page.get_by_role("alert").filter(has_text="The server serves another study")).to_be_visible()
        server.stop(signal.SIGTERM)
        server.folder = one.path
        server.start()
        ada.saved()
        ada.context.close()
    assert [row.choice for row in read_votes(one.study, one.votes)] == ["left"]
    assert not other.votes.path.exists()
    assert json.loads(one.votes.path.read_text())["question"] == "quality"
