"""Bad inputs of `predict` are skipped and named, the others are done; nothing but text is printed.

All files are made here.
"""

import json
import logging
import os
import struct
import zlib

import cv2
import numpy as np
import pytest
import torch
from forked import Run
from PIL import Image
from small_models import noise, pose_config, write_clip, write_weights

from trunchier.inference import command, sources
from trunchier.inference.pose import PoseInferencer
from trunchier.inference.sources import Unreadable, import_av


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    """Arguments that name a small model."""
    return write_model(tmp_path_factory.mktemp('model'))


def write_model(folder):
    cfg = pose_config()
    cfg.dump(folder / 'pose_model.py')
    write_weights(cfg, folder / 'pose.pth')
    names = [str(folder / name) for name in ('pose_model.py', 'pose.pth')]
    return ['--device', 'cpu', '--model', names[0], '--weights', names[1]]


@pytest.fixture(scope='module')
def infer(model):
    return PoseInferencer(*model[3::2], device='cpu', batch_size=4)


def run(*given):
    return command.main([str(each) for each in given])


def png_header(width, height):
    """A PNG that declares a size and holds no pixel."""
    head = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
    parts = [(b'IHDR', head), (b'IDAT', zlib.compress(b'')), (b'IEND', b'')]
    body = b''.join(
        struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
        for kind, data in parts
    )
    return b'\x89PNG\r\n\x1a\n' + body


def write_photo(path, seed=0):
    path.write_bytes(cv2.imencode(path.suffix, noise(60, 80, seed=seed))[1].tobytes())
    return path


def write_bad_inputs(folder):
    """{path: what its error says}."""
    jpeg = cv2.imencode('.jpg', noise(60, 80))[1].tobytes()
    files = {
        'empty.jpg': (b'', 'cannot decode'),
        'text.png': (b'no image', 'cannot decode'),
        'jpeg2000.jpg': (b'\0\0\0\x0cjP  \r\n\x87\n' + jpeg, 'JPEG 2000 is refused'),
        'huge.png': (png_header(60000, 60000), '--max-pixels'),
        'empty.mp4': (b'', 'cannot be opened as a video'),
        'text.mp4': (b'no video', 'cannot be opened as a video'),
        'playlist.mp4': (b'#EXTM3U\n#EXTINF:1,\nclip.ts\n#EXT-X-ENDLIST\n', 'cannot be opened'),
        'concat.mp4': (b"ffconcat version 1.0\nfile 'clip.mp4'\n", 'cannot be opened'),
        'escape\x1b[31m\n.jpg': (b'x', 'escape\\x1b[31m'),
    }
    for name, (content, _) in files.items():
        (folder / name).write_bytes(content)
    cut = (folder / 'clip.mp4').read_bytes()
    (folder / 'cut.mp4').write_bytes(cut[: len(cut) // 2])
    os.mkfifo(folder / 'pipe.jpg')
    os.mkfifo(folder / 'pipe.mp4')
    named = {folder / name: says for name, (_, says) in files.items()}
    return named | {
        folder / 'cut.mp4': 'cut.mp4',
        folder / 'pipe.jpg': 'is no regular file',
        folder / 'pipe.mp4': 'is no regular file',
    }


def test_bad_inputs_are_skipped_and_named_and_the_others_are_done(model, tmp_path, capsys):
    write_clip(tmp_path / 'clip.mp4', frames=3)
    bad = write_bad_inputs(tmp_path)
    names = ['a.jpg', f'{"x" * 246}.jpg', 'ü.png', *(f'{i}.png' for i in range(len(bad) - 3))]
    good = [write_photo(tmp_path / name) for name in names]
    # Interleaved, so that something good comes after each kind of failure.
    given = [each for pair in zip(bad, good, strict=True) for each in pair]
    code = run(*given, tmp_path / 'clip.mp4', '--out-dir', tmp_path / 'out', *model)
    printed = capsys.readouterr().err
    assert code == command.EXIT_SKIPPED and f'; {len(bad) + 1} skipped\n' in printed  # a frame, too
    assert f'{len(bad) + 3} people in {len(bad) + 3} frames, ' in printed
    for path, says in bad.items():
        assert says in printed, path
    assert not set(printed) & {'\x1b', '\r', '\t'}
    done = os.listdir(tmp_path / 'out/predictions')
    assert len(done) == len(bad) + 1 and not list((tmp_path / 'out').glob('.*'))
    longest = [name for name in done if name.startswith('xxx')]
    assert longest and max(len(name) for name in longest) < 220


def test_long_names_that_begin_alike_stay_apart_and_are_found_in_boxes(infer, tmp_path):
    names = [f'{"x" * 240}{i}.png' for i in range(2)]
    for seed, name in enumerate(names):
        write_photo(tmp_path / name, seed)
    content = {name: [[i, 0, 40 + i, 50]] for i, name in enumerate(names)}
    (tmp_path / 'boxes.json').write_text(json.dumps(content))
    paths = [tmp_path / name for name in names]
    found = list(infer(paths, bboxes=tmp_path / 'boxes.json', out_dir=tmp_path / 'out'))
    assert [result.pred_instances.bboxes.tolist() for result in found] == list(content.values())
    assert len(os.listdir(tmp_path / 'out/predictions')) == 2


def test_names_of_dots_stay_in_the_folder_of_results(infer, tmp_path):
    (tmp_path / 'in').mkdir()
    write_clip(tmp_path / 'in/clip.mp4', frames=2)
    for name in ('...mp4', '..mp4'):
        os.link(tmp_path / 'in/clip.mp4', tmp_path / f'in/{name}')
    given = sorted((tmp_path / 'in').iterdir())  # of a folder, hidden files are passed over
    list(infer(given, out_dir=tmp_path / 'out', save=('images',)))
    assert {p.name for p in tmp_path.iterdir()} == {'in', 'out'}
    assert {p.name for p in (tmp_path / 'out').iterdir()} == {'run.json', 'visualizations'}
    frames = (tmp_path / 'out/visualizations').glob('*/000001.jpg')
    assert sorted(p.parent.name for p in frames) == ['_', '__', 'clip']


def test_digits_that_are_no_numbers_can_be_sorted(tmp_path):
    for name in ('1²2.jpg', '1٣.jpg', '10.jpg'):
        (tmp_path / name).touch()
    assert len(list(sources.find(tmp_path))) == 3


def test_the_note_of_weights_is_printed_as_text(tmp_path, monkeypatch):
    from safetensors.torch import save_file

    content = torch.load(write_model(tmp_path)[-1], weights_only=True)['state_dict']
    content = {name: tensor.contiguous() for name, tensor in content.items()}
    save_file(
        content, tmp_path / 'a.safetensors', {'note': 'trained\x1b]0;title\x07 on\r\nnothing'}
    )
    logger, messages, handler = logging.getLogger('trunchier'), [], logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    monkeypatch.setattr(logger, 'handlers', [handler])
    monkeypatch.setattr(logger, 'disabled', False)
    monkeypatch.setattr(logger, 'level', logging.WARNING)
    logger.manager._clear_cache()
    PoseInferencer(pose_config(), tmp_path / 'a.safetensors', device='cpu')
    (message,) = [each for each in messages if 'trained' in each]
    assert message.endswith('a.safetensors; trained\\x1b]0;title\\x07 on nothing')


# --- sizes ----------------------------------------------------------------------------------------
def test_images_and_videos_above_the_limit_are_refused_by_name(model, tmp_path, capsys):
    write_photo(tmp_path / 'a.png')
    write_clip(tmp_path / 'clip.mp4', frames=2)
    given = [tmp_path / 'a.png', tmp_path / 'clip.mp4', '--out-dir', tmp_path / 'out', *model]
    assert run(*given, '--max-pixels', '100') == command.EXIT_ERROR
    printed = capsys.readouterr().err
    for name in ('a.png', 'clip.mp4'):
        assert any(name in line and '--max-pixels' in line for line in printed.splitlines())
    assert run(*given) == 0


def test_no_memory_is_allocated_for_a_declared_size(tmp_path):
    """10 GB would be allocated at least, of files and of PIL images that are not decoded yet."""
    (tmp_path / 'huge.png').write_bytes(png_header(60000, 60000))
    with pytest.raises(Unreadable, match='60000 x 60000 pixels'):
        sources.read_image(tmp_path / 'huge.png')
    (tmp_path / 'large.png').write_bytes(png_header(13000, 13000))  # below PIL's own limit
    with Image.open(tmp_path / 'large.png') as image:
        with pytest.raises(Unreadable, match='13000 x 13000 pixels, more than 1000000'):
            sources.to_bgr(image, max_pixels=1_000_000)
        assert not getattr(image, '_im', None)  # not loaded


def test_frames_that_outgrow_the_declared_size_are_refused(tmp_path):
    """Two streams of H.264, one after the other; the size of the last is declared."""
    for name, size in (('small.mp4', (48, 64)), ('large.mp4', (480, 640))):
        write_clip(tmp_path / name, 3, *size)
    raw = b''
    for name in ('large.mp4', 'small.mp4'):
        raw += annex_b(tmp_path / name)
    (tmp_path / 'both.h264').write_bytes(raw)
    source = sources.Source('both', 'video', str(tmp_path / 'both.h264'))
    shapes = {f.image.shape[:2] for f in sources.read(source) if not isinstance(f, Unreadable)}
    assert shapes == {(48, 64), (480, 640)}
    kept = list(sources.read(source, max_pixels=10_000))
    assert {f.image.shape[:2] for f in kept if not isinstance(f, Unreadable)} == {(48, 64)}
    assert any(isinstance(f, Unreadable) for f in kept)


def test_damaged_videos_that_are_closed_early_never_wait_for_ever(tmp_path):
    """A waiting decoder holds Python's lock: nothing in its own process could tell."""
    whole = np.fromfile(write_clip(tmp_path / 'clip.mp4', 60), np.uint8)
    clips = [sources.Source(f'{n}', 'video', str(tmp_path / f'{n}.mp4')) for n in range(10)]
    for number, clip in enumerate(clips):
        damaged = whole.copy()
        damaged[np.random.default_rng(number).integers(2000, len(whole) - 3000, 40)] ^= 255
        damaged.tofile(clip.path)

    def main():
        for number in range(80):
            reading = sources.read(clips[number % 10])
            for _ in range(number % 8 + 1):
                next(reading)
            reading.close()

    cv2.setNumThreads(1)
    process = Run(tmp_path / 'log', main)
    try:
        assert process.wait() == 0, process.log.read_text()
    finally:
        process.end()


def annex_b(path):
    av = import_av()
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        unpack = av.BitStreamFilterContext('h264_mp4toannexb', stream)
        packets = [each for packet in container.demux(stream) for each in unpack.filter(packet)]
        return b''.join(bytes(packet) for packet in packets)
