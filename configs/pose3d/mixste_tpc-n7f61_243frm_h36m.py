"""TPC on MixSTE for the center frame: 33.8 M parameters, 251.3 G.

The loss is that of all kept frames; in tests, each frame is the center of a window.
"""

_base_ = './mixste_hot-n3f81_243frm_h36m.py'

model = dict(backbone=dict(schedule={'_delete_': True, 7: 61}, recovery=None))
val_dataloader = dict(
    dataset=dict(seq_len=243, multiple_target=0, causal=False, pad_video_seq=True)
)
test_dataloader = val_dataloader
