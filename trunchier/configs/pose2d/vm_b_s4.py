"""VMPose-B-S4, see `trunchier.configs`."""

globals().update(__import__('trunchier.configs', fromlist=['*']).variables('vm-b-s4', 'pose'))
