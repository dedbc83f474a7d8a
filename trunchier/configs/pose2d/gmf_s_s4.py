"""GMFPose-S-S4, see `trunchier.configs`."""

globals().update(__import__('trunchier.configs', fromlist=['*']).variables('gmf-s-s4', 'pose'))
