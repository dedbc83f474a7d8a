"""VMPose-S-S4, see `trunchier.configs`."""

globals().update(__import__('trunchier.configs', fromlist=['*']).variables('vm-s-s4', 'pose'))
