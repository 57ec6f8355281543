"""The server as a process: responses, refusals, and that it never reveals a model."""

from __future__ import annotations

import http.client
import io
import json
import signal
import subprocess
import sys

import pytest
from PIL import Image
from vote_study import REPOSITORY, ServedStudy, make_prompts, make_set

from evaluation.vote.study import StudyFolder, make_study
from evaluation.vote.votes import VoteFile

NAMES = ("modelalpha", "modelbeta")


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    root = tmp_path_factory.mktemp("modelalpha-against-modelbeta")
    sets = {name: make_set(root / name, name, make_prompts(12, ("categoryone",))) for name in NAMES}
    folder = StudyFolder(root / "study")
    folder.create(make_study(folder.path, sets))
    with ServedStudy(folder.path) as server:
        yield server


@pytest.fixture(scope="module")
def session(served):
    status, _, body = served.request("/api/session", {"rater": "Ada"})
    assert status == 200
    return json.loads(body)


def ballot(session, number, **changed):
    return {
        "id": f"{number:032x}",
        "study": session["study"],
        "rater": "Ada",
        "task": session["tasks"][0]["id"],
        "question": "quality",
        "choice": "left",
        "seconds": 2.5,
        **changed,
    }


def rows(served):
    path = served.folder / "votes.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_no_answer_names_a_model(served, session):
    """The page, the session, every image with its headers, and errors."""
    answers = [served.request(path) for path in ("/", "/vote.css", "/vote.js", "/images/" + "0" * 16 + ".png")]
    answers.append(served.request("/api/session", {"rater": "Ada"}))
    answers.append(served.request("/api/votes", ballot(session, 1, task="nothing")))
    addresses = {task[side] for task in session["tasks"] for side in ("left", "right")}
    assert len(addresses) == 24
    answers += [served.request(address) for address in addresses]
    for status, headers, body in answers:
        assert status in (200, 400, 404)
        for told in (body.decode("latin-1").lower(), str(headers).lower(), " ".join(addresses)):
            assert not any(name in told for name in (*NAMES, "p000", "categoryone", str(served.folder)))


def test_images_are_sent_as_pixels_without_metadata(served, session):
    folder = StudyFolder(served.folder)
    study = folder.study
    tasks = VoteFile(study, folder.votes).tasks("ada")
    for told in session["tasks"]:
        task = tasks[told["id"]]
        assert told["text"] == task.pair.text
        for side, image in (("left", task.left), ("right", task.right)):
            _, headers, body = served.request(told[side])
            with Image.open(io.BytesIO(body)) as shown, Image.open(folder.file(study, image)) as stored:
                assert image.model in stored.text["parameters"]
                assert shown.info == {} and shown.tobytes() == stored.tobytes()
            assert headers["Content-Type"] == "image/png" and "Last-Modified" not in headers


def test_a_vote_is_on_the_disk_when_it_is_acknowledged(served, session):
    before = len(rows(served))
    status, _, body = served.request("/api/votes", ballot(session, 2, choice="right"))
    assert (status, json.loads(body)) == (200, {"saved": f"{2:032x}"})
    assert len(rows(served)) == before + 1 and rows(served)[-1]["choice"] == "right"
    served.request("/api/votes", ballot(session, 2, choice="right"))
    assert len(rows(served)) == before + 1
    again = json.loads(served.request("/api/session", {"rater": " ADA "})[2])
    assert again["tasks"][0]["choices"] == {"quality": "right"}
    assert [task["id"] for task in again["tasks"]] == [task["id"] for task in session["tasks"]]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"task": "0" * 16}, "not in the schedule of 'ada'"),
        ({"question": "taste"}, "Question 'taste' is not in this study"),
        ({"choice": "both"}, "choice: Input should be 'left', 'right' or 'tie'"),
        ({"choice": None}, "choice"),
        ({"rater": " "}, "expected 1 to 60 printable"),
        ({"rater": "\ud800"}, "expected 1 to 60 printable"),
        ({"seconds": -1}, "seconds: Input should be greater than or equal to 0"),
        ({"seconds": float("nan")}, "seconds"),
        ({"seconds": "2"}, "seconds"),
        ({"id": "../../etc"}, "id"),
        ({"left": "modelalpha"}, "left: Extra inputs are not permitted"),
    ],
)
def test_invalid_votes_are_refused(served, session, change, sentence):
    before = rows(served)
    status, _, body = served.request("/api/votes", ballot(session, 99, **change))
    assert status == 400 and sentence in json.loads(body)["error"]
    assert rows(served) == before


def test_requests_that_are_not_votes(served, session):
    for content in (b"", b"{", b"[1]", b"null", b"[" * 60000):
        status, _, body = served.request("/api/votes", content)
        assert status == 400 and json.loads(body)["error"]
        assert served.request("/api/session", content)[0] == 400
    assert served.request("/api/votes", b"x" * 100_000)[0] in (400, 413)
    # What a form on a page of another site could send.
    status, _, body = served.request("/api/votes", json.dumps(ballot(session, 98)).encode(), "text/plain")
    assert status == 400 and "expected application/json" in json.loads(body)["error"]


def test_a_vote_for_another_study_is_a_conflict(served, session):
    """409, after which the page tries again later; after 400 it would forget the vote."""
    assert served.request("/api/votes", ballot(session, 97, study="0" * 16))[0] == 409


@pytest.mark.parametrize(
    "path",
    [
        "/images/../../study.json",
        "/images/..%2f..%2fstudy.json",
        "/images/%2e%2e/%2e%2e/study.json",
        "//etc/passwd",
        "/vote.html",
        "/study.json",
        "/votes.jsonl",
        "/images/",
        "/page/../server.py",
        "/images/0000000000000000.png/../../study.json",
    ],
)
def test_no_address_becomes_a_path(served, path):
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=30)
    connection.request("GET", path)  # as it stands, where urllib would tidy it
    answer = connection.getresponse()
    assert answer.status == 404
    assert b"sha256" not in answer.read()


def test_content_security_policy(served):
    _, headers, body = served.request("/")
    assert headers["Content-Security-Policy"].startswith("default-src 'none'")
    assert b"http://" not in body and b"https://" not in body


def test_one_server_for_a_study_on_this_machine_only(served):
    code = "import sys; from evaluation.vote.server import serve; from evaluation.vote.study import StudyFolder\n"
    second = subprocess.run(
        [sys.executable, "-c", code + "serve(StudyFolder(sys.argv[1]), '127.0.0.1', 0)", str(served.folder)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "is served by another process already" in second.stderr
    assert not any("Anyone who reaches this machine" in line for line in served.said)


@pytest.mark.slow
def test_killed_and_stopped_servers_lose_no_vote(tmp_path):
    sets = {name: make_set(tmp_path / name, name, make_prompts(4)) for name in NAMES}
    folder = StudyFolder(tmp_path / "study")
    folder.create(make_study(folder.path, sets))
    with ServedStudy(folder.path) as server:
        told = json.loads(server.request("/api/session", {"rater": "Ada"})[2])
        for number, task in enumerate(told["tasks"]):
            assert server.request("/api/votes", ballot(told, number, task=task["id"]))[0] == 200
            if number == 1:
                server.stop(signal.SIGKILL)
                server.start()
        assert [row["id"] for row in rows(server)] == [f"{number:032x}" for number in range(len(told["tasks"]))]
        assert server.stop(signal.SIGINT) == 0
    (tmp_path / NAMES[0] / folder.study.pairs[0].first.file).unlink()
    with pytest.raises(RuntimeError, match="cannot be read"):
        ServedStudy(folder.path).start()
