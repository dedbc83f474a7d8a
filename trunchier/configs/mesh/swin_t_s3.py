"""SwinHMR2.0-T-S3, see `trunchier.configs`."""

globals().update(__import__('trunchier.configs', fromlist=['*']).variables('swin-t-s3', 'mesh'))
