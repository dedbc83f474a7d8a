"""Data that ships with the package: body, poses, weights. NOTICE states their licenses."""

from pathlib import Path

FOLDER = Path(__file__).parent


def path(name: str) -> Path:
    """Path of a shipped file, such as `body.npz`; weights of most models are not shipped."""
    return FOLDER / name


def of_repository(name: str) -> Path:
    """Path of a file or folder of the repository, such as `configs` or `tools/train.py`.

    In a checkout it lies beside the package; an installed wheel carries a copy in `trunchier/.mim`,
    where OpenMMLab's tools look for the configs of a package.
    """
    package = FOLDER.parent
    beside = package.parent / name
    return beside if beside.exists() else package / '.mim' / name
