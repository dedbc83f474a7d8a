"""Reading and writing files safely: complete or absent, and without running what they hold."""

from .arrays import read_npz
from .download import DownloadError, download, local_file
from .optional import need
from .whole import check_writable, file_digest, save_npz, whole_file, whole_folder

__all__ = [
    'DownloadError', 'check_writable', 'download', 'file_digest', 'local_file', 'need', 'read_npz',
    'save_npz', 'whole_file', 'whole_folder',
]  # fmt: skip
