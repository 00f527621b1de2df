"""Ranges, files, sizes and grids."""

from __future__ import annotations

import math
import struct
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

from nada_core.io.grid import compare_grid, grid
from nada_core.io.images import from_pil, from_uint8, load_image, resize, save_image, square, to_pil, to_uint8


def noise(n: int = 1, height: int = 16, width: int = 16) -> torch.Tensor:
    return torch.rand(n, 3, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_bytes_round_trip() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).repeat(1, 1, 1, 3)
    images = from_uint8(pixels)
    assert images.shape == (1, 3, 16, 16) and images.dtype == torch.float32
    assert (images.min(), images.max()) == (-1, 1)
    assert torch.equal(to_uint8(images), pixels)


def test_values_beyond_the_range_are_clamped() -> None:
    assert to_uint8(torch.full((1, 3, 1, 1), 1.7)).unique().tolist() == [255]
    assert to_uint8(torch.full((1, 3, 1, 1), -1.7)).unique().tolist() == [0]


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 4, 8, 8), (0, 3, 8, 8)])
def test_wrong_shapes_are_refused(shape: tuple[int, ...]) -> None:
    for act in (to_uint8, grid, lambda x: resize(x, 4)):
        with pytest.raises(ValueError, match="expected"):
            act(torch.zeros(shape))
    with pytest.raises(ValueError, match="expected one"):
        to_pil(torch.zeros(2, 3, 4, 4))
    with pytest.raises(ValueError, match="uint8"):
        from_uint8(torch.zeros(1, 4, 4, 3))


def test_saved_images_round_trip_and_leave_nothing_else(tmp_path: Path) -> None:
    image = noise(1, 9, 7)
    path = save_image(image, tmp_path / "new" / "x.png")
    assert torch.equal(to_uint8(load_image(path)), to_uint8(image))
    assert [p.name for p in path.parent.iterdir()] == ["x.png"]


def test_failed_writes_leave_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_image(noise(), tmp_path / "x.png")
    before = path.read_bytes()

    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        save_image(-noise(), path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no image file"):
        load_image(tmp_path / "none.png")
    (tmp_path / "x.png").write_bytes(b"not an image")
    with pytest.raises(ValueError, match="could not be read"):
        load_image(tmp_path / "x.png")
    with pytest.raises(ValueError, match=r"\.png"):
        save_image(noise(), tmp_path / "x.jpg")


def test_transparency_is_kept_on_request(tmp_path: Path) -> None:
    image = to_uint8(noise(1, 20, 30)), to_uint8(noise(1, 20, 30))[..., :1].expand(-1, -1, -1, 3)
    rgba = torch.cat([from_uint8(image[0]), from_uint8(image[1])[:, :1]], 1)
    path = save_image(rgba, tmp_path / "rgba.png")
    assert torch.equal(load_image(path, alpha=True), rgba)
    assert load_image(path).shape == (1, 3, 20, 30)
    save_image(rgba[:, :3], path)
    assert torch.equal(load_image(path, alpha=True), rgba[:, :3]), "an opaque image has no alpha"


def test_gray_and_transparent_pil_images_become_rgb() -> None:
    assert from_pil(Image.new("L", (2, 3), 0)).shape == (1, 3, 3, 2)
    assert from_pil(Image.new("RGBA", (2, 2), (0, 0, 0, 0))).eq(1).all()  # composed over white


def test_resize_is_antialiased_differentiable_and_returns_equal_sizes() -> None:
    image = noise(1, 64, 64).requires_grad_()
    small = resize(image, (8, 16))
    assert small.shape == (1, 3, 8, 16) and small.std() < 0.5 * image.std()
    small.sum().backward()
    assert image.grad is not None and image.grad.ne(0).all()
    assert resize(image, 64) is image
    with pytest.raises(ValueError, match="at least 1 x 1"):
        resize(image, 0)


def test_grid_enlarges_small_images_by_an_integer_factor() -> None:
    images = noise(5, 64, 64)
    sheet = grid(images, columns=2)
    assert sheet.shape == (1, 3, 8 + 3 * 200, 8 + 2 * 200)
    cell = sheet[0, :, 8:200, 8:200]
    assert torch.equal(cell[:, 1::3, 1::3], from_uint8(to_uint8(images[:1]))[0])
    assert torch.equal(cell[:, ::3, ::3], cell[:, 2::3, 2::3])
    assert grid(images, 5, labels=list("abcde"), title="t").shape[-2] > sheet.shape[-2] // 3
    assert max(grid(noise(1, 1024, 512)).shape) < 600
    with pytest.raises(ValueError, match="one label an image"):
        grid(images, labels=["a"])


def test_compare_grid_has_one_row_per_latent() -> None:
    before, after = noise(3, 64, 64), -noise(3, 32, 32)
    sheet = compare_grid({"before": before, "after": after})
    assert sheet.shape == (1, 3, 34 + 3 * 200, 8 + 2 * 200)
    for row in range(3):
        y = 34 + 200 * row
        assert torch.equal(sheet[0, :, y : y + 192 : 3, 8:200:3], from_uint8(to_uint8(before))[row])
        assert torch.equal(sheet[0, :, y : y + 192 : 6, 208:400:6], from_uint8(to_uint8(after))[row])
    wider = compare_grid({"before": before, "after": after}, rows=["seed 1", "seed 2", "seed 3"], title="same latents")
    assert wider.shape[-1] > sheet.shape[-1] and wider.shape[-2] > sheet.shape[-2]
    for wrong in ({}, {"a": before, "b": before[:2]}):
        with pytest.raises(ValueError, match="equally many"):
            compare_grid(wrong)


def test_square_reduces_the_center_by_area() -> None:
    given = torch.zeros(1, 3, 32, 64)
    given[..., 16:48] = torch.arange(32) / 32
    assert torch.allclose(square(given, 16)[0, 0, 3], (torch.arange(16) * 2 + 0.5) / 32)
    assert torch.equal(square(given, 32), given[..., 16:48])
    larger = square(torch.where(given > 0.5, 1.0, -1.0), 64)
    assert larger.shape == (1, 3, 64, 64) and larger.abs().max() <= 1


def test_square_converts_gray_and_transparent_images_to_rgb() -> None:
    grey = noise()[:, :1]
    assert torch.equal(square(grey, 16), grey.expand(-1, 3, -1, -1))
    clear = torch.cat([noise(), torch.full((1, 1, 16, 16), -1.0)], 1)
    solid = torch.cat([noise(), torch.ones(1, 1, 16, 16)], 1)
    assert torch.equal(square(clear, 16), torch.ones(1, 3, 16, 16))
    assert torch.allclose(square(solid, 16), noise(), atol=1e-6)


def test_rotation_tags_and_modes_are_applied_on_loading(tmp_path: Path) -> None:
    pixels = Image.new("RGB", (40, 20), (255, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    pixels.save(tmp_path / "turned.jpg", exif=exif)
    Image.new("L", (20, 30), 128).save(tmp_path / "grey.png")
    Image.new("RGBA", (20, 30), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert load_image(tmp_path / "turned.jpg").shape == (1, 3, 40, 20)
    assert square(load_image(tmp_path / "grey.png"), 16).sub(128 / 127.5 - 1).abs().max() < 1e-6
    assert torch.equal(square(load_image(tmp_path / "clear.png"), 16), torch.ones(1, 3, 16, 16))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(1, 5, 64, 64), r"\[1, 5, 64, 64\], expected .* 1 \(gray\) or 3 \(RGB\) or 4 \(RGBA\)"),
        (torch.zeros(3, 64, 64), r"\[3, 64, 64\], expected"),
        (torch.zeros(0, 3, 64, 64), "N > 0"),
        (torch.zeros(1, 3, 1, 1), "1 x 1 pixels, expected at least 16"),
        (torch.full((1, 3, 64, 64), float("nan")), "NaN or infinity"),
        (torch.full((1, 3, 64, 64), 255.0), "255, expected -1..1"),
    ],
)
def test_unusable_images_are_refused(images: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        square(images, 64)


def test_squares_under_16_pixels_are_refused() -> None:
    with pytest.raises(ValueError, match="size 8, expected at least 16"):
        square(noise(), 8)


# ---- what a viewer shows ------------------------------------------------------------------------------------------


def ramp(white: float, dtype: str) -> numpy.ndarray:
    return (numpy.tile(numpy.linspace(0, 1, 64), (64, 1)) * white).astype(dtype)


@pytest.mark.parametrize(
    ("name", "white", "dtype"),
    [
        ("gray16.png", 65535, "uint16"),
        ("gray16.tif", 65535, "uint16"),
        ("gray32.tif", 65535, "int32"),
        ("float.tif", 1.0, "float32"),
    ],
)
def test_deep_gray_images_are_scaled(tmp_path: Path, name: str, white: float, dtype: str) -> None:
    Image.fromarray(ramp(white, dtype)).save(tmp_path / name)
    expected = torch.linspace(-1, 1, 64).expand(1, 3, 64, 64)
    torch.testing.assert_close(load_image(tmp_path / name), expected, atol=1.01 / 127.5, rtol=0)


def test_big_endian_16_bit_gray_is_scaled() -> None:
    image = Image.frombytes("I;16B", (64, 64), ramp(65535, ">u2").tobytes())
    torch.testing.assert_close(from_pil(image)[0, 0, 0], torch.linspace(-1, 1, 64), atol=1.01 / 127.5, rtol=0)


@pytest.mark.parametrize(
    ("pixels", "value"),
    [(ramp(8.0, "float32"), "8"), (ramp(70000, "int32"), "70000"), (ramp(math.nan, "float32"), "nan")],
)
def test_gray_images_of_unknown_range_are_refused(tmp_path: Path, pixels: numpy.ndarray, value: str) -> None:
    path = tmp_path / "deep.tif"
    Image.fromarray(pixels).save(path)
    with pytest.raises(ValueError, match=f"{path.name}.* to {value}"):
        load_image(path)


def linear_profile() -> bytes:
    """A minimal ICC profile with the primaries of sRGB and linear values (ICC.1:2001-04, sections 6 and 7)."""

    def xyz(*values: float) -> bytes:
        return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(value * 65536)) for value in values)

    curve = b"curv\0\0\0\0" + struct.pack(">IHxx", 1, 256)  # one entry: a gamma of 1
    text = b"desc\0\0\0\0" + struct.pack(">I", 7) + b"linear\0" + bytes(79)
    tags = {
        b"desc": text,
        b"wtpt": xyz(0.9642, 1.0, 0.8249),
        b"rXYZ": xyz(0.4361, 0.2225, 0.0139),
        b"gXYZ": xyz(0.3851, 0.7169, 0.0971),
        b"bXYZ": xyz(0.1431, 0.0606, 0.7141),
        **{name: curve for name in (b"rTRC", b"gTRC", b"bTRC")},
    }
    table, data, start = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for name, value in tags.items():
        value += bytes(-len(value) % 4)
        table += name + struct.pack(">II", start + len(data), len(value))
        data += value
    kinds = (b"lcms", 0x02100000, b"mntr", b"RGB ", b"XYZ ", bytes(12), b"acsp")
    header = struct.pack(">I4sI4s4s4s12s4s", start + len(data), *kinds)
    header += bytes(68 - len(header)) + struct.pack(">iii", 63190, 65536, 54061)
    return header + bytes(128 - len(header)) + table + data


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_icc_profile_is_converted_to_srgb(tmp_path: Path, mode: str) -> None:
    """Linear 55 / 255 = 0.2157 is 0.5015 in sRGB (IEC 61966-2-1)."""
    color = (55, 55, 55, 255)[: len(mode)]
    Image.new(mode, (16, 16), color).save(tmp_path / "linear.png", icc_profile=linear_profile())
    image = load_image(tmp_path / "linear.png")
    torch.testing.assert_close(image, torch.full_like(image, 2 * 0.5015 - 1), atol=2 / 127.5, rtol=0)


def test_damaged_icc_profile_is_ignored_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Image.new("RGB", (16, 16), (55, 55, 55)).save(tmp_path / "broken.png", icc_profile=linear_profile()[:90])
    assert load_image(tmp_path / "broken.png")[0, 0, 0, 0].item() == pytest.approx(55 / 127.5 - 1)
    assert "ICC" in caplog.text
