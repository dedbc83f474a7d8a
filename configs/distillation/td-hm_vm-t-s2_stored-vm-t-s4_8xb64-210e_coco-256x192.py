"""VMPose-T-S4 teaches VMPose-T-S2 by heatmaps that tools/store_heatmaps.py has stored."""

_base_ = './td-hm_vm-t-s2_heatmap-vm-t-s4_8xb64-210e_coco-256x192.py'

model = dict(stored=True)
load = dict(type='LoadTeacherHeatmaps', folder='data/heatmaps/VMPose-T-S4')
pipeline = _base_.train_dataloader.dataset.pipeline  # noqa: F821
train_dataloader = dict(dataset=dict(pipeline=[*pipeline[:-1], load, pipeline[-1]]))
del pipeline
