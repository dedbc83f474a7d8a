"""Downloads: a file is complete, or absent and continued by the next call."""

import hashlib
import os
import re
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import torch

RESUME_ATTEMPTS = 3


class DownloadError(RuntimeError):
    """A file that could not be downloaded, or is not what its name says."""


def local_file(checkpoint: str | Path) -> Path:
    """Path of `checkpoint` on this machine; an http(s) address is downloaded once.

    Raises:
        FileNotFoundError: no such file; says where it may be put.
        DownloadError: the download failed.
    """
    checkpoint = str(checkpoint)
    if re.match(r'https?://', checkpoint):
        return download(checkpoint)
    path = Path(checkpoint)
    if not path.is_file():
        raise FileNotFoundError(
            f'no checkpoint {path} (from {Path.cwd()}); "Weights" in README.md says where it comes '
            'from. To train from scratch: --cfg-options model.backbone.init_cfg=None (pose) or '
            'model.init_cfg=None (mesh)'
        )
    return path


def download(url: str, folder: str | Path | None = None) -> Path:
    """Fetch `url` once, into `folder` (default: torch.hub's checkpoints), and return the path.

    A copy in data/checkpoints is taken first. The download goes to a `.part` file, which a second
    call continues. It is renamed once its size is the one that the server stated and, if the name
    carries a hash (`name-1a2b3c4d.pth`), its SHA-256 begins with that.

    Raises:
        DownloadError: no connection, an answer that is not a file, or another size or hash.
    """
    name = Path(urllib.parse.unquote(urllib.parse.urlparse(url).path)).name
    by_hand = Path('data/checkpoints') / name
    if by_hand.is_file():
        return by_hand
    folder = Path(folder or os.path.join(torch.hub.get_dir(), 'checkpoints'))
    path = folder / name
    if path.is_file():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f'{name}.part')
    size, error = None, None
    for _ in range(RESUME_ATTEMPTS):
        try:
            size = _continue_download(url, part)
        except (urllib.error.URLError, OSError) as failure:
            error = failure
            continue
        if part.stat().st_size == size:
            break
        error = f'{part.stat().st_size} of {size} bytes were received'
    else:
        raise DownloadError(
            f'{url} could not be downloaded: {error}. Download it by other means and put it at '
            f'{by_hand}; a later call continues from {part}'
        )
    _check_hash(part, name)
    os.replace(part, path)
    return path


def _continue_download(url, part):
    """Append the rest of `url` to `part`; returns the size of the whole file in bytes."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={'Range': f'bytes={have}-'} if have else {})
    try:
        answer = urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        # The server has nothing beyond `have`: the part is complete, or of another file.
        whole = re.search(r'\*/(\d+)', error.headers.get('Content-Range', ''))
        if not whole or int(whole[1]) != have:
            part.unlink()
            raise
        return have
    with answer, open(part, 'ab' if answer.status == 206 else 'wb') as file:
        if answer.headers.get_content_type() == 'text/html':
            raise OSError('the answer is a web page, not a file')
        start = file.tell()
        length = answer.headers.get('Content-Length')
        while block := answer.read(1 << 20):
            file.write(block)
        return start + int(length) if length else file.tell()


def _check_hash(path, name):
    expected = re.search(r'-([0-9a-f]{8,64})\.\w+$', name)
    if not expected:
        return
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if not found.startswith(expected[1]):
        path.unlink()
        raise DownloadError(
            f'{name}: SHA-256 is {found[:16]}..., expected {expected[1]} from its name; the '
            'damaged download was removed, try again'
        )
