"""GMFPose-T-S2, see `trunchier.configs`."""

globals().update(__import__('trunchier.configs', fromlist=['*']).variables('gmf-t-s2', 'pose'))
