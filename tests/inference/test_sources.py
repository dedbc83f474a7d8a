"""Every kind of input gives upright BGR frames in order, or an error that says what to do."""

import functools
import http.server
import socket
import threading
from types import SimpleNamespace

import av
import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from small_models import noise, write_clip

from trunchier.inference import sources


def frames(given):
    return [frame for source in sources.find(given) for frame in sources.read(source)]


def only(given):
    (frame,) = frames(given)
    return frame.image


@pytest.fixture
def image():
    return noise(37, 51)


# --- sources --------------------------------------------------------------------------------------
def test_a_folder_gives_its_images_and_videos_in_natural_order(tmp_path, image):
    for name in ('frame10.png', 'frame2.png', 'frame1.png'):
        cv2.imwrite(str(tmp_path / name), image)
    (tmp_path / 'notes.txt').write_text('no image')
    (tmp_path / 'folder.png').mkdir()
    write_clip(tmp_path / 'frame3.mp4', frames=2)
    found = list(sources.find(tmp_path))
    assert [source.name for source in found] == ['frame1', 'frame2', 'frame3', 'frame10']
    assert [source.kind for source in found] == ['image', 'image', 'video', 'image']
    assert [source.order for source in found] == [0, 1, 2, 3]


def test_globs_and_mixed_lists_are_supported(tmp_path, image):
    for name in ('a1.png', 'a2.png', 'b.png'):
        cv2.imwrite(str(tmp_path / name), image)
    given = [str(tmp_path / 'a*.png'), tmp_path / 'b.png', image, torch.zeros(3, 4, 5), 0]
    assert [source.name for source in sources.find(given)] == ['a1', 'a2', 'b', '000003', '000004',
                                                             'camera0']  # fmt: skip


def test_found_sources_can_be_given_again(tmp_path, image):
    for name in ('a1.png', 'a2.png'):
        cv2.imwrite(str(tmp_path / name), image)
    found = list(sources.find([tmp_path, image]))
    assert list(sources.find(found)) == found


def test_equal_names_are_made_unique(tmp_path, image):
    for folder in ('x', 'y'):
        (tmp_path / folder).mkdir()
        cv2.imwrite(str(tmp_path / folder / 'same.png'), image)
    assert [s.name for s in sources.find([tmp_path / 'x', tmp_path / 'y'])] == ['same', 'same_2']


def test_folders_below_are_searched_but_no_hidden_file_and_no_result_of_a_run(tmp_path, image):
    for name in (
        *('a/b/1.png', 'a/2.png', '3.png', '.hidden.png', '._3.png', '.a/4.png'),
        *('outputs/visualizations/3.png', 'outputs/5.png'),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(tmp_path / name), image)
    (tmp_path / 'outputs/run.json').write_text('{}')
    (tmp_path / 'a/loop').symlink_to(tmp_path)
    found = [source.name for source in sources.find(tmp_path)]
    assert found == ['3', 'a_2', 'a_b_1', 'outputs_5']


@pytest.mark.parametrize('text', ['camera:2', 'webcam:2', 'Camera:2'])
def test_a_camera_is_named_by_its_number(text):
    (source,) = sources.find(text)
    assert (source.kind, source.content) == ('camera', 2)


def test_sources_of_an_endless_iterator_are_found_one_by_one(image):
    def endless():
        while True:
            yield image

    found = sources.find(endless())
    assert [next(found).order for _ in range(3)] == [0, 1, 2]


@pytest.mark.parametrize(
    'given, error, says',
    [
        ('nowhere.jpg', FileNotFoundError, 'no file nowhere.jpg'),
        ('no*where.jpg', FileNotFoundError, 'no file matches'),
        ('ftp://example.com/a.jpg', ValueError, 'ftp is not supported; give http'),
        (None, TypeError, 'NoneType is no image'),
        (True, TypeError, 'True is no image'),
        ({'a': 1}, TypeError, 'dict is no image'),
        (torch.zeros(5, 4, 3), ValueError, r'\(5, 4, 3\) is no image; expected \(3, H, W\)'),
    ],
)
def test_invalid_input_is_named(given, error, says):
    with pytest.raises(error, match=says):
        list(sources.find(given))


def test_an_empty_folder_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match='hold no image and no video'):
        list(sources.find(tmp_path))


# --- images ---------------------------------------------------------------------------------------
@pytest.mark.parametrize('suffix', ['.png', '.bmp', '.tiff', '.webp'])
def test_files_are_read_as_in_opencv(tmp_path, image, suffix):
    path = tmp_path / f'a{suffix}'
    quality = [cv2.IMWRITE_WEBP_QUALITY, 101] if suffix == '.webp' else []  # lossless
    cv2.imwrite(str(path), image, quality)
    np.testing.assert_array_equal(only(path), image)


def test_gray_alpha_and_sixteen_bits_become_three_channels_of_eight(tmp_path, image):
    gray = image[..., 0]
    alpha = np.dstack([image, gray])
    deep = image.astype(np.uint16) * 257
    for name, content in dict(gray=gray, alpha=alpha, deep=deep).items():
        cv2.imwrite(str(tmp_path / f'{name}.png'), content)
        np.testing.assert_array_equal(only(tmp_path / f'{name}.png'), only(content))
    np.testing.assert_array_equal(only(gray), np.dstack([gray] * 3))
    np.testing.assert_array_equal(only(alpha), image)
    np.testing.assert_array_equal(only(deep), image)
    np.testing.assert_array_equal(only(gray[..., None]), np.dstack([gray] * 3))


@pytest.mark.parametrize('orientation', range(1, 9))
def test_exif_orientation_is_applied_as_in_openmmlab(tmp_path, image, orientation):
    from mmpose.datasets.transforms import LoadImage

    path = tmp_path / 'a.jpg'
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(image[..., ::-1]).save(path, exif=exif, quality=95)
    np.testing.assert_array_equal(only(path), LoadImage()(dict(img_path=str(path)))['img'])
    by_pil = only(Image.open(path))
    assert by_pil.shape == only(path).shape
    assert np.abs(by_pil.astype(int) - only(path)).max() <= 3  # two JPEG decoders


@pytest.mark.parametrize('orientation', range(1, 9))
@pytest.mark.parametrize('options', [dict(lossless=True), dict(quality=95)], ids=['VP8L', 'VP8'])
def test_exif_orientation_of_webp_is_applied_as_in_pil(tmp_path, image, orientation, options):
    path, exif = tmp_path / 'a.webp', Image.Exif()
    exif[0x010E], exif[0x0112] = 'a description before it', orientation
    Image.fromarray(image[..., ::-1]).save(path, exif=exif, **options)
    found = only(path)
    assert found.shape == (image.shape if orientation < 5 else image.swapaxes(0, 1).shape)
    assert found.flags.c_contiguous
    assert np.abs(found.astype(int) - only(Image.open(path))).max() <= 1


def test_damaged_exif_of_webp_is_ignored(tmp_path, image):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(image[..., ::-1]).save(tmp_path / 'a.webp', exif=exif, lossless=True)
    data = bytearray((tmp_path / 'a.webp').read_bytes())
    start = data.index(b'EXIF') + 8
    data[start:] = b'\xff' * (len(data) - start)
    (tmp_path / 'a.webp').write_bytes(data)
    np.testing.assert_array_equal(only(tmp_path / 'a.webp'), image)


def test_pil_and_tensors_are_rgb_and_arrays_bgr(image):
    rgb = np.ascontiguousarray(image[..., ::-1])
    for same in (
        Image.fromarray(rgb),
        Image.fromarray(np.dstack([rgb, rgb[..., 0]])),
        torch.from_numpy(rgb).permute(2, 0, 1),
        torch.from_numpy(rgb).permute(2, 0, 1) / 255,
        (torch.from_numpy(rgb).permute(2, 0, 1) / 255).double(),
        image.astype(np.float32) / 255,
    ):
        np.testing.assert_array_equal(only(same), image)


def test_pil_images_of_sixteen_bits_and_palettes(image):
    gray = image[..., 0]
    deep = Image.fromarray(gray.astype(np.uint16) * 257)
    np.testing.assert_array_equal(only(deep), np.dstack([gray] * 3))
    palette = Image.fromarray(gray).convert('P')
    np.testing.assert_array_equal(only(palette), np.dstack([gray] * 3))


@pytest.mark.parametrize('shape', [(1, 1), (1, 900), (3000, 7)])
def test_tiny_and_odd_sizes_are_read(tmp_path, shape):
    cv2.imwrite(str(tmp_path / 'a.png'), noise(*shape))
    np.testing.assert_array_equal(only(tmp_path / 'a.png'), noise(*shape))


@pytest.mark.parametrize(
    'given, says',
    [
        (np.zeros((4, 5, 2), np.uint8), r'\(4, 5, 2\) is no image'),
        (np.zeros((0, 5, 3), np.uint8), r'\(0, 5, 3\) is no image'),
        (np.zeros((4, 5), np.int64), 'an image of int64'),
        (np.full((4, 5), 2.0), r'finite values in \[0, 1\]'),
        (np.full((4, 5), np.nan), r'finite values in \[0, 1\]'),
    ],
)
def test_arrays_that_are_no_image_are_refused(given, says):
    with pytest.raises(sources.Unreadable, match=says):
        only(given)


@pytest.mark.parametrize('content', [b'', b'no image at all', b'\x89PNG\r\n\x1a\n'])
def test_a_file_that_cannot_be_decoded_is_named(tmp_path, content):
    path = tmp_path / 'broken.png'
    path.write_bytes(content)
    with pytest.raises(sources.Unreadable, match='broken.png'):
        only(path)


# --- videos and cameras ---------------------------------------------------------------------------
def test_a_video_gives_its_frames_with_index_and_time(tmp_path):
    write_clip(tmp_path / 'clip.mp4', frames=7, fps=5)
    (source,) = sources.find(tmp_path / 'clip.mp4')
    assert sources.video_info(source) == (5.0, 7)
    found = list(sources.read(source))
    assert [frame.index for frame in found] == list(range(7))
    np.testing.assert_allclose([frame.time for frame in found], np.arange(7) / 5)
    capture = cv2.VideoCapture(str(tmp_path / 'clip.mp4'))
    for frame in found:
        assert np.abs(frame.image.astype(int) - capture.read()[1]).max() <= 3  # conversion to RGB


def test_a_video_can_be_read_from_any_frame(tmp_path):
    write_clip(tmp_path / 'clip.mp4', frames=7)
    (source,) = sources.find(tmp_path / 'clip.mp4')
    whole, part = list(sources.read(source)), list(sources.read(source, range(4, 9)))
    assert [frame.index for frame in part] == [4, 5, 6]
    np.testing.assert_array_equal(part[0].image, whole[4].image)


TURNS = {  # a display matrix as MP4 stores it: two rows of 16.16 fixed point and a 2.30 one
    1: '00000000 ffff0000 00000000 00010000 00000000',
    2: 'ffff0000 00000000 00000000 00000000 ffff0000',
    3: '00000000 00010000 00000000 ffff0000 00000000',
}


@pytest.mark.parametrize('quarters', TURNS)
def test_videos_are_rotated_by_their_display_matrix(tmp_path, quarters):
    straight, turned = tmp_path / 'straight.mp4', tmp_path / 'turned.mp4'
    write_clip(straight, frames=2)
    data = bytearray(straight.read_bytes())
    identity = bytes.fromhex('00010000 00000000 00000000 00000000 00010000')
    place = data.index(identity, data.index(b'tkhd'))
    data[place : place + len(identity)] = bytes.fromhex(TURNS[quarters])
    turned.write_bytes(data)

    image = frames(turned)[0].image
    np.testing.assert_array_equal(image, np.rot90(frames(straight)[0].image, quarters))
    capture = cv2.VideoCapture(str(turned))
    capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 1)
    assert np.abs(capture.read()[1].astype(int) - image).max() <= 3  # conversion to RGB


def test_arrays_and_tensors_with_four_axes_are_clips(image):
    clip = np.stack([image, image[::-1]])
    for given in (clip, torch.from_numpy(clip[..., ::-1].copy()).permute(0, 3, 1, 2)):
        (source,) = sources.find(given)
        found = list(sources.read(source))
        assert source.moves and sources.video_info(source)[1] == 2
        np.testing.assert_array_equal(found[1].image, image[::-1])


def test_a_truncated_video_gives_its_frames_then_an_error(tmp_path):
    path = write_clip(tmp_path / 'clip.mp4', frames=40)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    (source,) = sources.find(path)
    *found, last = sources.read(source)
    read = [frame for frame in found if isinstance(frame, sources.Frame)]
    assert [frame.index for frame in read] == list(range(len(read)))
    assert 5 <= len(read) < 40
    assert f'only {len(read)} of 40 frames could be read' in str(last)


def test_broken_frames_are_reported_and_the_others_read(tmp_path):
    path = write_clip(tmp_path / 'clip.mp4', frames=40)
    data = bytearray(path.read_bytes())
    middle = len(data) * 2 // 3
    data[middle : middle + 600] = b'\xff' * 600
    path.write_bytes(data)
    (source,) = sources.find(path)
    found = list(sources.read(source))
    broken = [each for each in found if isinstance(each, sources.Unreadable)]
    assert 'broken frame after frame' in str(broken[0])
    assert len(found) - len(broken) >= 25


@pytest.mark.parametrize('content', [b'', b'no video at all' * 99])
def test_a_file_that_is_no_video_is_named(tmp_path, content):
    (tmp_path / 'broken.mp4').write_bytes(content)
    (source,) = sources.find(tmp_path / 'broken.mp4')
    with pytest.raises(sources.Unreadable, match='broken.mp4 cannot be opened'):
        list(sources.read(source))
    with pytest.raises(sources.Unreadable, match='broken.mp4'):
        sources.video_info(source)


# --- the network and standard input ---------------------------------------------------------------
class Server(http.server.SimpleHTTPRequestHandler):
    """Files of a folder, by HTTP with ranges of bytes left out, as by simple servers."""

    def log_message(self, *args):
        pass


@pytest.fixture
def address(tmp_path):
    handler = functools.partial(Server, directory=tmp_path)
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}'
    server.shutdown()
    server.server_close()


def test_images_and_videos_are_read_from_urls(tmp_path, image, address):
    cv2.imwrite(str(tmp_path / 'a b.png'), image)
    write_clip(tmp_path / 'clip.mp4', frames=3)
    found = list(sources.find([f'{address}/a%20b.png?size=1', f'{address}/clip.mp4']))
    assert [(source.name, source.kind) for source in found] == [('a b', 'image'), ('clip', 'video')]
    np.testing.assert_array_equal(frames(found[0])[0].image, image)
    assert sources.video_info(found[1]) == (10, 3)
    expected = frames(tmp_path / 'clip.mp4')
    for read, local in zip(frames(found[1]), expected, strict=True):
        np.testing.assert_array_equal(read.image, local.image)


@pytest.mark.parametrize('name', ['größe.png', 'a b.png', 'a%20b.png', 'a%3Fb.png'])
def test_addresses_are_encoded(tmp_path, image, address, name):
    for file in ('größe.png', 'a b.png', 'a?b.png'):
        cv2.imwrite(str(tmp_path / file), image)
    (source,) = sources.find(f'{address}/{name}')
    np.testing.assert_array_equal(frames(source)[0].image, image)


@pytest.mark.parametrize(
    'name, says',
    [
        ('none.png', 'none.png: HTTP Error 404'),
        ('none.mp4', 'none.mp4 cannot be opened'),
        ('page.html', 'a web page, not an image'),
        ('list.mp4', 'list.mp4 cannot be opened'),
    ],
)
def test_what_a_server_does_not_send_is_named(tmp_path, address, name, says):
    (tmp_path / 'page.html').write_text('<html></html>')
    (tmp_path / 'secret.ts').write_bytes(b'secret')
    playlist = f'#EXTM3U\n#EXTINF:1,\nfile://{tmp_path}/secret.ts\n#EXT-X-ENDLIST\n'
    (tmp_path / 'list.mp4').write_text(playlist)
    (source,) = sources.find(f'{address}/{name}')
    with pytest.raises(sources.Unreadable, match=says):
        list(sources.read(source))


def test_a_live_stream_is_read_as_a_camera(tmp_path):
    with av.open(str(tmp_path / 'clip.ts'), 'w', format='mpegts') as out:
        stream = out.add_stream('mpeg2video', rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, 'yuv420p'
        for seed in range(6):
            picture = av.VideoFrame.from_ndarray(noise(48, 64, seed=seed), format='bgr24')
            out.mux(stream.encode(picture))
        out.mux(stream.encode())

    def send():
        connection, _ = listener.accept()
        with connection:
            connection.sendall((tmp_path / 'clip.ts').read_bytes())

    with socket.create_server(('127.0.0.1', 0)) as listener:
        thread = threading.Thread(target=send)
        thread.start()
        (source,) = sources.find(f'tcp://127.0.0.1:{listener.getsockname()[1]}')
        assert (source.kind, sources.video_info(source)) == ('camera', (sources.DEFAULT_FPS, None))
        found = list(sources.read(source, range(1, 5, 2)))
        thread.join()
    assert [(frame.index, frame.image.shape) for frame in found] == [(1, (48, 64, 3)),
                                                                    (3, (48, 64, 3))]  # fmt: skip


@pytest.mark.parametrize('kind', ['image', 'video'])
def test_a_dash_is_standard_input(tmp_path, image, monkeypatch, kind):
    path = tmp_path / ('a.png' if kind == 'image' else 'clip.mp4')
    cv2.imwrite(str(path), image) if kind == 'image' else write_clip(path, frames=2)
    with open(path, 'rb') as file:
        monkeypatch.setattr('sys.stdin', SimpleNamespace(buffer=file))
        (source,) = sources.find('-')
    assert (source.name, source.kind) == ('stdin', kind)
    for read, local in zip(frames(source), frames(path), strict=True):
        np.testing.assert_array_equal(read.image, local.image)


def test_a_missing_camera_is_named():
    with pytest.raises(sources.Unreadable, match='cannot open camera 63; is it connected'):
        next(sources.read(next(sources.find('camera:63'))))
