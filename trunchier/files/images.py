"""Decode images from anywhere: size checked before memory is allocated, unsafe formats refused."""

import re
import struct

import cv2
import numpy as np

MAX_PIXELS = 200_000_000  # of one image: 600 MB decoded
EXIF_REACH = 1 << 17  # bytes from the beginning of a file, within which EXIF is looked for
EXIF_DIRECTORY, EXIF_ORIENTATION = 0x8769, 274
FILM_DIAGONAL = 43.27  # mm
UNITS = {3: 10.0, 4: 1.0, 5: 0.001}  # EXIF's units of length other than the inch, mm
JPEG_2000 = (b'\0\0\0\x0cjP  \r\n\x87\n', b'\xff\x4f\xff\x51')  # OpenCV crashes on damaged ones


class ImageError(ValueError):
    """Bytes that are not decoded: not an image, damaged, too large, or of an unsafe format."""


def decode_image(
    data: bytes | np.ndarray, flags: int = cv2.IMREAD_COLOR, max_pixels: int | None = None
) -> np.ndarray:
    """Decode an image file to (H, W, 3) uint8 BGR, or as `flags` of cv2.imdecode say.

    Args:
        data: content of the file.
        max_pixels: limit of width * height; None: MAX_PIXELS of this module.

    Raises:
        ImageError: OpenCV cannot decode it; JPEG 2000; more than `max_pixels`.
    """
    check_image(data, max_pixels)
    data = np.frombuffer(data, np.uint8)
    _check_png(data.data)
    turn = _webp_turn(data.data) if flags == cv2.IMREAD_COLOR else None
    if turn is not None:  # not every OpenCV does it
        flags |= cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image = cv2.imdecode(data, flags) if data.size else None
    except (cv2.error, MemoryError) as error:
        raise ImageError(f'OpenCV cannot decode these {data.size} bytes: {error}') from error
    if image is None:
        raise ImageError(f'OpenCV cannot decode these {data.size} bytes')
    return image if turn is None else np.ascontiguousarray(turn(image))


def check_image(data: bytes | np.ndarray, max_pixels: int | None = None) -> None:
    """Raise ImageError if a decoder must not see a file that begins so; see `decode_image`."""
    data = memoryview(data).cast('B')
    if bytes(data[:12]).startswith(JPEG_2000):
        raise ImageError('JPEG 2000 is refused, its decoder is unsafe; convert to PNG or JPEG')
    limit = MAX_PIXELS if max_pixels is None else max_pixels
    width, height = declared_size(data) or (0, 0)
    if width * height > limit:
        raise ImageError(
            f'{width} x {height} pixels are above the limit of {limit} (--max-pixels, max_pixels= '
            'or MAX_PIXELS of trunchier.files.images)'
        )


def _check_png(data):
    """OpenCV allocates what the chunks declare, up to 2 GB each."""
    position = 8 if bytes(data[:4]) == b'\x89PNG' else len(data)
    while position + 12 <= len(data):
        length, kind = struct.unpack_from('>I4s', data, position)
        position += 12 + length
        if position > len(data):
            raise ImageError(f'a PNG chunk of {length} bytes in a file of {len(data)}; truncated?')
        if kind == b'IEND':
            break


def declared_size(data: bytes | memoryview) -> tuple[int, int] | None:
    """(width, height) in the header of an image file; None if it has none that is known."""
    try:
        for signature, read in HEADERS.items():
            if re.match(signature, data, re.DOTALL):
                return read(data if read in (_jpeg_size, _tiff_size) else bytes(data[:65536]))
    except (struct.error, LookupError, ValueError, AttributeError, OverflowError):
        pass  # damaged: the decoder will say so
    return None


def exif_focal(data: bytes | np.ndarray, shape: tuple[int, int]) -> float | None:
    """Focal length in pixels that the camera wrote into a photo (EXIF), or None.

    From the focal length equivalent to that of 35 mm film, whose diagonal is 43.27 mm; else from
    the focal length and the density of the sensor's pixels.

    Args:
        data: content of the image file.
        shape: (H, W) of the decoded image. Of a file whose EXIF names another aspect ratio,
            which was cropped, the focal length is not known.
    """
    data = bytes(memoryview(data)[:EXIF_REACH])
    start = data.find(b'Exif\0\0')
    if start < 0:
        return None
    from PIL import Image

    exif, sides = Image.Exif(), sorted(shape)
    try:
        exif.load(data[start:])
        tags = exif.get_ifd(EXIF_DIRECTORY)
        sensor = sorted(int(tags.get(tag) or 0) for tag in (0xA002, 0xA003))  # width, height
        if sensor[0] > 0 and abs(sensor[1] * sides[0] / (sensor[0] * sides[1]) - 1) > 0.02:
            return None
        if film := float(tags.get(0xA405) or 0):
            focal = film / FILM_DIAGONAL * float(np.hypot(*sides))
        else:  # millimeters; pixels per unit; unit: inch or as in UNITS
            focal = float(tags[0x920A]) * float(tags[0xA20E]) / UNITS.get(tags.get(0xA210), 25.4)
            focal *= sides[1] / sensor[1]
    except Exception:  # damaged: PIL raises what it likes
        return None
    return focal if 0.1 <= focal / sides[1] <= 100 else None


def is_turned(data: bytes) -> bool:
    """Whether the EXIF data of an image file say that a viewer has to turn or mirror it."""
    start = data[:EXIF_REACH].find(b'Exif\0\0')
    if start < 0:
        return False
    from PIL import Image

    exif = Image.Exif()
    try:
        exif.load(data[start:EXIF_REACH])
        return exif.get(EXIF_ORIENTATION, 1) in TURNS
    except Exception:  # damaged: PIL raises what it likes
        return False


def _jpeg_size(data):
    """From the frame header (SOF0 to SOF15, without DHT, JPG and DAC)."""
    position = 2
    for _ in range(10_000):
        marker, length = struct.unpack_from('>xBH', data, position)
        if marker == 0xFF:  # a fill byte
            position += 1
        elif marker in range(0xC0, 0xD0) and marker not in (0xC4, 0xC8, 0xCC):
            return struct.unpack_from('>HH', data, position + 5)[::-1]
        else:
            position += 2 + length
    return None


def _tiff_size(data):
    tags = _tiff_tags(data, {256, 257})
    return tags[256], tags[257]


def _tiff_tags(data, wanted):
    """{tag: value} of numbers in the first directory of a TIFF or BigTIFF."""
    order = '<' if data[:2] == b'II' else '>'
    big = 43 in (data[2], data[3])
    (start,) = struct.unpack_from(order + ('Q' if big else 'I'), data, 8 if big else 4)
    (count,) = struct.unpack_from(order + ('Q' if big else 'H'), data, start)
    first, step, value = (start + 8, 20, 12) if big else (start + 2, 12, 8)
    tags = {}
    for entry in range(first, first + step * min(count, 1000), step):
        tag, kind = struct.unpack_from(order + 'HH', data, entry)
        (tags[tag],) = struct.unpack_from(order + ('H' if kind == 3 else 'I'), data, entry + value)
        if wanted <= tags.keys():
            break
    return tags


def _webp_size(data):
    kind = data[12:16]
    if kind == b'VP8X':
        return tuple(1 + int.from_bytes(data[i : i + 3], 'little') for i in (24, 27))
    if kind == b'VP8L':
        bits = int.from_bytes(data[21:25], 'little')
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    return tuple(n & 0x3FFF for n in struct.unpack_from('<HH', data, 26))


def _webp_turn(data):
    """Function that turns a WebP image upright, by its EXIF orientation; None: it is upright."""
    if not re.match(rb'RIFF....WEBPVP8X', data, re.DOTALL):
        return None
    start = 12
    try:
        while data[start : start + 4] != b'EXIF':
            start += 8 + struct.unpack_from('<I', data, start + 4)[0]
            start += start % 2
        exif = data[start + 8 :]
        exif = exif[6:] if exif[:6] == b'Exif\0\0' else exif
        return TURNS.get(_tiff_tags(exif, {274})[274])
    except (struct.error, LookupError):
        return None


def _at(form, offset):
    return lambda data: tuple(abs(n) for n in struct.unpack_from(form, data, offset))


def _text(pattern):
    return lambda data: tuple(int(n) for n in re.search(pattern, data).groups())


def _exr_size(data):
    box = data.index(b'dataWindow\0box2i\0') + 21
    left, top, right, bottom = struct.unpack_from('<4i', data, box)
    return right - left + 1, bottom - top + 1


def _avif_size(data):
    """The largest of the parts."""
    boxes = (match.end() + 4 for match in re.finditer(b'ispe', data))
    return max((struct.unpack_from('>II', data, box) for box in boxes), key=lambda s: s[0] * s[1])


# EXIF orientation -> function that undoes it.
TURNS = {
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: image.swapaxes(0, 1),
    6: lambda image: image.swapaxes(0, 1)[:, ::-1],
    7: lambda image: image.swapaxes(0, 1)[::-1, ::-1],
    8: lambda image: image.swapaxes(0, 1)[::-1],
}
# Signature -> function from the file's beginning to (width, height).
HEADERS = {
    rb'\xff\xd8': _jpeg_size,
    rb'\x89PNG': _at('>II', 16),
    rb'GIF8': _at('<HH', 6),
    rb'BM.{12}\x0c\0\0\0': _at('<HH', 18),
    rb'BM': _at('<ii', 18),
    rb'RIFF....WEBP': _webp_size,
    rb'II[*+]\0|MM\0[*+]': _tiff_size,
    rb'P[1-6fF]\s': _text(rb'P.(?:\s|#[^\n]*\n)+(\d+)(?:\s|#[^\n]*\n)+(\d+)'),
    rb'P7\n': _text(rb'WIDTH (\d+)\nHEIGHT (\d+)'),
    rb'\x59\xa6\x6a\x95': _at('>II', 4),  # Sun raster
    rb'#\?': lambda data: _text(rb'-Y (\d+) \+X (\d+)')(data)[::-1],  # Radiance HDR
    rb'v/1\x01': _exr_size,
    rb'.{4}ftypavi[fs]': _avif_size,
}
