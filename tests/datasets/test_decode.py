from __future__ import annotations

import io
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
from dataset_images import pictures, png
from PIL import Image

from quantlab.datasets.content import UnreadableSampleError
from quantlab.datasets.decode import decode_file, decode_image

COLOR = pictures(1, (6, 9, 3))[0]
GREY = pictures(1, (6, 9))[0]


def encoded(image: Image.Image, kind: str = "png", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["png", "bmp", "tiff", "ppm"])
def test_plain_images_are_exact(kind: str) -> None:
    color, grey = (decode_image(encoded(Image.fromarray(a), kind)) for a in (COLOR, GREY))
    np.testing.assert_array_equal(color.pixels, COLOR)
    np.testing.assert_array_equal(grey.pixels, GREY[:, :, None])
    assert color.losses == grey.losses == ()


def test_the_hash_is_of_the_pixels_not_of_the_file() -> None:
    small, large = png(COLOR, 9), png(COLOR, 0)
    assert small != large
    assert decode_image(small).sha256() == decode_image(large).sha256()
    assert decode_image(small).sha256() != decode_image(png(COLOR[::-1].copy())).sha256()
    assert decode_image(png(GREY)).sha256() != decode_image(png(GREY.reshape(9, 6))).sha256()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["png", "tiff", "webp"])
def test_exif_orientation_is_applied(orientation: int, kind: str) -> None:
    # EXIF 2.3, tag 0x0112: which way the stored rows and columns run
    upright = {
        1: COLOR,
        2: COLOR[:, ::-1],
        3: COLOR[::-1, ::-1],
        4: COLOR[::-1],
        5: COLOR.transpose(1, 0, 2),
        6: np.rot90(COLOR, -1),
        7: COLOR[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(COLOR),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "webp" else {}
    got = decode_image(encoded(Image.fromarray(COLOR), kind, exif=exif, **options))
    np.testing.assert_array_equal(got.pixels, upright)
    assert got.losses == ()


def test_palette_and_bilevel_are_no_loss() -> None:
    palette = Image.fromarray(GREY).convert("P")
    palette.putpalette([value for i in range(256) for value in (i, 255 - i, 7)])
    got = decode_image(encoded(palette))
    np.testing.assert_array_equal(got.pixels, np.stack([GREY, 255 - GREY, np.full_like(GREY, 7)], 2))
    bilevel = decode_image(encoded(Image.fromarray(GREY > 128)))
    np.testing.assert_array_equal(bilevel.pixels[:, :, 0], np.where(GREY > 128, 255, 0))
    assert got.losses == bilevel.losses == ()


def test_alpha_is_composited_over_white_and_reported() -> None:
    alpha = np.full((6, 9), 255, np.uint8)
    opaque = decode_image(encoded(Image.fromarray(np.dstack([COLOR, alpha]))))
    np.testing.assert_array_equal(opaque.pixels, COLOR)
    assert opaque.losses == ()
    alpha[:, :4] = 0
    clear = decode_image(encoded(Image.fromarray(np.dstack([COLOR, alpha]))))
    np.testing.assert_array_equal(clear.pixels[:, 4:], COLOR[:, 4:])
    assert (clear.pixels[:, :4] == 255).all()
    assert clear.losses == ("transparency composited over white",)


def test_grey_alpha_stays_grey() -> None:
    alpha = np.where(GREY > 99, 255, 0).astype(np.uint8)
    image = Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(alpha)])
    got = decode_image(encoded(image))
    np.testing.assert_array_equal(got.pixels[:, :, 0], np.where(GREY > 99, GREY, 255))
    assert got.losses == ("transparency composited over white",)


def test_transparent_palette_entry_is_white() -> None:
    palette = Image.fromarray(np.array([[0, 1]], np.uint8)).convert("P")
    palette.putpalette([10, 20, 30, 40, 50, 60])
    got = decode_image(encoded(palette, transparency=b"\x00\xff"))
    assert got.pixels[0, 0].tolist() == [255, 255, 255]
    assert got.losses == ("transparency composited over white",)


def test_cmyk_is_converted_and_reported() -> None:
    image = Image.fromarray(COLOR).convert("CMYK")
    got = decode_image(encoded(image, "tiff"))
    np.testing.assert_array_equal(got.pixels, np.asarray(image.convert("RGB")))
    assert got.losses == ("CMYK converted to RGB",)


@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_16_bits_are_scaled_not_clipped(kind: str) -> None:
    wide = np.linspace(0, 65535, 54).astype(np.uint16).reshape(6, 9)
    got = decode_image(encoded(Image.fromarray(wide), kind))
    np.testing.assert_array_equal(got.pixels[:, :, 0], np.round(wide / 257.0))
    assert got.pixels.max() == 255
    assert got.losses == ("16 bits a channel reduced to 8",)


def test_16_bit_color_is_reported() -> None:
    # Pillow cannot write it: a 1 x 1 RGB PNG of bit depth 16 by hand
    import struct
    import zlib

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
    row = b"\0" + struct.pack(">HHH", 0xFF00, 0x8000, 0x0100)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")
    got = decode_image(data)
    assert got.pixels.tolist() == [[[255, 128, 1]]]
    assert got.losses == ("16 bits a channel reduced to 8",)


def test_32_bit_and_float_images_have_no_meaning() -> None:
    wide = Image.fromarray(np.array([[0, 1_000_000]], np.int32))
    with pytest.raises(UnreadableSampleError, match=r"beyond 0\.\.65535"):
        decode_image(encoded(wide, "tiff"))
    with pytest.raises(UnreadableSampleError, match="floating-point"):
        decode_image(encoded(Image.fromarray(np.zeros((2, 2), np.float32)), "tiff"))


def test_first_frame_of_an_animation_is_reported() -> None:
    frames = [Image.fromarray(frame) for frame in pictures(3, (6, 9))]
    got = decode_image(encoded(frames[0], "gif", save_all=True, append_images=frames[1:]))
    assert got.pixels.shape[:2] == (6, 9)
    assert got.losses == ("only the first frame is used",)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"hello, world", "not an image"),
        (png(pictures(1, (64, 64, 3))[0])[:-2000], "damaged"),
        (encoded(Image.fromarray(pictures(1, (64, 64, 3))[0]), "jpeg")[:-500], "damaged"),
        (png(COLOR)[:20], "damaged|not an image"),
    ],
    ids=["empty", "text", "short png", "short jpeg", "header only"],
)
def test_broken_files_are_unreadable(data: bytes, reason: str) -> None:
    with pytest.raises(UnreadableSampleError, match=reason):
        decode_image(data)


@pytest.mark.parametrize("size", [12, 7])  # Pillow raises beyond twice its limit and warns below
def test_decompression_bombs_are_refused(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 36)
    assert decode_image(png(pictures(1, (6, 6))[0])).losses == ()
    with pytest.raises(UnreadableSampleError, match="safety limit of 36"):
        decode_image(png(pictures(1, (size, size))[0]))


def test_pillow_does_not_warn_from_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 36)
    data = png(pictures(1, (7, 7))[0])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")

        def work() -> None:
            with pytest.raises(UnreadableSampleError):
                decode_image(data)

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert caught == []


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "näme with\nnewline.jpg"  # a PNG in spite of its suffix
    path.write_bytes(png(COLOR))
    np.testing.assert_array_equal(decode_file(path).pixels, COLOR)
    with pytest.raises(UnreadableSampleError, match="no such file"):
        decode_file(tmp_path / "absent.png")
    with pytest.raises(UnreadableSampleError, match="folder"):
        decode_file(tmp_path)
