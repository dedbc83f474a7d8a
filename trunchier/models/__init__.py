from .stage_adapter import StageAdapter

__all__ = ['StageAdapter']
