"""SwinPose-T-S4, see `trunchier.configs`."""

globals().update(__import__('trunchier.configs', fromlist=['*']).variables('swin-t-s4', 'pose'))
