"""Every image mode, written to a real file, decodes to the RGB bytes it shows."""

import struct
import sys
import zlib
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image, TiffImagePlugin

from uhkd.data import formats
from uhkd.data.decode import decode_file, from_any, from_pil, header_size
from uhkd.data.formats import endings, is_image_name

RGB = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
GREY = RGB[..., 0]


def decoded(tmp_path, image, name="image.png", **options):
    image.save(tmp_path / name, **options)
    result = decode_file(tmp_path / name)
    assert result.dtype == torch.uint8
    assert result.is_contiguous()
    return result.permute(1, 2, 0).numpy()


def test_rgb_keeps_its_bytes(tmp_path):
    for name in ("a.png", "a.BMP", "a.tif", "a.tiff", "a.ppm", "a.PNG"):
        assert np.array_equal(decoded(tmp_path, Image.fromarray(RGB), name), RGB)
    assert np.array_equal(decoded(tmp_path, Image.fromarray(RGB), "a.webp", lossless=True), RGB)


def test_jpeg_is_close(tmp_path):
    smooth = np.broadcast_to(np.linspace(0, 255, 32).astype(np.uint8)[:, None, None], (32, 32, 3))
    result = decoded(tmp_path, Image.fromarray(np.ascontiguousarray(smooth)), "a.jpg", quality=95)
    assert np.abs(result.astype(int) - smooth).max() < 12


def test_grey_is_repeated_over_the_channels(tmp_path):
    for name in ("a.png", "a.pgm"):
        assert np.array_equal(decoded(tmp_path, Image.fromarray(GREY), name), np.repeat(GREY[..., None], 3, axis=2))


def test_black_and_white_becomes_0_and_255(tmp_path):
    bits = GREY > 127
    assert np.array_equal(decoded(tmp_path, Image.fromarray(bits))[..., 1], bits * 255)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_16_bit_grey_is_scaled_to_8(tmp_path, name):
    deep = np.linspace(0, 65535, 54).round().astype(np.uint16).reshape(6, 9)
    result = decoded(tmp_path, Image.fromarray(deep), name)
    assert result.min() == 0
    assert result.max() == 255
    assert np.abs(result[..., 0] - deep / 257).max() <= 0.5 + 1e-9


@pytest.mark.parametrize(("dtype", "white"), [(np.int32, 255), (np.int32, 65535), (np.float32, 1), (np.float32, 255)])
def test_deep_tiff_uses_the_scale_that_holds_its_values(tmp_path, dtype, white):
    values = np.linspace(0, white, 54).reshape(6, 9).astype(dtype)
    result = decoded(tmp_path, Image.fromarray(values), "a.tif")
    assert np.abs(result[..., 0] - values * (255 / white)).max() <= 0.5 + 1e-4


def test_palette(tmp_path):
    image = Image.fromarray(RGB).quantize(16)
    assert np.array_equal(decoded(tmp_path, image), np.asarray(image.convert("RGB")))
    assert np.array_equal(decoded(tmp_path, image, "a.gif"), np.asarray(image.convert("RGB")))


def test_palette_transparency_is_white(tmp_path):
    image = Image.fromarray(np.array([[0, 1], [1, 0]], dtype=np.uint8)).convert("P")
    image.putpalette([10, 20, 30, 200, 100, 50])
    for name in ("a.png", "a.gif"):
        result = decoded(tmp_path, image, name, transparency=1)
        assert result[0, 0].tolist() == [10, 20, 30]
        assert result[0, 1].tolist() == [255, 255, 255]


def test_palette_with_graded_transparency_blends(tmp_path):
    image = Image.fromarray(np.array([[0, 1]], dtype=np.uint8)).convert("P")
    image.putpalette([0, 0, 0, 200, 100, 50])
    result = decoded(tmp_path, image, transparency=bytes([128, 255]))
    assert np.abs(result[0, 0].astype(int) - 127).max() <= 1
    assert result[0, 1].tolist() == [200, 100, 50]


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_composited_on_white(tmp_path, mode):
    colour = {"RGBA": (100, 40, 0), "LA": (100,)}[mode]
    image = Image.new(mode, (3, 1))
    for x, alpha in enumerate((0, 128, 255)):
        image.putpixel((x, 0), (*colour, alpha))
    result = decoded(tmp_path, image)[0].astype(int)
    shown = np.array(colour if len(colour) == 3 else colour * 3)
    assert result[0].tolist() == [255] * 3
    assert np.abs(result[1] - (shown * 128 + 255 * 127) / 255).max() <= 1
    assert np.array_equal(result[2], shown)


def test_transparent_colour_of_an_rgb_png_is_white(tmp_path):
    image = Image.new("RGB", (2, 1), (1, 2, 3))
    image.putpixel((1, 0), (9, 9, 9))
    assert decoded(tmp_path, image, transparency=(1, 2, 3))[0].tolist() == [[255] * 3, [9] * 3]


@pytest.mark.parametrize("name", ["a.tif", "a.jpg"])
def test_cmyk(tmp_path, name):
    result = decoded(tmp_path, Image.new("CMYK", (8, 8), (255, 0, 0, 0)), name)
    assert result[..., 0].max() < 10
    assert result[..., 1:].min() > 245


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    result = decoded(tmp_path, Image.fromarray(RGB), exif=exif)
    expected = {
        1: RGB,
        2: RGB[:, ::-1],
        3: RGB[::-1, ::-1],
        4: RGB[::-1],
        5: RGB.swapaxes(0, 1),
        6: RGB.swapaxes(0, 1)[:, ::-1],
        7: RGB.swapaxes(0, 1)[::-1, ::-1],
        8: RGB.swapaxes(0, 1)[::-1],
    }[orientation]
    assert np.array_equal(result, expected)
    assert header_size(tmp_path / "image.png") == expected.shape[:2]


def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert decode_file(tmp_path / "a.gif")[:, 0, 0].tolist() == [255, 0, 0]


def tiff(shape, photometric, extra=()):
    """Return a TIFF file of (height, width, samples) bytes that count up, as tifffile or rasterio write it."""
    directory = TiffImagePlugin.ImageFileDirectory_v2()
    height, width, samples = shape
    tags = {256: width, 257: height, 258: (8,) * samples, 259: 1, 262: photometric, 277: samples, 278: height}
    tags |= {273: 0, 279: height * width * samples} | ({338: extra} if extra else {})
    for tag, value in tags.items():
        directory[tag] = value
    content = np.arange(height * width * samples, dtype=np.uint8).tobytes()
    return b"II*\0" + struct.pack("<I", 8) + directory.tobytes(8) + content


@pytest.mark.parametrize(
    ("shape", "photometric", "extra", "found"),
    [
        ((4, 6, 3), 2, (), None),
        ((4, 6, 4), 2, (2,), None),  # transparency
        ((4, 6, 4), 5, (), None),  # CMYK
        ((4, 6, 4), 2, (0,), "4 channels"),
        ((4, 6, 4), 2, (), "4 channels"),
        ((4, 6, 5), 2, (0, 0), "5 channels"),
        ((4, 6, 5), 2, (2, 0), "5 channels"),
        ((4, 6, 4), 1, (0, 0, 0), "4 channels"),
        ((4, 6, 13), 1, (0,) * 12, "13 channels"),
        ((4, 6, 2), 1, (0,), "2 channels"),
        ((4, 6, 5), 5, (0,), "5 channels"),
    ],
)
def test_no_channel_of_a_tiff_is_left_out_in_silence(tmp_path, shape, photometric, extra, found):
    path = tmp_path / "a.tif"
    path.write_bytes(tiff(shape, photometric, extra))
    if found is None:
        assert decode_file(path).shape == (3, 4, 6)
        return
    with pytest.raises(
        ValueError, match=rf"a\.tif cannot be decoded \(it has {found}, and images are read as grey or RGB"
    ):
        decode_file(path)


def test_16_bit_rgb_is_scaled_and_not_clipped(tmp_path):
    deep = np.linspace(0, 65535, 54).round().astype(">u2").reshape(6, 3, 3)
    rows = b"".join(b"\0" + row.tobytes() for row in deep)

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 3, 6, 16, 2, 0, 0, 0))
    png = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    (tmp_path / "deep.png").write_bytes(png)
    result = decode_file(tmp_path / "deep.png").permute(1, 2, 0).numpy()
    assert np.abs(result - deep / 257).max() <= 1


@pytest.mark.parametrize("damage", ["text", "empty", "truncated", "missing"])
@pytest.mark.parametrize("name", ["bad.jpg", "bad.png"])
def test_damaged_files_are_named_in_one_line(tmp_path, name, damage):
    path = tmp_path / name
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    whole = path.read_bytes()
    path.write_bytes({"text": b"not an image", "empty": b"", "truncated": whole[: len(whole) // 2]}.get(damage, whole))
    if damage == "missing":
        path.unlink()
    with pytest.raises(ValueError, match="--skip-bad-images") as raised:
        decode_file(path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


CHW = torch.from_numpy(np.ascontiguousarray(RGB.transpose(2, 0, 1)))


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(RGB),
        RGB,
        RGB.astype(np.int64),
        RGB.astype(np.float32) / 255,
        RGB.astype(np.uint16) * 257,
        CHW,
        CHW.float() / 255,
        CHW.permute(1, 2, 0),
        CHW.numpy(),
    ],
    ids=lambda image: f"{type(image).__name__}-{getattr(image, 'dtype', '')}",
)
def test_user_images_of_every_kind_give_the_same_bytes(image):
    assert torch.equal(from_any(image), CHW)


@pytest.mark.parametrize("image", [GREY, GREY[..., None], torch.from_numpy(GREY)[None], Image.fromarray(GREY)])
def test_user_grey_images(image):
    assert torch.equal(from_any(image), torch.from_numpy(GREY).expand(3, -1, -1))


def test_square_three_pixel_images_follow_their_types_convention():
    cube = np.arange(27, dtype=np.uint8).reshape(3, 3, 3)
    assert np.array_equal(from_any(torch.from_numpy(cube)).numpy(), cube)
    assert np.array_equal(from_any(cube).numpy(), cube.transpose(2, 0, 1))


def test_result_does_not_share_memory_with_the_users_image():
    mine = CHW.clone()
    from_any(mine).zero_()
    assert torch.equal(mine, CHW)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("a path", "must be a Pillow image, a tensor or an array, found str"),
        (np.zeros((5, 6, 2), np.uint8), r"1 or 3 channels, found 2 channels, shape \(5, 6, 2\)"),
        (np.zeros((5, 6, 4), np.uint8), r"found 4 channels, shape \(5, 6, 4\): choose three of them"),
        (torch.zeros(13, 64, 64), r"found 13 channels, shape \(13, 64, 64\)"),
        (Image.new("RGBX", (4, 4)), "it has 4 channels, and the last is no transparency"),
        (np.zeros((0, 5, 3), np.uint8), r"shape \(0, 5, 3\)"),
        (torch.full((3, 4, 4), -2.0), "found float32 from -2 to -2: remove a normalising transform"),
        (torch.full((3, 4, 4), float("nan")), "remove a normalising transform"),
        (np.full((4, 4, 3), 256), "integers in 0..255"),
    ],
)
def test_unsuitable_user_images_are_explained(image, message):
    with pytest.raises(ValueError, match=message):
        from_any(image)


def test_broken_exif_does_not_hide_whole_pixels():
    image = Image.fromarray(RGB)
    image.info["exif"] = b"Exif\x00\x00II*\x00broken"
    assert torch.equal(from_pil(image), CHW)


WRITTEN = (
    *("avif", "blp", "bmp", "dds", "dib", "gif", "icns", "ico", "j2k", "jfif", "jp2", "jpe", "jpg"),
    *("mpo", "msp", "pbm", "pcx", "png", "pnm", "qoi", "rgb", "tga", "tiff", "webp"),
)


@pytest.mark.parametrize("ending", WRITTEN)
def test_a_format_is_recognised_by_content(tmp_path, ending):
    mode, colour = {"blp": ("P", 1), "msp": ("1", 1)}.get(ending, ("RGB", (200, 100, 50)))
    image = Image.new(mode, (16, 16), colour)
    if mode == "P":
        image.putpalette([0, 0, 0, 200, 100, 50])
    image.save(tmp_path / f"a.{ending}")
    (tmp_path / f"a.{ending}").rename(tmp_path / "a.txt")
    expected = (255, 255, 255) if mode == "1" else (200, 100, 50)
    assert np.abs(decode_file(tmp_path / "a.txt")[:, 8, 8].numpy().astype(int) - expected).max() <= 3
    assert is_image_name(f"A.{ending.upper()}")


def test_formats_that_are_not_read():
    assert not endings() & {"eps", "ps", "pdf", "wmf", "emf", "iim", "mpg", "h5", "grib", "npy", "json", "txt", "svg"}
    assert not is_image_name("LICENSE")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"<!DOCTYPE html>", "its content is an HTML page"),
        (b"%PDF-1.7", "its content is a PDF document"),
        (b"\x00" * 200, "of no image format that can be read"),
        (b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic", "HEIC needs the package pillow-heif"),
    ],
)
def test_content_that_is_no_image_is_named(tmp_path, content, reason):
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(ValueError, match=rf"a\.jpg cannot be decoded \(.*{reason}"):
        decode_file(tmp_path / "a.jpg")


def test_heic_is_read_by_its_plugin(tmp_path, monkeypatch):
    """A stand-in for pillow-heif: it registers a reader, as the package does."""
    plugin = ModuleType("pillow_heif")

    def register() -> None:
        Image.register_open(
            "HEIF", lambda file, name: Image.new("RGB", (3, 2), "red"), lambda start: start[4:12] == b"ftypheic"
        )
        Image.register_extension("HEIF", ".heic")

    plugin.register_heif_opener = register  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "pillow_heif", plugin)
    Image.init()
    for name in ("OPEN", "EXTENSION"):
        monkeypatch.setattr(Image, name, dict(getattr(Image, name)))
    monkeypatch.setattr(Image, "ID", list(Image.ID))
    caches = (formats._readers, formats.endings)
    for cached in caches:
        cached.cache_clear()
    try:
        (tmp_path / "a.heic").write_bytes(b"\x00\x00\x00\x18ftypheic")
        assert decode_file(tmp_path / "a.heic").shape == (3, 2, 3)
        assert is_image_name("a.heic")
    finally:
        for cached in caches:
            cached.cache_clear()


def test_the_bound_on_pixels_holds_for_the_image_in_an_icon(tmp_path, monkeypatch):
    Image.new("RGB", (32, 32)).save(tmp_path / "a.ico", sizes=[(32, 32)])
    content = bytearray((tmp_path / "a.ico").read_bytes())
    content[6:8] = bytes((4, 4))  # the directory promises 4 x 4
    (tmp_path / "a.ico").write_bytes(content)
    monkeypatch.setenv("UHKD_MAX_PIXELS", "100")
    with (
        pytest.warns(UserWarning, match="not the expected size"),
        pytest.raises(ValueError, match="32 x 32 pixels, more than"),
    ):
        decode_file(tmp_path / "a.ico")


def test_floats_of_a_pfm_have_the_scale_that_holds_them(tmp_path):
    Image.fromarray(np.full((2, 4), 0.4, np.float32)).save(tmp_path / "a.pfm")
    assert decode_file(tmp_path / "a.pfm")[:, 0, 0].tolist() == [102] * 3
