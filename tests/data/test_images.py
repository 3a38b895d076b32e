import struct
import zlib
from pathlib import Path

import numpy as np
import PIL
import pytest
import torch
from PIL import Image

from patchguard.data.images import read_image, read_mask, resize_image, resize_map
from patchguard.errors import PatchGuardError
from pictures import write_png

GREY8 = np.arange(20 * 12, dtype=np.uint8).reshape(12, 20)
RGB8 = np.stack([GREY8, GREY8[::-1], GREY8[:, ::-1]], axis=2)
GREY16 = np.linspace(0, 65535, 20 * 12).astype(np.uint16).reshape(12, 20)
RGB16 = np.stack([GREY16, GREY16[::-1], GREY16[:, ::-1]], axis=2)
UPRIGHT_90 = {274: 6}
since_pillow_13 = pytest.mark.skipif(
    int(PIL.__version__.split(".")[0]) < 13, reason="Pillow before 13 does not read it"
)


def exif(tags: dict[int, int]) -> Image.Exif:
    data = Image.Exif()
    data.update(tags)
    return data


def three(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=2)


def png16(path: Path, pixels: np.ndarray, colour_type: int) -> None:
    """A 16-bit PNG of any colour type, which Pillow reads but does not write."""

    def chunk(tag: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + tag + data + struct.pack(">I", zlib.crc32(tag + data))

    height, width = pixels.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)


def tiff(path: Path, data: bytes, bits: tuple[int, ...], *, order: str, photometric: int) -> None:
    """An uncompressed 20 x 12 TIFF of one strip in the byte order ``<`` or ``>``."""
    extra = struct.pack(f"{order}{len(bits)}H", *bits) if len(bits) > 1 else b""
    extra_at = 8 + 2 + 8 * 12 + 4
    bits_entry = (258, 3, len(bits), extra_at if extra else bits[0])
    entries = [
        (256, 4, 1, 20),
        (257, 4, 1, 12),
        bits_entry,
        (259, 3, 1, 1),
        (262, 3, 1, photometric),
        (273, 4, 1, extra_at + len(extra)),
        (277, 3, 1, len(bits)),
        (279, 4, 1, len(data)),
    ]
    directory = b""
    for tag, kind, count, value in entries:
        packed = struct.pack(order + ("H2x" if kind == 3 and count == 1 else "I"), value)
        directory += struct.pack(order + "HHI", tag, kind, count) + packed
    header = (b"II" if order == "<" else b"MM") + struct.pack(order + "HIH", 42, 8, len(entries))
    path.write_bytes(header + directory + bytes(4) + extra + data)


@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        ("png", {}),
        ("bmp", {}),
        ("tif", {}),
        ("tif", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "tiff_adobe_deflate"}),
    ],
)
@pytest.mark.parametrize("pixels", [GREY8, RGB8], ids=["grey", "rgb"])
def test_lossless_8_bit_formats_are_exact(tmp_path, suffix, options, pixels):
    path = tmp_path / f"image.{suffix}"
    Image.fromarray(pixels).save(path, **options)
    expected = (pixels if pixels.ndim == 3 else three(pixels)).astype(np.float32) / 255
    image = read_image(path)
    assert image.dtype == np.float32
    np.testing.assert_array_equal(image, expected)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_modes(tmp_path, mode, progressive):
    path = tmp_path / "image.JPG"
    colour = Image.new("RGB", (20, 12), (200, 200, 200)).convert(mode)
    colour.save(path, quality=95, progressive=progressive)
    assert read_image(path) == pytest.approx(np.full((12, 20, 3), 200 / 255), abs=2 / 255)


@pytest.mark.parametrize(
    ("suffix", "options"), [("png", {}), ("tif", {}), ("tif", {"compression": "tiff_lzw"})]
)
def test_16_bit_grey_keeps_its_depth(tmp_path, suffix, options):
    path = tmp_path / f"image.{suffix}"
    Image.fromarray(GREY16).save(path, **options)
    np.testing.assert_array_equal(read_image(path), three(GREY16.astype(np.float32) / 65535))


# Pillow opens no big-endian file whose zero is white.
@pytest.mark.parametrize(("order", "photometric"), [("<", 1), (">", 1), ("<", 0)])
def test_16_bit_tiff_of_either_byte_order_and_polarity(tmp_path, order, photometric):
    path = tmp_path / "image.tif"
    data = GREY16.astype(f"{order}u2").tobytes()
    tiff(path, data, (16,), order=order, photometric=photometric)
    expected = GREY16 / 65535 if photometric else 1 - GREY16 / 65535
    np.testing.assert_allclose(read_image(path), three(expected), atol=1e-6)


def test_12_bit_tiff_fills_the_range(tmp_path):
    path = tmp_path / "image.tif"
    tiff(path, b"\xff" * (20 * 12 * 12 // 8), (12,), order="<", photometric=1)
    np.testing.assert_array_equal(read_image(path), np.ones((12, 20, 3), np.float32))


@pytest.mark.parametrize("order", ["<", ">"])
def test_16_bit_rgb_tiff_is_read_at_8_bits(tmp_path, order):
    path = tmp_path / "image.tif"
    data = RGB16.astype(f"{order}u2").tobytes()
    tiff(path, data, (16, 16, 16), order=order, photometric=2)
    np.testing.assert_allclose(read_image(path), RGB16 / 65535, atol=1 / 255)


def test_16_bit_colour_png_is_read_at_8_bits(tmp_path):
    opaque = np.full_like(GREY16, 65535)[..., None]
    for colour_type, pixels, expected in [
        (2, RGB16, RGB16),
        (4, np.dstack([GREY16, opaque]), three(GREY16)),
        (6, np.dstack([RGB16, opaque]), RGB16),
    ]:
        png16(tmp_path / "image.png", pixels, colour_type)
        np.testing.assert_allclose(
            read_image(tmp_path / "image.png"), expected / 65535, atol=1 / 255
        )


def test_32_bit_images(tmp_path):
    path = tmp_path / "image.tif"
    Image.fromarray(GREY16.astype(np.int32)).save(path)
    np.testing.assert_array_equal(read_image(path), three(GREY16.astype(np.float32) / 65535))
    Image.fromarray(GREY16.astype(np.float32) / 65535).save(path)
    np.testing.assert_array_equal(read_image(path), three(GREY16.astype(np.float32) / 65535))


@pytest.mark.parametrize(
    "value", [np.int32(-1), np.int32(65536), np.float32(1.5), np.float32("nan")]
)
def test_values_without_a_known_range_are_refused(tmp_path, value):
    path = tmp_path / "image.tif"
    Image.fromarray(np.full((12, 20), value)).save(path)
    with pytest.raises(PatchGuardError, match=r"image\.tif: values from .* expected 0 to") as error:
        read_image(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif"])
def test_1_bit(tmp_path, suffix):
    path = tmp_path / f"image.{suffix}"
    bits = GREY8 > 100
    Image.fromarray(bits).save(path)
    np.testing.assert_array_equal(read_image(path), three(bits.astype(np.float32)))


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif"])
def test_palette(tmp_path, suffix):
    path = tmp_path / f"image.{suffix}"
    image = Image.fromarray(np.array([[0, 1], [2, 2]], np.uint8)).convert("P")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.save(path)
    expected = [[[1, 0, 0], [0, 1, 0]], [[0, 0, 1], [0, 0, 1]]]
    np.testing.assert_array_equal(read_image(path), np.array(expected, np.float32))


def test_transparent_pixels_become_white_whatever_hides_under_them(tmp_path):
    path = tmp_path / "image.png"
    alpha = np.where(GREY8 < 100, 0, 255).astype(np.uint8)
    expected = np.where(alpha[..., None] == 0, 1, RGB8.astype(np.float32) / 255)
    Image.fromarray(np.dstack([RGB8, alpha])).save(path)
    np.testing.assert_array_equal(read_image(path), expected)
    Image.fromarray(np.dstack([GREY8, alpha])).save(path)
    grey_on_white = np.where(alpha == 0, 255, GREY8).astype(np.float32) / 255
    np.testing.assert_array_equal(read_image(path), three(grey_on_white))


def test_half_transparent_is_a_blend_with_white(tmp_path):
    path = tmp_path / "image.png"
    Image.new("RGBA", (4, 4), (0, 100, 200, 128)).save(path)
    expected = 1 - 128 / 255 + np.array([0, 100, 200]) / 255 * 128 / 255
    assert read_image(path)[0, 0] == pytest.approx(expected, abs=1 / 255)


@pytest.mark.parametrize("mode", [pytest.param("LA", marks=since_pillow_13), "RGBA"])
def test_premultiplied_alpha(tmp_path, mode):
    path = tmp_path / "image.tif"
    Image.new(mode, (4, 4), (64,) * (len(mode) - 1) + (128,)).save(path)
    # ExtraSamples from 2, alpha beside full colours, to 1, colours already times alpha.
    tag = struct.pack("<HHI", 338, 3, 1)
    assert tag in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(tag + b"\2", tag + b"\1"))
    assert read_image(path) == pytest.approx(np.full((4, 4, 3), (64 + 127) / 255), abs=1 / 255)


@pytest.mark.parametrize("mode", ["L", "P", "RGB"])
def test_a_transparent_colour_becomes_white(tmp_path, mode):
    path = tmp_path / "image.png"
    image = Image.fromarray(np.array([[0, 60], [120, 180]], np.uint8)).convert(mode)
    if mode == "P":
        image.putpalette([value for value in range(256) for _ in range(3)])
    image.save(path, transparency=(60, 60, 60) if mode == "RGB" else 60)
    expected = np.array([[0, 255], [120, 180]], np.float32) / 255
    np.testing.assert_array_equal(read_image(path), three(expected))


@pytest.mark.parametrize("mode", [pytest.param("YCbCr", marks=since_pillow_13), "LAB"])
def test_other_colour_spaces_of_tiff(tmp_path, mode):
    path = tmp_path / "image.tif"
    pixel = {"YCbCr": (255, 128, 128), "LAB": (255, 128, 128)}[mode]
    Image.new(mode, (4, 4), pixel).save(path)
    assert read_image(path) == pytest.approx(np.ones((4, 4, 3)), abs=2 / 255)


@pytest.mark.parametrize(
    ("name", "options"),
    [("a.png", {}), ("a.tif", {}), ("a.tif", {"compression": "tiff_lzw"})],
)
@pytest.mark.parametrize("pixels", [GREY8, GREY16, RGB8], ids=["grey", "grey16", "rgb"])
def test_exif_orientation_is_applied(tmp_path, name, options, pixels):
    Image.fromarray(pixels).save(tmp_path / name, exif=exif(UPRIGHT_90), **options)
    scale = 65535 if pixels.dtype == np.uint16 else 255
    upright = np.rot90(pixels, -1).astype(np.float32) / scale
    expected = upright if pixels.ndim == 3 else three(upright)
    np.testing.assert_array_equal(read_image(tmp_path / name), expected)
    np.testing.assert_array_equal(read_mask(tmp_path / name), expected.any(axis=2))


def test_exif_orientation_of_a_jpeg(tmp_path):
    path = tmp_path / "a.jpg"
    halves = np.zeros((16, 32), np.uint8)
    halves[:, :16] = 255
    Image.fromarray(halves).save(path, exif=exif(UPRIGHT_90))
    image = read_image(path)
    assert image.shape == (32, 16, 3)
    assert image[:14].min() > 0.95
    assert image[18:].max() < 0.05


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_broken_exif_does_not_condemn_the_pixels(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(RGB8).save(path, exif=b"Exif\0\0not exif data")
    assert read_image(path).shape == (12, 20, 3)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.jpg"])
def test_first_of_several_frames(tmp_path, name):
    path = tmp_path / name
    first, second = Image.new("RGB", (8, 8), "white"), Image.new("RGB", (8, 8), "black")
    kind = "MPO" if name == "a.jpg" else None
    first.save(path, format=kind, save_all=True, append_images=[second])
    assert read_image(path).min() > 0.98


def test_contents_count_not_the_suffix(tmp_path):
    path = tmp_path / "really_a_png.jpg"
    Image.fromarray(RGB8).save(path, format="PNG")
    np.testing.assert_array_equal(read_image(path), RGB8.astype(np.float32) / 255)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.png", {}),
        ("a.jpg", {}),
        ("a.jpg", {"progressive": True}),
        ("a.bmp", {}),
        ("a.tif", {}),
        ("a.tif", {"compression": "tiff_deflate"}),
    ],
)
@pytest.mark.parametrize("kept", [0.0, 0.01, 0.5, 0.9, 0.98])
@pytest.mark.filterwarnings("ignore")
def test_a_file_cut_short_is_named(tmp_path, name, options, kept):
    path = tmp_path / name
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, **options)
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    for read in (read_image, read_mask):
        with pytest.raises(PatchGuardError) as error:
            read(path)
        assert str(error.value).startswith(f"{path}: ")
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("byte", [10, 40, -20])
def test_a_damaged_png_is_named(tmp_path, byte):
    path = tmp_path / "a.png"
    Image.fromarray(RGB8).save(path)
    damaged = bytearray(path.read_bytes())
    damaged[byte if byte < 0 else damaged.index(b"IDAT") + byte] ^= 0xFF
    path.write_bytes(damaged)
    with pytest.raises(PatchGuardError, match=r"a\.png: damaged or cut short"):
        read_image(path)


def test_what_is_no_image_is_named(tmp_path):
    text, missing, folder = tmp_path / "a.png", tmp_path / "b.png", tmp_path / "c.png"
    text.write_text("not an image")
    folder.mkdir()
    foreign = tmp_path / "d.png"
    Image.fromarray(RGB8).save(foreign, format="TGA")
    for path, words in [
        (text, "not a readable PNG"),
        (foreign, "not a readable PNG"),
        (missing, "No such file"),
        (folder, "cannot be opened"),
    ]:
        with pytest.raises(PatchGuardError, match=words) as error:
            read_image(path)
        assert str(error.value).startswith(f"{path}: ")


def test_an_absurdly_large_image_is_refused_before_it_is_decoded(tmp_path):
    path = tmp_path / "a.png"
    Image.new("1", (20, 12)).save(path)
    data = bytearray(path.read_bytes())
    data[16:24] = struct.pack(">II", 100_000, 100_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    path.write_bytes(data)
    with pytest.raises(PatchGuardError, match=r"a\.png: too many pixels"):
        read_image(path)


MARKED = np.zeros((12, 20), bool)
MARKED[3:5, 7:11] = True


@pytest.mark.parametrize("value", [1, 128, 255])
def test_any_value_but_zero_marks(tmp_path, value):
    path = tmp_path / "mask.png"
    grey = (MARKED * value).astype(np.uint8)
    one_channel = np.zeros((12, 20, 3), np.uint8)
    one_channel[..., 2] = grey
    for pixels in (grey, one_channel, grey.astype(np.uint16)):
        Image.fromarray(pixels).save(path)
        mask = read_mask(path)
        assert mask.dtype == bool
        np.testing.assert_array_equal(mask, MARKED)


def test_masks_of_other_modes(tmp_path):
    path = tmp_path / "mask.tif"
    for pixels in (MARKED, MARKED.astype(np.int32), MARKED.astype(np.float32)):
        Image.fromarray(pixels).save(path)
        np.testing.assert_array_equal(read_mask(path), MARKED)
    palette = Image.fromarray(MARKED.astype(np.uint8)).convert("P")
    palette.putpalette([0, 0, 0, 128, 0, 0])
    palette.save(path)
    np.testing.assert_array_equal(read_mask(path), MARKED)


def test_alpha_does_not_mark(tmp_path):
    path = tmp_path / "mask.png"
    grey = (MARKED * 255).astype(np.uint8)
    opaque = np.full_like(grey, 255)
    for bands in ([grey, opaque], [grey, grey, grey, opaque]):
        Image.fromarray(np.dstack(bands)).save(path)
        np.testing.assert_array_equal(read_mask(path), MARKED)


def test_jpeg_masks_do_not_grow(tmp_path):
    path = tmp_path / "mask.jpg"
    marked = np.zeros((64, 64), bool)
    marked[20:37, 11:30] = True
    Image.fromarray((marked * 255).astype(np.uint8)).save(path, quality=75)
    np.testing.assert_array_equal(read_mask(path), marked)


@pytest.mark.parametrize("shape", [(64, 64), (100, 37), (20, 33), (13, 200)])
@pytest.mark.parametrize("size", [(32, 32), (33, 33), (24, 60)])
def test_resize_agrees_with_torch(shape, size):
    image = np.random.default_rng(0).random((*shape, 3), dtype=np.float32)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(image).permute(2, 0, 1)[None],
        size,
        mode="bilinear",
        antialias=True,
    )
    resized = resize_image(image, size)
    assert resized.shape == (*size, 3)
    assert resized.dtype == np.float32
    np.testing.assert_allclose(resized, expected[0].permute(1, 2, 0), atol=1e-5)


def test_resize_keeps_constants_range_and_depth():
    assert resize_image(np.full((50, 70, 3), 0.3, np.float32), (32, 32)) == pytest.approx(0.3)
    extremes = (np.random.default_rng(0).random((51, 70, 3)) > 0.5).astype(np.float32)
    resized = resize_image(extremes, (61, 61))
    assert resized.min() >= 0
    assert resized.max() <= 1
    step = np.full((8, 8, 3), 0.5, np.float32) + np.float32(1 / 65535)
    assert resize_image(step, (4, 4)) == pytest.approx(0.5 + 1 / 65535, abs=1e-7)
    same = np.random.default_rng(0).random((16, 16, 3), dtype=np.float32)
    np.testing.assert_array_equal(resize_image(same, (16, 16)), same)


def test_resize_map_agrees_with_torch_and_is_not_clipped():
    anomaly_map = np.random.default_rng(0).normal(0, 10, (7, 9)).astype(np.float32)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(anomaly_map)[None, None], (35, 80), mode="bilinear"
    )
    resized = resize_map(anomaly_map, (35, 80))
    assert resized.dtype == np.float32
    np.testing.assert_allclose(resized, expected[0, 0], atol=1e-4)


def test_png_round_trip(tmp_path):
    path = tmp_path / "image.png"
    write_png(path, RGB8.astype(np.float32) / np.float32(255))
    np.testing.assert_array_equal(read_image(path), RGB8.astype(np.float32) / 255)
    write_png(path, GREY8.astype(np.float32) / np.float32(255))
    np.testing.assert_array_equal(read_image(path), three(GREY8.astype(np.float32) / 255))
    write_png(path, MARKED)
    np.testing.assert_array_equal(read_mask(path), MARKED)
    write_png(path, np.array([[-1.0, 0.4999, 2.0]], np.float32))
    np.testing.assert_array_equal(np.asarray(Image.open(path)), [[0, 127, 255]])
    assert [entry.name for entry in tmp_path.iterdir()] == ["image.png"]


def test_write_png_names_a_file_it_cannot_write(tmp_path):
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "image.png"
    with pytest.raises(PatchGuardError, match="cannot be written") as error:
        write_png(path, MARKED)
    assert str(error.value).startswith(f"{path}: ")
