"""SwinPose-S-S4, see `trunchier.configs`."""

globals().update(__import__('trunchier.configs', fromlist=['*']).variables('swin-s-s4', 'pose'))
