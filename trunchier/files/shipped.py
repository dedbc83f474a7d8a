"""Files that ship with the package, by name."""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]


def asset(name: str) -> Path:
    """Path of a file in `trunchier/assets`, such as `body.npz`; its NOTICE states the licenses."""
    return PACKAGE / 'assets' / name


def of_repository(name: str) -> Path:
    """Path of a file or folder of the repository, such as `configs` or `tools/train.py`.

    In a checkout it lies beside the package; an installed wheel carries a copy in `trunchier/.mim`,
    where OpenMMLab's tools look for the configs of a package.
    """
    beside = PACKAGE.parent / name
    return beside if beside.exists() else PACKAGE / '.mim' / name
