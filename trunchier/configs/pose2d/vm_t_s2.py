"""VMPose-T-S2, see `trunchier.configs`."""

globals().update(__import__('trunchier.configs', fromlist=['*']).variables('vm-t-s2', 'pose'))
