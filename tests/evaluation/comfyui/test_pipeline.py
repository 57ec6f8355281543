"""Generation through a ComfyUI server: images, requests, and everything that can go wrong."""

from __future__ import annotations

import json
import threading

import pytest
from aiohttp import web
from fake_comfyui import changed, colour, expected, generated, plain, prompts

from evaluation.__main__ import main
from evaluation.comfyui import ComfyUIPipeline
from evaluation.comfyui import pipeline as pipeline_module
from evaluation.image_set import ImageSet, Prompt, write_prompts
from llm4gen_core import LLM4GENError


def test_one_image_for_each_pair_in_order(comfy, connect):
    images = list(connect().generate(prompts(5), range(5)))
    assert generated(images) == expected(5)
    assert {image.mode for image in images} == {"RGB"} and not any(image.info for image in images)
    assert [nodes["5"]["inputs"]["seed"] for nodes in comfy.got] == [0, 1, 2, 3, 4]


def test_the_command_generates_a_set_and_continues_where_the_server_failed(comfy, tmp_path, capsys):
    """`generate --workflow`: images from before a failure are kept, and generated once."""
    (tmp_path / "flow.json").write_text(json.dumps(plain()))
    write_prompts(tmp_path / "prompts.jsonl", prompts(3))
    command = ["generate", str(tmp_path / "set"), "--prompts", str(tmp_path / "prompts.jsonl"), "--seeds", "1-2"]
    command += ["--workflow", str(tmp_path / "flow.json"), "--server", comfy.url, "--prompt-input", "2.text"]
    failed = [["execution_error", {"node_id": "5", "node_type": "KSampler", "exception_message": "out of memory"}]]
    comfy.outcome = lambda entry: failed if len(comfy.history) >= 4 else None
    assert main(command) == 2 and "The same command continues there" in capsys.readouterr().err
    images = ImageSet(tmp_path / "set")
    assert len(images.rows()) == 4
    comfy.outcome = lambda entry: None
    assert main(command) == 0
    rows = images.rows()
    assert [(row.prompt, row.seed) for row in rows] == [(prompt.id, seed) for prompt in prompts(3) for seed in (1, 2)]
    assert len([*images.manifest.lines()]) == 6, "no image twice"
    assert [images.open(row).getpixel((0, 0)) for row in rows] == [colour(row.text, row.seed) for row in rows]
    assert rows[0].made["server"] == comfy.url and "workflow" in json.dumps(images.settings.generation)
    assert "settings of the workflow" in images.settings.notes[0]


def test_the_rest_of_the_workflow_is_unchanged(comfy, connect):
    list(connect().generate(prompts(1), [0]))
    wanted = changed({"2.text": "prompt 0", "5.seed": 0})
    del wanted["7"]
    assert comfy.got == [{**wanted, "6-image": {"class_type": "PreviewImage", "inputs": {"images": ["6", 0]}}}]


def test_a_node_class_with_special_characters(comfy, connect):
    pipeline = connect(
        changed({"2.text": ["8", 0]}, n8=("Text/from a pack (x)", {"text": "{prompt}"})), prompt_inputs=()
    )
    assert pipeline.describe()["prompt_inputs"] == ["8.text"]


def test_next_entries_are_queued_while_an_image_is_used(comfy, connect):
    images = connect(ahead=2).generate(prompts(6), range(6))
    next(images)
    assert len(comfy.got) == 3
    next(images)
    assert len(comfy.got) == 4
    assert len(list(images)) == 4 and comfy.longest <= 3


def test_parentheses_are_escaped_unless_they_are_weights(comfy, connect):
    prompt = [Prompt(id="a", text="a (red:1.3) cat \\(so\\)")]
    list(connect().generate(prompt, [0]))
    list(connect(weights=True).generate(prompt, [0]))
    texts = [nodes["2"]["inputs"]["text"] for nodes in comfy.got]
    assert texts == ["a \\(red:1.3\\) cat \\\\(so\\\\)", "a (red:1.3) cat \\(so\\)"]


def test_a_placeholder_keeps_the_words_around_it(comfy, connect):
    pipeline = connect(changed({"2.text": "a photo of {prompt}, sharp", "3.text": "no {prompt}"}), prompt_inputs=())
    list(pipeline.generate([Prompt(id="a", text="{prompt} and {seed}")], [0]))
    assert comfy.got[0]["2"]["inputs"]["text"] == "a photo of {prompt} and {seed}, sharp"
    assert comfy.got[0]["3"]["inputs"]["text"] == "no {prompt} and {seed}"


def test_negative_prompt_is_the_workflows_unless_given(comfy, connect):
    list(connect().generate(prompts(1), [0]))
    list(connect(negative="a (bad) one", negative_inputs=["3.text"]).generate(prompts(1), [0]))
    assert [nodes["3"]["inputs"]["text"] for nodes in comfy.got] == ["ugly", "a \\(bad\\) one"]


def test_description_has_everything_that_changes_pixels(comfy, connect, capsys):
    about = connect().describe()
    assert "goes to 2.text (CLIPTextEncode), the seed to 5.seed (KSampler)" in capsys.readouterr().out
    assert about["prompt_inputs"] == ["2.text"] and about["seed_inputs"] == ["5.seed"]
    assert about["models"] == ["a.safetensors"] and about["comfyui"] == "0.33.0"
    assert about["comfyui_switches"] == ["--fast", "fp16_accumulation", "--use-pytorch-cross-attention"]
    same = changed({"2.text": "other", "5.seed": 9, "7.filename_prefix": "b"}, n9=("Loader", {"ckpt_name": "x"}))
    assert connect(same).describe() == about, "prompt, seed, file name and unconnected nodes change no pixel"
    for other in (changed({"3.text": "bad"}), changed({"5.steps": 21}), changed({"1.ckpt_name": "b.safetensors"})):
        assert connect(other).describe()["workflow_hash"] != about["workflow_hash"]
    assert json.loads(json.dumps(about)) == about
    assert connect().made()["devices"] == ["cuda:0 A card"]


# What can go wrong


def test_no_server(tmp_path):
    with pytest.raises(LLM4GENError, match="No ComfyUI server answers at http://127.0.0.1:9"):
        ComfyUIPipeline.connect("127.0.0.1:9", tmp_path / "w.json")
    with pytest.raises(LLM4GENError, match="is not the address of a ComfyUI"):
        ComfyUIPipeline.connect("ftp://somewhere", tmp_path / "w.json")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda: web.Response(text="<html>", content_type="text/html"), "is not a ComfyUI"),
        (lambda: web.json_response({"hello": 1}), "is not a ComfyUI"),
        (lambda: web.Response(status=401), "answers 401 to /system_stats"),
    ],
)
def test_something_else_answers(comfy, connect, answer, message):
    comfy.stats_answer = answer
    with pytest.raises(LLM4GENError, match=message):
        connect()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "w.json does not exist"),
        ("{", "is not valid JSON"),
        ("[]", "holds a list"),
        ("{}", "has no nodes"),
        ('{"1": {"inputs": {}}}', "node '1', has no class_type and inputs"),
        ('{"1": {"class_type": "Gone", "inputs": {}}}', "node 1 is a Gone, which the ComfyUI server does not know"),
        ('{"1": {"class_type": "VAEDecode", "inputs": {"vae": ["9", 0]}}}', "1.vae is linked to output 0 of node '9'"),
    ],
)
def test_a_file_that_is_not_a_workflow(comfy, tmp_path, content, message):
    if content is not None:
        (tmp_path / "w.json").write_text(content, encoding="utf-8")
    with pytest.raises(LLM4GENError, match=message):
        ComfyUIPipeline.connect(comfy.url, tmp_path / "w.json")


def test_a_refusal_is_one_sentence(comfy, connect):
    pipeline = connect()
    details = "ckpt_name: 'a.safetensors' not in ['b.safetensors']"
    error = {"message": "Value not in list", "details": details, "extra_info": {"input_name": "ckpt_name"}}
    comfy.refusal = {
        "error": {"type": "prompt_outputs_failed_validation", "message": "Prompt outputs failed validation"},
        "node_errors": {"1": {"errors": [error], "dependent_outputs": ["6-image"], "class_type": "Loader"}},
    }
    wanted = "at node 1 (Loader), input ckpt_name: Value not in list ('a.safetensors' not in ['b.safetensors'])."
    with pytest.raises(LLM4GENError) as refused:
        list(pipeline.generate(prompts(1), [0]))
    assert str(refused.value) == f"ComfyUI refuses the workflow {wanted}"
    comfy.refusal = {"error": {"message": "Prompt has no outputs", "details": ""}, "node_errors": {}}
    with pytest.raises(LLM4GENError, match=r"^ComfyUI refuses the workflow: Prompt has no outputs\.$"):
        list(pipeline.generate(prompts(1), [0]))


def test_a_failing_node_ends_it_and_cancels_the_rest(comfy, connect):
    failure = {"node_id": "5", "node_type": "KSampler", "exception_message": "out of\n memory"}
    comfy.outcome = lambda entry: [["execution_error", failure]] if entry[2]["5"]["inputs"]["seed"] == 1 else None
    comfy.seconds = 0.1
    images = connect(ahead=2).generate(prompts(6), range(6))
    assert generated([next(images)]) == expected(1)
    with pytest.raises(LLM4GENError, match=r"prompt 'p1' with seed 1 failed at node 5 \(KSampler\): out of memory"):
        list(images)
    assert not comfy.waiting and len(comfy.got) == 4


def test_an_interruption_is_reported(comfy, connect):
    comfy.outcome = lambda entry: [["execution_interrupted", {"node_id": "5", "node_type": "KSampler"}]]
    with pytest.raises(
        LLM4GENError, match=r"was interrupted in ComfyUI at node 5 \(KSampler\). The same command continues"
    ):
        list(connect().generate(prompts(2), range(2)))


def test_a_batch_is_refused_before_and_after(comfy, connect):
    with pytest.raises(LLM4GENError, match=r"generates 4 images at once \(node 4 \(EmptyLatentImage\), batch_size\)"):
        connect(changed({"4.batch_size": 4}))
    comfy.images_each = 2
    with pytest.raises(LLM4GENError, match="gave 2 images; expected one"):
        list(connect().generate(prompts(1), [0]))


def test_a_lost_image_file(comfy, connect):
    comfy.files = type("Lost", (dict,), {"get": lambda self, key: None})()
    with pytest.raises(LLM4GENError, match="no longer has the image"):
        list(connect().generate(prompts(1), [0]))


def test_a_timeout_cancels_only_its_own_entries(comfy, connect):
    comfy.seconds = 60
    comfy.put("somebody's")
    images = connect(timeout=0.4).generate(prompts(3), range(3))
    threading.Timer(1, lambda: comfy.interrupted.append("somebody's")).start()
    with pytest.raises(LLM4GENError, match="p0' with seed 0 is not ready after 0.4 s"):
        list(images)
    assert "somebody's" in comfy.history, "the time that it waited behind others does not count"
    comfy.put("after")
    assert [entry[1] for entry in comfy.waiting] == ["after"] and len(comfy.deleted) == 3
    assert len(comfy.asked_to_interrupt) == 1


def test_ctrl_c_cancels_only_its_own_entries(comfy, connect, monkeypatch):
    comfy.seconds = 60
    comfy.put("somebody's")
    pipeline = connect(ahead=2)

    def interrupt(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline_module.time, "sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        list(pipeline.generate(prompts(5), range(5)))
    assert [entry[1] for entry in comfy.running + comfy.waiting] == ["somebody's"]
    assert len(comfy.deleted) == 3 and not comfy.asked_to_interrupt


def test_ending_early_cancels_the_rest(comfy, connect):
    images = connect(ahead=2).generate(prompts(5), range(5))
    next(images)
    comfy.seconds = 60
    images.close()
    assert not comfy.waiting


def test_a_restarted_server_gets_the_entries_again(comfy, connect):
    comfy.seconds = 0.05
    images = connect(ahead=2).generate(prompts(6), range(6))
    assert generated([next(images)]) == expected(1)
    comfy.stop()
    threading.Timer(0.7, comfy.start).start()
    assert generated(images) == expected(6)[1:]


def test_a_queue_that_is_cleared_twice_ends_it(comfy, connect):
    comfy.seconds = 60
    stop = threading.Event()

    def clear():
        while not stop.wait(0.1):
            comfy.waiting, comfy.running = [], []

    person = threading.Thread(target=clear)
    comfy.put("in front")
    pipeline = connect(ahead=0)
    person.start()
    try:
        with pytest.raises(LLM4GENError, match="vanished from ComfyUI's queue a second time"):
            list(pipeline.generate(prompts(1), [0]))
    finally:
        stop.set()
        person.join()
    assert len(comfy.got) == 2


def test_another_version_after_a_start_is_refused(comfy, connect):
    comfy.seconds = 60
    images = connect().generate(prompts(2), range(2))

    def start_again():
        comfy.stop()
        comfy.version, comfy.seconds = "0.34.0", 0
        comfy.start()

    threading.Timer(0.5, start_again).start()
    with pytest.raises(LLM4GENError, match="restarted as version 0.34.0 after 0.33.0"):
        list(images)


def test_a_lost_answer_generates_nothing_twice(comfy, connect):
    comfy.after_accepting = lambda request: request.transport.abort()
    assert generated(connect().generate(prompts(3), range(3))) == expected(3)
    assert len(comfy.got) == 3


def test_a_server_that_stays_away_is_reported(comfy, connect):
    pipeline = connect(patience=0.5)
    comfy.stop()
    with pytest.raises(LLM4GENError, match="has not answered for 0.5 s"):
        list(pipeline.generate(prompts(1), [0]))
    comfy.start()
