"""SwinPose-B-S2, see `trunchier.configs`."""

globals().update(__import__('trunchier.configs', fromlist=['*']).variables('swin-b-s2', 'pose'))
