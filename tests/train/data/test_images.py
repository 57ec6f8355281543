"""Decoding of every kind of image, cuts, and buckets."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from image_text import encoded, make_data, noise
from PIL import Image

from train.data.images import BadImage, assign, bucket_sizes, cut_pixels, decode, inspect, plan_cut, to_model

RED, BLUE = (200, 30, 40), (20, 60, 220)


def halves(left: tuple[int, int, int] = RED, right: tuple[int, int, int] = BLUE) -> Image.Image:
    """32 wide, 16 high."""
    image = Image.new("RGB", (32, 16), left)
    image.paste(right, (16, 0, 32, 16))
    return image


def colors(data: bytes) -> tuple[tuple[int, ...], tuple[int, ...]]:
    pixels = np.array(decode(data)).astype(int)
    return tuple(pixels[8, 6]), tuple(pixels[8, 26])


def near(found: tuple[int, ...], expected: tuple[int, ...], tolerance: int) -> bool:
    return len(found) == 3 and all(abs(a - b) <= tolerance for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ("kind", "options", "tolerance"),
    [("JPEG", {"quality": 95}, 6), ("PNG", {}, 0), ("WEBP", {"lossless": True}, 0), ("BMP", {}, 0), ("TIFF", {}, 0)],
)
def test_colors_of_each_format(kind: str, options: dict[str, object], tolerance: int) -> None:
    left, right = colors(encoded(halves(), kind, **options))
    assert near(left, RED, tolerance) and near(right, BLUE, tolerance)


def test_cmyk_jpeg_has_the_right_colors() -> None:
    data = encoded(halves().convert("CMYK"), "JPEG", quality=95)
    assert inspect(data).note == "CMYK"
    left, right = colors(data)
    assert near(left, RED, 8) and near(right, BLUE, 8)


@pytest.mark.parametrize("transparent", [False, True])
def test_palette_has_the_right_colors(transparent: bool) -> None:
    image = halves().quantize(2)
    options = {"transparency": image.getpixel((26, 8))} if transparent else {}
    data = encoded(image, "PNG", **options)
    assert inspect(data).note == ("alpha, palette" if transparent else "palette")
    assert colors(data) == (RED, (255, 255, 255) if transparent else BLUE)


def test_alpha_is_composited_over_white() -> None:
    image = halves().convert("RGBA")
    image.paste((0, 0, 0, 0), (16, 0, 32, 16))
    image.paste((*RED, 128), (0, 0, 16, 16))
    data = encoded(image)
    assert inspect(data).note == "alpha"
    left, right = colors(data)
    assert right == (255, 255, 255)
    assert near(left, (227, 142, 147), 1)


def test_gray_of_16_bits_is_scaled_and_not_clipped() -> None:
    ramp = np.tile(np.linspace(0, 65535, 32).astype(np.uint16), (16, 1))
    data = encoded(Image.fromarray(ramp))
    assert inspect(data).note == "16 bits"
    assert [tuple(np.array(decode(data))[8, x]) for x in (0, 31)] == [(0, 0, 0), (255, 255, 255)]
    assert abs(int(np.array(decode(data))[8, 16, 0]) - 132) <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_comes_out_upright(orientation: int) -> None:
    upright = halves()
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # to PIL's Transpose that makes the stored image
    stored = upright.transpose(Image.Transpose(undo[orientation])) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    for kind, options in (("JPEG", {"quality": 95}), ("PNG", {}), ("TIFF", {})):
        data = encoded(stored, kind, exif=exif, **options)
        facts = inspect(data)
        assert (facts.width, facts.height) == (32, 16) == decode(data).size
        left, right = colors(data)
        assert near(left, RED, 8) and near(right, BLUE, 8)


def test_broken_exif_is_ignored() -> None:
    data = encoded(halves(), "JPEG", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff")
    assert inspect(data).width == 32
    assert decode(data).size == (32, 16)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF"])
def test_a_truncated_file_is_found_without_training_on_it(kind: str) -> None:
    data = encoded(noise(0), kind)
    with pytest.raises(BadImage):
        inspect(data[: len(data) * 2 // 3])


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"", "empty file"),
        (b"<html>404 not found</html>", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n", "not an image"),
    ],
)
def test_files_that_are_not_images_are_refused(data: bytes, kind: str) -> None:
    with pytest.raises(BadImage) as error:
        inspect(data)
    assert error.value.kind == kind


def test_a_decompression_bomb_is_refused_by_its_header() -> None:
    file = io.BytesIO()
    Image.new("1", (12000, 12000)).save(file, "PNG")
    with pytest.raises(BadImage) as error:
        inspect(file.getvalue())
    assert error.value.kind == "too many pixels"


@pytest.mark.parametrize("size", [(100, 100), (333, 64), (64, 401), (65, 64), (3, 1000)])
@pytest.mark.parametrize("target", [(64, 64), (96, 32)])
@pytest.mark.parametrize("crop", ["center", "random"])
def test_a_cut_lies_inside_the_resized_image(size: tuple[int, int], target: tuple[int, int], crop: str) -> None:
    for epoch in range(5):
        cut = plan_cut(*size, target, crop=crop, seed=1, key="a", epoch=epoch)
        assert cut.resized[0] == target[0] or cut.resized[1] == target[1]
        assert 0 <= cut.top <= cut.resized[0] - target[0] and 0 <= cut.left <= cut.resized[1] - target[1]


def test_pixels_of_the_cut() -> None:
    image = noise(3, 128, 64)
    cut = plan_cut(128, 64, (64, 64), crop="random", seed=0, key="a", epoch=2)
    whole = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    assert cut.resized == (64, 128) and cut.left != 32
    assert torch.equal(cut_pixels(image, cut), whole[:, cut.top : cut.top + 64, cut.left : cut.left + 64])


def test_mirroring_comes_before_the_cut() -> None:
    image = noise(3, 128, 64)
    cut = plan_cut(128, 64, (64, 64), crop="random", flip=1.0, seed=0, key="a", epoch=2)
    mirrored = torch.from_numpy(np.array(image)).permute(2, 0, 1).flip(2)
    assert cut.flip
    assert torch.equal(cut_pixels(image, cut), mirrored[:, :, cut.left : cut.left + 64])


def test_draws_depend_on_seed_key_and_epoch_and_flips_have_their_share() -> None:
    def lefts(seed: int, key: str) -> list[int]:
        return [plan_cut(500, 64, (64, 64), crop="random", seed=seed, key=key, epoch=epoch).left for epoch in range(20)]

    assert lefts(0, "a") == lefts(0, "a")
    assert len({tuple(lefts(0, "a")), tuple(lefts(1, "a")), tuple(lefts(0, "b"))}) == 3
    assert len(set(lefts(0, "a"))) > 10
    flips = sum(plan_cut(64, 64, (64, 64), flip=0.25, key=str(n)).flip for n in range(2000))
    assert 430 < flips < 570


def test_the_vaes_input_is_minus_one_to_one() -> None:
    values = to_model(torch.tensor([0, 255], dtype=torch.uint8))
    assert values.tolist() == [-1.0, 1.0]


# Buckets


def test_one_square_without_buckets() -> None:
    assert bucket_sizes(make_data("x", resolution=512)) == [(512, 512)]


@pytest.mark.parametrize(("resolution", "step", "ratio"), [(1024, 64, 2.0), (512, 64, 3.0), (512, 8, 2.0), (64, 16, 4)])
def test_buckets_have_the_area_the_step_and_the_ratio(resolution: int, step: int, ratio: float) -> None:
    sizes = bucket_sizes(
        make_data("x", resolution=resolution, buckets={"enabled": True, "step": step, "max_ratio": ratio})
    )
    assert (resolution, resolution) in sizes
    assert {(width, height) for height, width in sizes} == set(sizes)
    for height, width in sizes:
        assert height % step == width % step == 0
        assert resolution**2 * 0.7 <= height * width <= resolution**2
        assert max(height, width) <= ratio * min(height, width)


def test_an_image_goes_to_the_nearest_shape() -> None:
    sizes = bucket_sizes(make_data("x", resolution=512, buckets={"enabled": True}))
    rng = np.random.default_rng(0)
    widths, heights = rng.integers(200, 3000, (2, 500))
    chosen = assign(widths, heights, sizes)
    for width, height, bucket in zip(widths, heights, chosen, strict=True):
        distances = [abs(np.log(width / height) - np.log(w / h)) for h, w in sizes]
        assert distances[bucket] == pytest.approx(min(distances))
