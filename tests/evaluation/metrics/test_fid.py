"""FID, KID and Inception score: the network's outputs, preparation, reference, and the numbers themselves."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import linalg, stats
from torch import Tensor, nn
from torch_fidelity import calculate_metrics
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric

from evaluation.image_set import Prompt
from evaluation.metrics import fid as module
from evaluation.metrics.base import Context, SetScore, check_options
from evaluation.metrics.fid import FID, InceptionScore, complete_seeds
from evaluation.metrics.inception import INCEPTION, InceptionNetwork, Preparation, Reference, open_reference
from llm4gen_core import LLM4GENError

WEIGHTS = "pt_inception-2015-12-05-6726825d.pth"
pytestmark = pytest.mark.filterwarnings("ignore:.*not the official weights")


class _Untrained(FeatureExtractorInceptionV3):
    def load_state_dict(self, *args: object, **kwargs: object) -> None:  # type: ignore[override]
        """Keep the random weights of the constructor."""


@pytest.fixture(scope="session")
def judges(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of judges with a random Inception whose activations keep their scale through all layers."""
    torch.manual_seed(0)
    with mock.patch("torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url", return_value={}):
        network = _Untrained("random", ["2048"])
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
    nn.init.normal_(network.fc.weight, std=0.05)
    folder = tmp_path_factory.mktemp("judges")
    (folder / INCEPTION.folder).mkdir()
    torch.save(network.state_dict(), folder / INCEPTION.folder / WEIGHTS)
    return folder


class Means:
    """Stand-in for the network: four features and three logits, from the mean colour of an image."""

    preparation = Preparation()
    sha256 = "0" * 64
    official = True

    def describe(self) -> dict[str, object]:
        return {"network": "means"}

    def __call__(self, images: Sequence[Image.Image]) -> tuple[Tensor, Tensor]:
        means = torch.from_numpy(np.stack([np.asarray(image, np.float32).mean((0, 1)) for image in images]) / 64)
        return torch.cat([means, means[:, :1] ** 2], 1), means


MEANS: Any = Means()


def images_of(count: int, size: tuple[int, int] = (40, 40), seed: int = 0, level: int = 0) -> list[Image.Image]:
    generator = np.random.default_rng(seed)
    small = [generator.integers(0, 256 - level, (5, 5, 3), np.uint8) + level for _ in range(count)]
    return [Image.fromarray(one.astype(np.uint8)).resize(size, Image.Resampling.BICUBIC) for one in small]


def write_folder(path: Path, images: Sequence[Image.Image]) -> Path:
    path.mkdir()
    for number, image in enumerate(images):
        image.save(path / f"{number:03}.png")
    return path


def scores(metric: FID | InceptionScore, images: Sequence[Image.Image], seeds: Sequence[int]) -> dict[str, SetScore]:
    """Scores of a set that is added in batches of five; each seed has the same prompts, one image each."""
    each = len(images) // len(set(seeds))
    prompts = [Prompt(id=f"p{number}", text="a cat") for number in range(each)] * len(set(seeds))
    for first in range(0, len(images), 5):
        part = slice(first, first + 5)
        metric.update(images[part], prompts[part], seeds[part])
    return metric.compute()


def of_features(generated: np.ndarray, real: np.ndarray) -> dict[str, SetScore]:
    """FID and KID of features, one seed."""
    metric = FID(MEANS, Reference(torch.from_numpy(real), {"n": len(real)}))
    metric._outputs = [torch.from_numpy(generated)]
    metric._prompts = [f"p{number}" for number in range(len(generated))]
    metric._seeds = [0] * len(generated)
    return metric.compute()


def gaussian(mean: np.ndarray, covariance: np.ndarray, n: int = 50) -> np.ndarray:
    """Features [n, D] with exactly this mean and covariance."""
    raw = np.random.default_rng(3).normal(size=(n, len(mean)))
    raw -= raw.mean(0)
    white = raw @ np.linalg.inv(np.linalg.cholesky(np.cov(raw, rowvar=False))).T
    return white @ np.linalg.cholesky(covariance).T + mean


def test_fid_of_known_gaussians_has_the_closed_form() -> None:
    one = np.array([[2.0, 0.5, 0.0], [0.5, 1.0, 0.2], [0.0, 0.2, 3.0]])
    two = np.array([[1.0, -0.3, 0.1], [-0.3, 2.0, 0.0], [0.1, 0.0, 0.5]])
    mean_one, mean_two = np.array([1.0, 0.0, -2.0]), np.array([0.0, 3.0, -1.0])
    by_hand = 1 + 9 + 1 + np.trace(one) + np.trace(two) - 2 * np.trace(linalg.sqrtm(one @ two)).real
    found = of_features(gaussian(mean_one, one), gaussian(mean_two, two))
    assert found["fid"].value == pytest.approx(by_hand, rel=1e-9)


@pytest.mark.parametrize("n", [6, 40, 300])
def test_fid_of_a_set_to_itself_is_near_0(n: int) -> None:
    """Also with fewer images than dimensions, where the covariance is singular."""
    features = np.random.default_rng(0).normal(size=(n, 40)) * np.linspace(0.1, 3, 40) + 3
    assert of_features(features, features)["fid"].value < 1e-5


def test_kid_has_the_subsets_of_torch_fidelity() -> None:
    generator = np.random.default_rng(0)
    generated, real = generator.normal(size=(60, 16)) + 0.3, generator.normal(size=(90, 16))
    found = of_features(generated, real)["kid"]
    settings = {"kid_subsets": 100, "kid_subset_size": 30, "rng_seed": 2020, "verbose": False}
    theirs = kid_features_to_metric(torch.from_numpy(generated), torch.from_numpy(real), **settings)
    assert found.value == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-9)
    assert found.details["std"] == pytest.approx(theirs["kernel_inception_distance_std"], rel=1e-9)
    assert (found.details["subsets"], found.details["subset_size"]) == (100, 30)


def test_large_sets_have_subsets_of_1000(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_KID_SUBSETS", 1)
    generator = np.random.default_rng(0)
    found = of_features(generator.normal(size=(1001, 4)), generator.normal(size=(1200, 4)))
    assert found["kid"].details["subset_size"] == 1000


def test_network_gives_the_outputs_of_torch_fidelity(judges: Path) -> None:
    """At 299 pixels nothing is resized, so both resizes must give the outputs of torch-fidelity's own forward."""
    file = str(judges / INCEPTION.folder / WEIGHTS)
    theirs = FeatureExtractorInceptionV3("inception-v3", ["2048", "logits_unbiased"], file)
    images = images_of(2, (299, 299))
    batch = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images])
    features, logits = theirs(batch)
    assert features.std() > 0.01
    network = InceptionNetwork.load(Context(judges), Preparation())
    for resize in ("clean", "tensorflow"):
        network.preparation = Preparation(resize=resize)
        ours = network(images)
        torch.testing.assert_close(ours[0], features, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours[1], logits, rtol=1e-3, atol=1e-4)


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


def test_preparation_crops_the_center_and_resizes_to_a_side() -> None:
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 200
    assert Preparation()(Image.fromarray(wide)).min() == pytest.approx(200, abs=1e-3)
    assert Preparation(crop="none")(Image.fromarray(wide)).min() < 1
    # A pattern of 0 and 255 that is too fine for 16 pixels becomes grey.
    stripes = Image.fromarray(np.tile(np.array([0, 255], np.uint8), (160, 80)))
    assert Preparation(side=16)(stripes)[:, :, 30:-30] == pytest.approx(127.5, abs=3)
    assert Preparation()(stripes).std() > 30


@pytest.mark.parametrize(
    ("metric", "options", "name"),
    [
        (FID, {"crop": "round"}, "crop"),
        (FID, {"resize": "lanczos"}, "resize"),
        (FID, {"side": "-1"}, "side"),
        (FID, {"side": "8"}, "side"),
        (FID, {"side": "64", "crop": "none"}, "side"),
        (InceptionScore, {"crop": "round"}, "crop"),
        (InceptionScore, {"splits": "1"}, "splits"),
        (InceptionScore, {"splits": "ten"}, "splits"),
    ],
)
def test_bad_option_values_are_found_by_the_check(metric: Any, options: dict[str, str], name: str) -> None:
    with pytest.raises(LLM4GENError, match=f"Option {name}: .*; found '{options[name]}'"):
        metric.check(Context(Path(), options=options))


def test_an_option_that_no_metric_uses_is_refused() -> None:
    check_options([FID, InceptionScore], {"reference": "x", "splits": "5", "side": "256", "inception": "other"})
    with pytest.raises(
        LLM4GENError, match="Option splits=5 is not used by fid; expected one of crop, inception, refer"
    ):
        check_options([FID], {"splits": "5"})


def test_missing_or_other_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(LLM4GENError, match="download https://github.com/toshas/torch-fidelity"):
        InceptionScore.load(Context(tmp_path))
    (tmp_path / INCEPTION.folder).mkdir()
    torch.save({"weight": torch.zeros(3)}, tmp_path / INCEPTION.folder / WEIGHTS)
    with pytest.raises(LLM4GENError, match="cannot be loaded"):
        InceptionScore.load(Context(tmp_path))


def test_weights_that_would_run_code_are_refused(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str, str]]:
            return open, (str(tmp_path / "ran"), "w")

    (tmp_path / INCEPTION.folder).mkdir()
    torch.save({"weight": Payload()}, tmp_path / INCEPTION.folder / WEIGHTS)
    with pytest.raises(LLM4GENError, match="needs to run code"):
        InceptionScore.load(Context(tmp_path))
    assert not (tmp_path / "ran").exists()


def test_unofficial_weights_are_recorded(judges: Path) -> None:
    with pytest.warns(UserWarning, match="not the official weights"):
        network = InceptionNetwork.load(Context(judges), Preparation())
    assert network.describe()["official_weights"] is False


def test_reference_is_computed_once_and_refuses_another_preparation(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "real", images_of(3, (24, 40)))
    made = open_reference(folder, MEANS)
    assert made.about["n"] == 3 and made.about["sizes"] == {"24x40": 3} and made.about["formats"] == {"PNG": 3}
    [kept] = tmp_path.glob("real.inception-*.npz")
    with np.load(kept) as content:
        np.testing.assert_allclose(content["mu"], made.features.mean(0), rtol=1e-5)
        np.testing.assert_allclose(content["sigma"], np.cov(made.features, rowvar=False), rtol=1e-4, atol=1e-9)
        assert content["n"] == 3
    with mock.patch.object(Means, "__call__", side_effect=AssertionError("computed again")):
        again, by_file = open_reference(folder, MEANS), open_reference(kept, MEANS)
    assert torch.equal(again.features, made.features) and again.about == by_file.about == made.about
    other: Any = SimpleNamespace(sha256=Means.sha256, preparation=Preparation(side=32))
    with pytest.raises(LLM4GENError, match="another preparation"):
        open_reference(kept, other)
    images_of(1, seed=9)[0].save(folder / "more.png")
    assert open_reference(folder, MEANS).about["n"] == 4


def test_references_of_earlier_versions_are_read(tmp_path: Path) -> None:
    """Their description of the preparation, word for word."""
    about = {
        "network": Means.sha256,
        "preparation": {
            "crop": "square",
            "side": 0,
            "resize": "clean",
            "crop_is": "the square in the middle",
            "resize_is": "Pillow's antialiased bicubic to 299 x 299 in float32, not rounded, as in Parmar et al. 2022",
        },
    }
    features = np.ones((3, 2048), np.float32)
    np.savez(tmp_path / "old.npz", features=features, mu=0, sigma=0, n=3, about=np.array(json.dumps(about)))
    assert open_reference(tmp_path / "old.npz", MEANS).about == about


def test_a_reference_that_cannot_be_kept_is_still_used(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "real", images_of(3))
    with (
        mock.patch("evaluation.metrics.inception.np.savez", side_effect=OSError("read-only")),
        pytest.warns(UserWarning, match="cannot be kept"),
    ):
        assert open_reference(folder, MEANS).about["n"] == 3
    assert [path.name for path in tmp_path.iterdir()] == ["real"]


def test_reference_needs_images(tmp_path: Path) -> None:
    with pytest.raises(LLM4GENError, match="reference=FOLDER"):
        FID.check(Context(tmp_path))
    with pytest.raises(LLM4GENError, match="does not exist"):
        FID.check(Context(tmp_path, options={"reference": str(tmp_path / "none")}))
    (tmp_path / "empty").mkdir()
    with pytest.raises(LLM4GENError, match="holds 0 images"):
        open_reference(tmp_path / "empty", MEANS)
    np.savez(tmp_path / "theirs.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    with pytest.raises(LLM4GENError, match="was not made by this program"):
        open_reference(tmp_path / "theirs.npz", MEANS)


def test_a_broken_real_image_is_named_and_leaves_no_file(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "real", images_of(2))
    (folder / "000.png").write_bytes((folder / "000.png").read_bytes()[:60])
    with pytest.raises(LLM4GENError, match=r"000\.png cannot be read"):
        open_reference(folder, MEANS)
    assert [path.name for path in tmp_path.iterdir()] == ["real"]


def test_several_seeds_give_a_mean_and_students_interval() -> None:
    real = Reference(MEANS(images_of(60, seed=5))[0], {"n": 60})
    seeds = [seed for seed in (3, 1, 2) for _ in range(20)]
    images = images_of(60, seed=8, level=60)
    found = scores(FID(MEANS, real), images, seeds)
    fid, values = found["fid"], list(found["fid"].details["seeds"].values())
    assert fid.n == 60 and fid.details["images_each"] == 20 and list(fid.details["seeds"]) == ["1", "2", "3"]
    assert fid.value == pytest.approx(np.mean(values))
    assert fid.high is not None
    assert fid.high - fid.value == pytest.approx(stats.t.ppf(0.975, 2) * np.std(values, ddof=1) / 3**0.5, rel=1e-4)
    assert "3 seeds" in fid.how and "20 images" in fid.how
    alone = scores(FID(MEANS, real), images[20:40], [1] * 20)
    assert alone["fid"].value == pytest.approx(fid.details["seeds"]["1"])
    assert alone["kid"].value == pytest.approx(found["kid"].details["seeds"]["1"]["mean"])


def test_one_seed_has_no_interval_and_says_why() -> None:
    metric = FID(MEANS, Reference(MEANS(images_of(60, seed=5))[0], {"n": 60}))
    fid, kid = scores(metric, images_of(30, seed=8, level=90), [0] * 30).values()
    assert fid.value > 0 and (fid.low, fid.high, kid.low, kid.high) == (None,) * 4
    assert "no interval" in fid.how and "seeds" not in fid.details and kid.details["std"] > 0
    assert "singular" in fid.details["bias"] and fid.details["sizes"] == {"40x40": 30}
    json.dumps([dict(fid.details), dict(kid.details), metric.describe()], allow_nan=False)


def test_inception_score_is_that_of_torch_fidelity() -> None:
    images = images_of(40, seed=8)
    [found] = scores(InceptionScore(MEANS, splits=4), images, [0] * 40).values()
    theirs = isc_features_to_metric(MEANS(images)[1], splits=4)
    assert found.value == pytest.approx(theirs["inception_score_mean"], rel=1e-6) and found.value > 1.01
    assert found.details["std"] == pytest.approx(theirs["inception_score_std"], rel=1e-5)
    assert found.details["images_a_split"] == 10 and found.high is not None
    # Standard error of four splits, from the standard deviation that is divided by n.
    error = theirs["inception_score_std"] * (4 / 3) ** 0.5 / 2
    assert found.high - found.value == pytest.approx(stats.t.ppf(0.975, 3) * error, rel=1e-4)


def test_inception_score_of_several_seeds() -> None:
    seeds = [seed for seed in (0, 1) for _ in range(20)]
    [found] = scores(InceptionScore(MEANS, splits=4), images_of(40, seed=8), seeds).values()
    assert found.value == pytest.approx(np.mean([one["mean"] for one in found.details["seeds"].values()]))
    assert "2 seeds" in found.how


@pytest.mark.parametrize(("count", "seeds"), [(1, 1), (2, 2)])
def test_too_few_images_are_refused(count: int, seeds: int) -> None:
    images = images_of(count)
    with pytest.raises(LLM4GENError, match="The set has 1 images"):
        scores(FID(MEANS, Reference(MEANS(images_of(5))[0], {})), images, list(range(seeds)))
    with pytest.raises(LLM4GENError, match="19 images; expected two or more in each of the 10 splits"):
        scores(InceptionScore(MEANS), images_of(19), [0] * 19)


def test_complete_seeds_have_every_prompt() -> None:
    assert complete_seeds(["a", "a", "b", "b"], [2, 1, 1, 2]) == {1: [1, 2], 2: [0, 3]}
    assert complete_seeds(["a", "b", "a"], [1, 1, 2]) == {}
    assert complete_seeds(["a", "b"], [1, 1]) == {}
    assert complete_seeds(["a", "a", "b", "b"], [1, 1, 2, 2]) == {}


@pytest.mark.slow
def test_scores_of_files_are_those_of_torch_fidelity(
    tmp_path: Path, judges: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """KID and Inception score from folders of PNG files, against torch-fidelity's own command on the same files.

    The FID uses the KID's features; the root of its 2048 x 2048 matrix takes ten seconds, so it is left out here.
    """
    real, generated = images_of(6, seed=1), images_of(6, seed=2, level=150)
    folder, other = write_folder(tmp_path / "real", real), write_folder(tmp_path / "generated", generated)
    theirs = calculate_metrics(
        input1=str(other),
        input2=str(folder),
        cuda=False,
        isc=True,
        kid=True,
        isc_splits=3,
        kid_subset_size=3,
        feature_extractor_weights_path=str(judges / INCEPTION.folder / WEIGHTS),
        verbose=False,
        cache=False,
        save_cpu_ram=True,
    )
    seen: list[dict[str, Any]] = []
    monkeypatch.setattr(
        module, "fid_statistics_to_metric", lambda ours, real, verbose: seen.append(ours) or {FID_KEY: 1}
    )
    context = Context(judges, options={"reference": str(folder), "resize": "tensorflow", "splits": "3"})
    found = {
        **scores(FID.load(context), generated, [0] * 6),
        **scores(InceptionScore.load(context), generated, [0] * 6),
    }
    assert found["inception_score"].value == pytest.approx(theirs["inception_score_mean"], rel=1e-5)
    assert found["kid"].value == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-4)
    assert found["kid"].details["std"] == pytest.approx(theirs["kernel_inception_distance_std"], rel=1e-4)
    assert seen[0]["sigma"].shape == (2048, 2048)


FID_KEY = module.KEY_METRIC_FID
