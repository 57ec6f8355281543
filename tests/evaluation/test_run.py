"""A whole benchmark by one command, on the miniature: prompts, images, scores, report."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from evaluation.__main__ import build_parser, main
from evaluation.image_set import ImageSet, read_scores

ARGUMENTS = ["--categories", "color", "dense", "--count", "4", "--seeds", "0-1", "--steps", "4"]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "results"
    assert main(["run", "miniature", str(folder), *ARGUMENTS]) == 0
    return folder


def test_both_models_are_generated_scored_and_reported(results: Path) -> None:
    report = json.loads((results / "report" / "report.json").read_text())
    (benchmark,) = report["benchmarks"]
    assert benchmark["key"] == "miniature" and benchmark["baseline"] == "base"
    assert [one["label"] for one in benchmark["sets"]] == ["base", "LLM4GEN"]
    assert all(one["images_there"] == one["images_asked"] == 16 for one in benchmark["sets"])
    assert (results / "report" / "report.html").stat().st_size > 10_000


def test_the_reports_number_is_the_mean_of_the_judges_scores(results: Path) -> None:
    scores = read_scores(ImageSet(results / "llm4gen"), "miniature")
    dense = [found["words"] for (image, _), found in scores.items() if image.startswith("dense")]
    (benchmark,) = json.loads((results / "report" / "report.json").read_text())["benchmarks"]
    (column,) = [
        c for table in benchmark["tables"][:1] for c in table["columns"] if c["key"] == "miniature:dense:words"
    ]
    cells = {row["set"]: row["cells"][column["key"]] for row in benchmark["tables"][0]["rows"]}
    assert len(dense) == 8 and cells["LLM4GEN"]["value"] == pytest.approx(np.mean(dense))
    assert cells["LLM4GEN"]["n"] == 8 and cells["LLM4GEN"]["low"] < np.mean(dense) < cells["LLM4GEN"]["high"]


def test_the_same_command_again_repeats_nothing_and_more_seeds_add_images(results: Path, capsys) -> None:
    def written() -> dict[str, list[str]]:
        return {
            name: [json.loads(line)[key] for _, line in lines.lines()]
            for name, key, lines in (
                ("images", "id", ImageSet(results / "base").manifest),
                ("scores", "image", ImageSet(results / "base").score_file("miniature")),
            )
        }

    before = written()
    assert main(["run", "miniature", str(results), *ARGUMENTS]) == 0
    assert written() == before
    more = [*ARGUMENTS[:-4], "--seeds", "2", *ARGUMENTS[-2:]]
    assert main(["run", "miniature", str(results), *more]) == 0
    after = written()
    for name, rows in after.items():
        assert len(rows) == len({*rows}) == 24 and {*before[name]} < {*rows}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run", "t2i-compbench", "out"], "T2I-CompBench needs models to measure"),
        (["run", "t2i-compbnech", "out"], "'t2i-compbnech' is not known; expected one of t2i-compbench"),
        (["run", "miniature", "out", "--models", "none.yaml"], "none.yaml cannot be read"),
        (["run", "miniature", "out", "--option", "reference"], "'reference' is not NAME=VALUE"),
        (["generate", "out", "--base", "b"], "There are no prompts"),
        (["generate", "out", "--prompts", "p.jsonl"], "neither base nor pipeline nor workflow"),
        (["score", "nowhere"], "nowhere is not an image set"),
        (["run", "miniature", "out", "--metrics", "fdi"], "'fdi' is not known"),
    ],
)
def test_every_error_is_one_line(
    arguments: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ") and says in line
    assert not (tmp_path / "out").exists(), "nothing is written"


def test_missing_judges_are_named_before_any_image_is_generated(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["run", "dense-prompts", "out", "--models", "models.yaml", "--count", "1"]
    (tmp_path / "models.yaml").write_text("SD1.5: {base: nowhere}\n")
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert all(f"judges/{name} does not exist; download " in said for name in ("clip", "long-clip", "aesthetic", "vqa"))
    assert not (tmp_path / "out").exists()


def test_judges_lists_judges_that_are_there_and_missing_ones(tmp_path: Path, capsys) -> None:
    (tmp_path / "inception").mkdir()
    (tmp_path / "inception" / "weights-inception-2015-12-05-6726825d.pth").touch()
    assert main(["judges", "coco", "--judges", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert f"fid, inception_score\n    there: {tmp_path / 'inception'}" in said
    assert f"clip_score\n    Judge {tmp_path / 'clip'} does not exist; download openai/clip-vit-large-patch14" in said
    assert "blip" not in said


def test_models_that_would_share_a_folder_are_refused(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models.yaml").write_text("SD 1.5: {base: a}\nsd-1.5: {base: b}\n")
    assert main(["run", "miniature", "out", "--models", "models.yaml"]) == 2
    assert "SD 1.5, sd-1.5 would share a folder" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["run", "generate", "score", "report", "judges", "dense", "vote"])
def test_every_command_has_its_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        build_parser().parse_args([command, "--help"])
    assert done.value.code == 0 and f"python -m evaluation {command}" in capsys.readouterr().out
