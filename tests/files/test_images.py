"""Images are decoded below a limit of pixels, told by the header; JPEG 2000 never is."""

import io
import struct
import zlib

import cv2
import numpy as np
import PIL.Image
import pytest

from trunchier.files.images import ImageError, declared_size, decode_image, exif_focal

PICTURE = np.random.default_rng(0).integers(0, 256, (37, 53, 3), np.uint8)
FORMATS = {
    **dict.fromkeys(['.png', '.jpg', '.bmp', '.webp', '.tif', '.ppm', '.pam', '.ras'], PICTURE),
    **dict.fromkeys(['.pgm', '.pbm'], PICTURE[:, :, 0].copy()),
    **dict.fromkeys(['.hdr', '.pfm'], PICTURE.astype(np.float32)),
}


def encoded(suffix, picture=PICTURE):
    return cv2.imencode(suffix, picture)[1].tobytes()


@pytest.mark.parametrize('suffix', FORMATS)
def test_the_declared_size_is_that_of_the_decoded_image(suffix):
    data = encoded(suffix, FORMATS[suffix])
    assert declared_size(data) == (53, 37)
    assert decode_image(data).shape == (37, 53, 3)


@pytest.mark.parametrize('suffix', FORMATS)
def test_an_image_above_the_limit_is_refused(suffix):
    data = encoded(suffix, FORMATS[suffix])
    with pytest.raises(ImageError, match=r'53 x 37 pixels are above the limit of 1960 .*MAX_PIXEL'):
        decode_image(data, max_pixels=53 * 37 - 1)
    assert decode_image(data, max_pixels=53 * 37) is not None


@pytest.mark.parametrize('extended', [b'VP8X', b'VP8L'])
def test_sizes_of_extended_and_lossless_webp(extended):
    head = b'RIFF\0\0\0\0WEBP' + extended + b'\x0a\0\0\0'
    if extended == b'VP8X':
        head += b'\0\0\0\0' + (52).to_bytes(3, 'little') + (36).to_bytes(3, 'little')
    else:
        head += b'\x2f' + (52 | 36 << 14).to_bytes(4, 'little')
    assert declared_size(head) == (53, 37)


def test_the_frame_header_of_a_jpeg_is_found_behind_long_metadata():
    data = encoded('.jpg')
    comment = b'\xff\xfe' + struct.pack('>H', 65535) + bytes(65533)
    assert declared_size(data[:2] + 3 * comment + b'\xff\xff' + data[2:]) == (53, 37)


def test_sizes_of_formats_that_this_opencv_may_not_write():
    avif = b'\0\0\0\x1cftypavif' + bytes(40) + b'ispe\0\0\0\0' + struct.pack('>II', 53, 37)
    exr = b'v/1\x01' + bytes(9) + b'dataWindow\0box2i\0' + struct.pack('<5i', 16, 1, 2, 53, 38)
    bmp = b'BM' + bytes(12) + b'\x0c\0\0\0' + struct.pack('<HH', 53, 37)
    gif = b'GIF89a' + struct.pack('<HH', 53, 37)
    bigtiff = b'MM\0+' + struct.pack('>HHQQ', 8, 0, 16, 2)
    for tag, size in ((256, 53), (257, 37)):
        bigtiff += struct.pack('>HHQHHI', tag, 3, 1, size, 0, 0)
    assert [declared_size(data) for data in (avif, exr, bmp, gif, bigtiff)] == [(53, 37)] * 5


def test_a_huge_image_of_few_bytes_is_refused_before_it_is_decoded():
    def chunk(name, content):
        return (
            struct.pack('>I', len(content))
            + name
            + content
            + struct.pack('>I', zlib.crc32(name + content))
        )

    header = struct.pack('>IIBBBBB', 20_000, 20_000, 8, 2, 0, 0, 0)
    data = b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IEND', b'')
    with pytest.raises(ImageError, match='20000 x 20000 pixels are above the limit'):
        decode_image(data)


@pytest.mark.parametrize(
    'start', [b'\0\0\0\x0cjP  \r\n\x87\n', b'\xff\x4f\xff\x51'], ids=['jp2', 'codestream']
)
def test_jpeg_2000_is_refused_whatever_the_file_is_called(start):
    with pytest.raises(ImageError, match='JPEG 2000 is refused'):
        decode_image(start + bytes(100))


@pytest.mark.parametrize('data', [b'', b'\x89PNG', b'\xff\xd8\xff', b'not an image' * 9, b'II*\0'])
def test_what_is_no_image_is_an_image_error(data):
    with pytest.raises(ImageError, match='OpenCV cannot decode'):
        decode_image(data)


@pytest.mark.parametrize('length', [0x7FFFFFF0, 0xFFFFFFFF, 5000])
def test_a_png_whose_chunks_exceed_the_file_is_refused_before_they_are_allocated(length):
    data = cv2.imencode('.png', np.zeros((23, 31, 3), np.uint8))[1].tobytes()
    start = data.index(b'IDAT') - 4
    data = data[:start] + length.to_bytes(4, 'big') + data[start + 4 :]
    with pytest.raises(ImageError, match=f'a PNG chunk of {length} bytes in a file of {len(data)}'):
        decode_image(data)


def test_bytes_after_the_end_of_a_png_do_not_matter():
    image = np.arange(23 * 31 * 3, dtype=np.uint8).reshape(23, 31, 3)
    data = cv2.imencode('.png', image)[1].tobytes() + b'\xff' * 100
    np.testing.assert_array_equal(decode_image(data), image)


# --- focal length by EXIF ------------------------------------------------------------------------
DIRECTORY, FILM, LENGTH, DENSITY, UNIT, WIDTH, HEIGHT = (
    0x8769, 0xA405, 0x920A, 0xA20E, 0xA210, 0xA002, 0xA003,
)  # fmt: skip


@pytest.mark.parametrize(
    'tags, expected',
    [
        ({FILM: 26}, 26 / 43.27 * 500),
        ({FILM: 26, WIDTH: 4000, HEIGHT: 3000}, 26 / 43.27 * 500),
        ({FILM: 26, WIDTH: 3000, HEIGHT: 4000}, 26 / 43.27 * 500),  # turned upright
        ({FILM: 26, WIDTH: 4000, HEIGHT: 2000}, None),  # cropped
        ({LENGTH: 50.0, DENSITY: 4438.36, UNIT: 2, WIDTH: 4000, HEIGHT: 3000}, 873.7),
        ({LENGTH: 50.0, DENSITY: 1747.4, UNIT: 3, WIDTH: 4000, HEIGHT: 3000}, 873.7),
        ({LENGTH: 50.0}, None),
        ({FILM: 0}, None),
        ({FILM: 60000}, None),
        ({}, None),
    ],
)
def test_the_focal_length_of_a_photo_is_read(tags, expected):
    """Of 400 x 300 pixels; 50 mm on a sensor of 22.9 mm and 4000 pixels is 8737 pixels."""
    exif = PIL.Image.Exif()
    exif.get_ifd(DIRECTORY).update(tags)
    file = io.BytesIO()
    PIL.Image.new('RGB', (400, 300)).save(file, 'jpeg', exif=exif)
    found = exif_focal(file.getvalue(), (300, 400))
    assert found == (expected if expected is None else pytest.approx(expected, rel=1e-3))


def test_damaged_exif_data_has_no_focal_length():
    exif = PIL.Image.Exif()
    exif.get_ifd(DIRECTORY).update({FILM: 26, LENGTH: 5.0})
    file = io.BytesIO()
    PIL.Image.new('RGB', (40, 30)).save(file, 'jpeg', exif=exif)
    data, rng, found = bytearray(file.getvalue()), np.random.default_rng(0), set()
    for _ in range(300):
        broken = data.copy()
        for position in rng.integers(20, 120, 3):
            broken[position] = rng.integers(256)
        found.add(exif_focal(broken[: rng.integers(20, len(data))], (30, 40)))
    assert None in found and all(focal is None or 4 <= focal <= 4000 for focal in found)
