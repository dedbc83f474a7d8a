"""Data that ships with the package: body, poses, weights. NOTICE states their licenses."""

from pathlib import Path

FOLDER = Path(__file__).parent


def path(name: str) -> Path:
    """Path of a shipped file, such as `body.npz`; weights of most models are not shipped."""
    return FOLDER / name
