"""VMPose-S-S2, see `trunchier.configs`."""

globals().update(__import__('trunchier.configs', fromlist=['*']).variables('vm-s-s2', 'pose'))
