"""GMFPose-S-S3, see `trunchier.configs`."""

globals().update(__import__('trunchier.configs', fromlist=['*']).variables('gmf-s-s3', 'pose'))
