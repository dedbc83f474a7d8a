"""VMHMR2.0-S-S3, see `trunchier.configs`."""

globals().update(__import__('trunchier.configs', fromlist=['*']).variables('vm-s-s3', 'mesh'))
