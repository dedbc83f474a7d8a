from .stage_adapter import StageAdapter
from .swin import TruncatedSwin

__all__ = ['StageAdapter', 'TruncatedSwin']
