"""FID, KID and Inception score by the real architecture of the FID's Inception, with random weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch_fidelity import calculate_metrics
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.metric_isc import isc_features_to_metric

from evaluation.metrics.base import Context
from evaluation.metrics.fid import FID
from evaluation.metrics.inception import INCEPTION, InceptionNetwork, Preparation
from evaluation.metrics.inception_score import InceptionScore
from evaluation.metrics.reference import Reference, make_reference, open_reference
from evaluation.prompts import Prompt
from llm4gen_core import LLM4GENError

WEIGHTS = "pt_inception-2015-12-05-6726825d.pth"
pytestmark = pytest.mark.filterwarnings("ignore:.*not the official weights")


class _Untrained(FeatureExtractorInceptionV3):
    def load_state_dict(self, *args: object, **kwargs: object) -> None:  # type: ignore[override]
        """Keep what the constructor drew."""


@pytest.fixture(scope="session")
def judges(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of judges with a random Inception whose activations keep their scale through all layers."""
    torch.manual_seed(0)
    with mock.patch("torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url", return_value={}):
        network = _Untrained("random", ["2048"])
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    nn.init.normal_(network.fc.weight, std=0.05)
    folder = tmp_path_factory.mktemp("judges")
    (folder / INCEPTION.folder).mkdir()
    torch.save(network.state_dict(), folder / INCEPTION.folder / WEIGHTS)
    return folder


@pytest.fixture(scope="session")
def network(judges: Path) -> InceptionNetwork:
    return InceptionNetwork.load(Context(judges))


def _images(count: int, size: tuple[int, int] = (40, 40), seed: int = 0, level: int = 0) -> list[Image.Image]:
    generator = np.random.default_rng(seed)
    small = [generator.integers(0, 256 - level, (5, 5, 3), np.uint8) + level for _ in range(count)]
    return [Image.fromarray(one.astype(np.uint8)).resize(size, Image.Resampling.BICUBIC) for one in small]


def _folder(path: Path, images: Sequence[Image.Image]) -> Path:
    path.mkdir()
    for number, image in enumerate(images):
        image.save(path / f"{number:03}.png")
    return path


def _prompts(count: int) -> list[Prompt]:
    return [Prompt(id=f"p{number}", text="a cat") for number in range(count)]


class _Means:
    """In place of the network: four features and three logits, from the means of colours."""

    preparation = Preparation()
    official = True

    def describe(self) -> dict[str, object]:
        return {"network": "means"}

    def __call__(self, images: Sequence[Image.Image]) -> tuple[np.ndarray, np.ndarray]:
        means = np.stack([np.asarray(image, np.float32).mean((0, 1)) for image in images]) / 64
        return np.concatenate([means, means[:, :1] ** 2], 1), means


def _score(metric: FID | InceptionScore, images: Sequence[Image.Image], seeds: Sequence[int]) -> None:
    """In batches of five; the images of a seed follow each other, each of another prompt."""
    each = len(images) // len(set(seeds))
    prompts = _prompts(each) * len(set(seeds))
    for first in range(0, len(images), 5):
        part = slice(first, first + 5)
        metric.update(images[part], prompts[part], seeds[part])


def test_network_is_that_of_torch_fidelity(judges: Path, network: InceptionNetwork) -> None:
    """At 299 pixels nothing is resized, and both resizes have to give what torch-fidelity's own forward gives."""
    theirs = FeatureExtractorInceptionV3(
        "inception-v3", ["2048", "logits_unbiased"], str(judges / INCEPTION.folder / WEIGHTS)
    )
    images = _images(2, (299, 299))
    batch = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images])
    features, logits = (values.numpy() for values in theirs(batch))
    assert features.std() > 0.01
    for resize in ("clean", "tensorflow"):
        network_here = InceptionNetwork.load(Context(judges, options={"resize": resize}))
        ours = network_here(images)
        np.testing.assert_allclose(ours[0], features, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(ours[1], logits, rtol=1e-4, atol=1e-4)


def test_clean_resize_is_antialiased_and_not_rounded() -> None:
    """A fine pattern of 0 and 255 shrinks to its mean; a ramp gets values between whole numbers."""
    stripes = Image.fromarray(np.tile(np.array([0, 255], np.uint8), (1196, 598)))
    values = Preparation()(stripes)
    assert values.shape == (3, 299, 299) and values.dtype == torch.float32
    assert values[:, :, 5:-5] == pytest.approx(127.5, abs=1)
    coarse = Preparation(resize="tensorflow")(stripes)
    assert coarse.std() > 50 or abs(coarse.mean() - 127.5) > 50
    ramp = Preparation()(Image.fromarray(np.tile(np.arange(64, dtype=np.uint8), (64, 1))))
    assert (ramp != ramp.round()).float().mean() > 0.5
    assert ramp.min() >= 0 and ramp.max() <= 255


def test_preparation_cuts_the_middle_and_brings_to_a_side() -> None:
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 200
    assert Preparation()(Image.fromarray(wide)).min() == pytest.approx(200, abs=1e-3)
    assert Preparation(crop="none")(Image.fromarray(wide)).min() < 1
    # A pattern of 0 and 255 that is too fine for 16 pixels is grey in them.
    stripes = Image.fromarray(np.tile(np.array([0, 255], np.uint8), (160, 80)))
    assert Preparation(side=16)(stripes)[:, :, 30:-30] == pytest.approx(127.5, abs=3)
    assert Preparation()(stripes).std() > 30


@pytest.mark.parametrize(
    "options", [{"crop": "round"}, {"resize": "lanczos"}, {"side": "-1"}, {"side": "8"}, {"side": "64", "crop": "none"}]
)
def test_wrong_options_are_named(options: dict[str, str]) -> None:
    with pytest.raises(LLM4GENError, match=f"Option {list(options)[0]}"):
        Preparation.from_options(options)


def test_missing_or_foreign_weights_are_a_sentence(tmp_path: Path, judges: Path) -> None:
    with pytest.raises(LLM4GENError, match="download https://github.com/toshas/torch-fidelity"):
        FID.load(Context(tmp_path))
    (tmp_path / INCEPTION.folder).mkdir()
    torch.save({"weight": torch.zeros(3)}, tmp_path / INCEPTION.folder / WEIGHTS)
    with pytest.raises(LLM4GENError, match="cannot be loaded"):
        InceptionScore.load(Context(tmp_path))


def test_weights_that_would_run_something_are_not_loaded(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str, str]]:
            return open, (str(tmp_path / "ran"), "w")

    (tmp_path / INCEPTION.folder).mkdir()
    torch.save({"weight": Payload()}, tmp_path / INCEPTION.folder / WEIGHTS)
    with pytest.raises(LLM4GENError, match="cannot be loaded"):
        InceptionNetwork.load(Context(tmp_path))
    assert not (tmp_path / "ran").exists()


def test_unofficial_weights_are_said_to_be_so(judges: Path) -> None:
    with pytest.warns(UserWarning, match="not the official weights"):
        network = InceptionNetwork.load(Context(judges))
    assert network.describe()["official_weights"] is False


def test_reference_is_made_once_and_refuses_another_preparation(
    tmp_path: Path, judges: Path, network: InceptionNetwork
) -> None:
    folder = _folder(tmp_path / "real", _images(3, (24, 40)))
    made = open_reference({"reference": str(folder)}, network)
    assert made.about["n"] == 3 and made.about["sizes"] == {"24x40": 3} and made.about["formats"] == {"PNG": 3}
    [kept] = tmp_path.glob("real.inception-*.npz")
    with np.load(kept) as content:
        np.testing.assert_allclose(content["mu"], made.features.mean(0), rtol=1e-5)
        np.testing.assert_allclose(content["sigma"], np.cov(made.features, rowvar=False), rtol=1e-4, atol=1e-9)
        assert content["n"] == 3
    with mock.patch.object(InceptionNetwork, "__call__", side_effect=AssertionError("made again")):
        again = open_reference({"reference": str(folder)}, network)
        by_file = open_reference({"reference": str(kept)}, network)
    assert np.array_equal(again.features, made.features) and again.about == by_file.about == made.about
    other = InceptionNetwork.load(Context(judges, options={"side": "32"}))
    with pytest.raises(LLM4GENError, match="another preparation"):
        open_reference({"reference": str(kept)}, other)
    _images(1, seed=9)[0].save(folder / "more.png")
    assert open_reference({"reference": str(folder)}, network).about["n"] == 4


def test_reference_needs_images(tmp_path: Path, network: InceptionNetwork) -> None:
    with pytest.raises(LLM4GENError, match="reference=FOLDER"):
        open_reference({}, network)
    with pytest.raises(LLM4GENError, match="does not exist"):
        open_reference({"reference": str(tmp_path / "none")}, network)
    (tmp_path / "empty").mkdir()
    with pytest.raises(LLM4GENError, match="holds 0 images"):
        open_reference({"reference": str(tmp_path / "empty")}, network)
    np.savez(tmp_path / "theirs.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    with pytest.raises(LLM4GENError, match="no file of this program's"):
        open_reference({"reference": str(tmp_path / "theirs.npz")}, network)


def test_a_broken_real_image_leaves_no_file(tmp_path: Path, network: InceptionNetwork) -> None:
    folder = _folder(tmp_path / "real", _images(2))
    (folder / "000.png").write_bytes((folder / "000.png").read_bytes()[:60])
    with pytest.raises(LLM4GENError, match=r"000\.png cannot be read"):
        make_reference(folder, tmp_path / "out.npz", network)
    assert [path.name for path in tmp_path.iterdir()] == ["real"]


def test_seeds_that_are_complete_give_a_mean_and_students_interval() -> None:
    means = _Means()
    real = Reference(means(_images(60, seed=5))[0], {"n": 60})
    seeds = [seed for seed in (3, 1, 2) for _ in range(20)]
    images = _images(60, seed=8, level=60)
    metric = FID(means, real)  # type: ignore[arg-type]
    _score(metric, images, seeds)
    found = metric.compute()
    fid, values = found["fid"], list(found["fid"].details["seeds"].values())
    assert fid.n == 60 and fid.details["images_each"] == 20 and list(fid.details["seeds"]) == ["1", "2", "3"]
    assert fid.value == pytest.approx(np.mean(values))
    assert fid.high - fid.value == pytest.approx(4.3027 * np.std(values, ddof=1) / 3**0.5, rel=1e-4)
    alone = FID(means, real)  # type: ignore[arg-type]
    _score(alone, images[20:40], [1] * 20)
    assert alone.compute()["fid"].value == pytest.approx(fid.details["seeds"]["1"])
    assert alone.compute()["kid"].value == pytest.approx(found["kid"].details["seeds"]["1"])


def test_one_seed_has_an_interval_and_says_what_it_is_worth() -> None:
    means = _Means()
    metric = FID(means, Reference(means(_images(60, seed=5))[0], {"n": 60}))  # type: ignore[arg-type]
    _score(metric, _images(30, seed=8, level=90), [0] * 30)
    fid, kid = metric.compute().values()
    assert 0 < fid.low < fid.value < fid.high and kid.low < kid.value < kid.high
    assert "30 prompts" in fid.how and "seeds" not in fid.details
    assert "singular" in fid.details["bias"] and fid.details["sizes"] == {"40x40": 30}
    json.dumps([dict(fid.details), dict(kid.details), metric.describe()], allow_nan=False)


def test_inception_score_is_that_of_torch_fidelity() -> None:
    means, images = _Means(), _images(40, seed=8)
    metric = InceptionScore(means, splits=4)  # type: ignore[arg-type]
    _score(metric, images, [0] * 40)
    [found] = metric.compute().values()
    theirs = isc_features_to_metric(torch.from_numpy(means(images)[1]), splits=4)
    assert found.value == theirs["inception_score_mean"] > 1.01
    assert found.details["std"] == theirs["inception_score_std"] and found.details["images_a_split"] == 10
    # t of three degrees of freedom, and the standard deviation with the divisor n - 1, over the root of four
    assert found.high - found.value == pytest.approx(
        3.1824 * theirs["inception_score_std"] * (4 / 3) ** 0.5 / 2, rel=1e-4
    )


def test_inception_score_over_seeds_and_of_too_few_images() -> None:
    metric = InceptionScore(_Means(), splits=4)  # type: ignore[arg-type]
    _score(metric, _images(40, seed=8), [seed for seed in (0, 1) for _ in range(20)])
    [found] = metric.compute().values()
    assert found.value == pytest.approx(np.mean([one["mean"] for one in found.details["seeds"].values()]))
    few = InceptionScore(_Means())  # type: ignore[arg-type]
    _score(few, _images(19), [0] * 19)
    with pytest.raises(LLM4GENError, match="19 images"):
        few.compute()


@pytest.mark.slow
def test_whole_path_is_that_of_torch_fidelity(tmp_path: Path, judges: Path) -> None:
    """The three numbers from folders of PNG files, beside those of its own command on the same files."""
    real, painted = _images(12, seed=1), _images(12, seed=2, level=150)
    folder, other = _folder(tmp_path / "real", real), _folder(tmp_path / "painted", painted)
    theirs = calculate_metrics(
        input1=str(other),
        input2=str(folder),
        cuda=False,
        fid=True,
        isc=True,
        kid=True,
        isc_splits=3,
        kid_subsets=1,
        kid_subset_size=12,
        feature_extractor_weights_path=str(judges / INCEPTION.folder / WEIGHTS),
        verbose=False,
        cache=False,
        save_cpu_ram=True,
    )
    context = Context(judges, options={"reference": str(folder), "resize": "tensorflow", "splits": "3"})
    network = InceptionNetwork.load(context)
    reference = open_reference(context.options, network)
    fid, same, inception_score = FID(network, reference), FID(network, reference), InceptionScore.load(context)
    _score(fid, painted, [0] * 12)
    _score(same, real, [0] * 12)
    _score(inception_score, painted, [0] * 12)
    found = {**fid.compute(), **inception_score.compute()}
    assert found["fid"].value == pytest.approx(theirs["frechet_inception_distance"], rel=1e-6)
    assert found["inception_score"].value == pytest.approx(theirs["inception_score_mean"], rel=1e-6)
    assert found["kid"].value == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-5)
    assert same.compute()["fid"].value < 1e-8
