"""Every kind of image that a data set may hold, as a real file's bytes."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from degla_ray.schema import RejectReason
from degla_ray.sources.base import Refusal
from degla_ray.sources.images import CheckedImage, check_and_convert
from tests.fixtures_sources import decode, encode, noise

LIMIT = 1_000_000


def good(data: bytes, short_side: int | None = None) -> CheckedImage:
    result = check_and_convert(data, LIMIT, short_side)
    assert isinstance(result, CheckedImage), result
    image = decode(result.data)
    assert image.size == (result.width, result.height)
    assert image.mode in ("RGB", "L")
    assert image.getexif().get(0x0112, 1) == 1
    return result


def refused(data: bytes, max_pixels: int = LIMIT) -> Refusal:
    result = check_and_convert(data, max_pixels, None)
    assert isinstance(result, Refusal), result
    return result


def difference(a: Image.Image, b: Image.Image) -> float:
    """Mean absolute difference in grey levels of 255."""
    return float(np.abs(np.asarray(a, float) - np.asarray(b, float)).mean())


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_image_plain_keeps_its_bytes(kind: str) -> None:
    data = encode(noise(), kind)
    assert good(data).data == data


def test_image_grey_jpeg_keeps_its_bytes() -> None:
    data = encode(noise().convert("L"))
    assert good(data).data == data


def test_image_jpeg_with_trailing_bytes_keeps_its_bytes() -> None:
    data = encode(noise()) + b"\r\nappended by a camera"
    assert good(data).data == data


@pytest.mark.parametrize("kind", ["BMP", "TIFF", "PPM", "GIF"])
def test_image_other_lossless_format_becomes_png_with_the_same_pixels(kind: str) -> None:
    source = noise() if kind != "GIF" else noise().quantize(16)
    result = good(encode(source, kind))
    assert decode(result.data).format == "PNG"
    assert difference(decode(result.data).convert("RGB"), source.convert("RGB")) == 0


def test_image_cmyk_jpeg_becomes_rgb_jpeg() -> None:
    data = encode(noise().convert("CMYK"), quality=95)
    assert decode(data).mode == "CMYK"
    result = decode(good(data).data)
    assert (result.format, result.mode) == ("JPEG", "RGB")
    assert difference(result, noise()) < 4


def test_image_16_bit_grey_keeps_its_tones() -> None:
    ramp_HW = np.linspace(0, 65535, 64, dtype=np.uint16)[None].repeat(8, 0)
    for kind in ("PNG", "TIFF"):
        result = decode(good(encode(Image.fromarray(ramp_HW), kind)).data)
        assert result.mode == "RGB"
        grey_HW = np.asarray(result, float)[..., 0]
        assert np.abs(grey_HW - ramp_HW / 257).max() <= 1


def test_image_16_bit_rgb_png_becomes_8_bit() -> None:
    rgb_HWC = (np.arange(4 * 4 * 3) * 1000).reshape(4, 4, 3).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in rgb_HWC)

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    result = good(data).data
    assert result[24] == 8  # bits a channel, in the PNG header
    assert np.abs(np.asarray(decode(result), float) - rgb_HWC / 257).max() <= 1


def test_image_float_tiff_is_scaled_from_unit_range() -> None:
    ramp_HW = np.linspace(0, 1, 32, dtype=np.float32)[None].repeat(4, 0)
    result = decode(good(encode(Image.fromarray(ramp_HW), "TIFF")).data)
    assert np.abs(np.asarray(result, float)[..., 0] - ramp_HW * 255).max() <= 0.5


def test_image_palette_png_becomes_rgb_with_the_same_colours() -> None:
    palette = noise().quantize(32)
    result = decode(good(encode(palette, "PNG")).data)
    assert (result.format, result.mode) == ("PNG", "RGB")
    assert difference(result, palette.convert("RGB")) == 0


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_image_with_alpha_lies_on_white(kind: str, mode: str) -> None:
    image = Image.new(mode, (20, 20), (0,) * len(mode))  # black, all of it transparent
    result = decode(good(encode(image, kind, lossless=True)).data)
    assert result.getpixel((5, 5)) == (255, 255, 255)


def test_image_half_transparent_pixel_is_mixed_with_white() -> None:
    image = Image.new("RGBA", (8, 8), (255, 0, 0, 128))
    assert decode(good(encode(image, "PNG")).data).getpixel((0, 0)) == (255, 127, 127)


def test_image_palette_with_transparent_entry_lies_on_white() -> None:
    image = Image.new("P", (8, 8), 0)
    image.putpalette([10, 20, 30] + [0] * 765)
    assert decode(good(encode(image, "PNG", transparency=0)).data).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("orientation", range(2, 9))
def test_image_exif_orientation_is_applied_once(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = noise(48, 32)
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(undo[orientation])
    result = good(encode(stored, quality=95, exif=exif))
    assert (result.width, result.height) == (48, 32)
    assert difference(decode(result.data), upright) < 3


def test_image_with_broken_exif_is_kept() -> None:
    data = encode(noise(), exif=b"Exif\0\0II*\0\xff\xff\xff\xff\xff\xff")
    assert good(data).data == data


@pytest.mark.parametrize(("short_side", "size"), [(15, (20, 15)), (30, (40, 30)), (200, (40, 30))])
def test_image_short_side_scales_down_and_never_up(short_side: int, size: tuple[int, int]) -> None:
    data = encode(noise(40, 30))
    result = good(data, short_side)
    assert (result.width, result.height) == size
    assert (result.data == data) == (size == (40, 30))


def test_image_short_side_of_a_large_turned_jpeg_is_right() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = noise(300, 801)
    data = encode(upright.transpose(Image.Transpose.ROTATE_90), quality=95, exif=exif)
    result = good(data, 32)
    assert (result.width, result.height) == (32, 85)
    assert difference(decode(result.data), upright.resize((32, 85), Image.Resampling.BICUBIC)) < 4


def test_image_short_side_of_a_png_stays_lossless() -> None:
    assert decode(good(encode(noise(), "PNG"), 10).data).format == "PNG"


def test_image_same_bytes_twice() -> None:
    data = encode(noise(400, 300).convert("CMYK"))
    assert good(data, 64).data == good(data, 64).data


def test_image_phone_image_with_two_views_is_no_animation() -> None:
    data = encode(noise(), "MPO", save_all=True, append_images=[noise(seed=1)])
    assert decode(data).format == "MPO"
    assert good(data).data == data


def test_image_empty_file_is_zero_byte() -> None:
    assert refused(b"").reason is RejectReason.ZERO_BYTE


@pytest.mark.parametrize("data", [b"not an image at all", b"<html>404</html>", b"\0" * 1000])
def test_image_of_something_else_is_unreadable(data: bytes) -> None:
    assert refused(data).reason is RejectReason.UNREADABLE


def test_image_postscript_is_not_run() -> None:
    data = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\nshowpage\n%%EOF\n"
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == "EPS"  # Pillow would
    assert refused(data).reason is RejectReason.UNREADABLE


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_image_cut_off_is_truncated(kind: str, share: float) -> None:
    data = encode(noise(120, 90), kind)
    reason = refused(data[: int(len(data) * share)]).reason
    # An AVIF cut before its image data has nothing by which to know it.
    assert reason is RejectReason.TRUNCATED or (kind == "AVIF" and reason is RejectReason.UNREADABLE)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF"])
def test_image_cut_in_its_header_is_truncated(kind: str) -> None:
    assert refused(encode(noise(), kind)[:16]).reason is RejectReason.TRUNCATED


def test_image_with_damaged_pixels_is_unreadable() -> None:
    data = bytearray(encode(noise(), "PNG"))
    place = data.index(b"IDAT") + 20
    data[place : place + 40] = b"\xaa" * 40
    assert refused(bytes(data)).reason is RejectReason.UNREADABLE


def test_image_claiming_many_pixels_is_oversized_before_it_is_decoded() -> None:
    data = bytearray(encode(noise(), "PNG"))
    data[16:24] = struct.pack(">II", 60_000, 60_000)  # 3.6 Gpx: decoding it would need 10 GB
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    assert refused(bytes(data)).reason is RejectReason.OVERSIZED
    assert refused(bytes(data), max_pixels=89_478_485).reason is RejectReason.OVERSIZED


def test_image_at_the_pixel_limit_is_kept_and_one_over_is_oversized() -> None:
    data = encode(noise(40, 30))
    assert isinstance(check_and_convert(data, 1200, None), CheckedImage)
    assert refused(data, max_pixels=1199).reason is RejectReason.OVERSIZED


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_image_of_several_frames_is_animated(kind: str) -> None:
    data = encode(noise(), kind, save_all=True, append_images=[noise(seed=1), noise(seed=2)])
    assert refused(data).reason is RejectReason.ANIMATED


def test_image_limit_above_pillows_own_is_obeyed() -> None:
    data = encode(Image.new("1", (20_000, 9_000)), "PNG")  # 180 million pixels; Pillow refuses 179 million
    before = Image.MAX_IMAGE_PIXELS
    good = check_and_convert(data, 200_000_000, 64)
    assert not isinstance(good, Refusal), good
    assert (good.width, good.height) == (142, 64)
    refused = check_and_convert(data, 179_999_999, 64)
    assert isinstance(refused, Refusal)
    assert refused.detail == "20000x9000 is more than 179999999 pixels"
    assert before == Image.MAX_IMAGE_PIXELS
