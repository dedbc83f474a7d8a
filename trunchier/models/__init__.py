from .stage_adapter import StageAdapter
from .swin import TruncatedSwin
from .vmamba import TruncatedVMamba

__all__ = ['StageAdapter', 'TruncatedSwin', 'TruncatedVMamba']
