"""Official files that training starts from, and the weights that ship here. Data only."""

# Official ImageNet classifiers, and for ViT the MAE weights that ViTPose starts from.
SWIN_RELEASE = 'https://github.com/SwinTransformer/storage/releases/download/v1.0.0/'
VMAMBA_RELEASE = 'https://github.com/MzeroMiko/VMamba/releases/download/%23v2cls/'
MMPOSE_FILES = 'https://download.openmmlab.com/mmpose/v1/pretrained_models/'
# GroupMixFormer's weights must be downloaded manually (see "Weights" in README.md).
BY_HAND = 'data/checkpoints/'

# fmt: off
WEIGHTS = {
    'swin-b': SWIN_RELEASE + 'swin_base_patch4_window7_224.pth',
    'swin-s': SWIN_RELEASE + 'swin_small_patch4_window7_224.pth',
    'swin-t': SWIN_RELEASE + 'swin_tiny_patch4_window7_224.pth',
    'gmf-b':  BY_HAND + 'groupmixformer_base.pth',
    'gmf-s':  BY_HAND + 'groupmixformer_small.pth',
    'gmf-t':  BY_HAND + 'groupmixformer_tiny.pth',
    'vm-b':   VMAMBA_RELEASE + 'vssm_base_0229_ckpt_epoch_237.pth',
    'vm-s':   VMAMBA_RELEASE + 'vssm_small_0229_ckpt_epoch_222.pth',
    'vm-t':   VMAMBA_RELEASE + 'vssm1_tiny_0230s_ckpt_epoch_264.pth',
    'vit-h':  MMPOSE_FILES + 'mae_pretrain_vit_huge_20230913.pth',
    'vit-l':  MMPOSE_FILES + 'mae_pretrain_vit_large_20230913.pth',
    'vit-b':  MMPOSE_FILES + 'mae_pretrain_vit_base_20230913.pth',
    'vit-s':  MMPOSE_FILES + 'mae_pretrain_vit_small_20230913.pth',
}

# Models whose weights are in `assets`: the config that they were trained with.
SHIPPED = {
    'VMPose-T-S2':   'configs/embedded/td-hm_vm-t-s2_synthetic-256x192.py',
    'VMHMR2.0-T-S2': 'configs/embedded/hmr2_vm-t-s2_synthetic-128.py',
}
# fmt: on
