"""The version of this package, which files name as their producer."""

__version__ = '0.1.0'
PRODUCER = f'trunchier {__version__}'
