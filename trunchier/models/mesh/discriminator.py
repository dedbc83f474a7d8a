"""HMR's discriminator of real and predicted poses and shapes.

Kanazawa et al., CVPR 2018, section 3.3; equals Discriminator of shubham-goel/4D-Humans
(hmr2/models/discriminator.py) on its weights. There are 25 outputs: one per body joint's rotation,
one for the betas, one for the whole pose; the joints share their first two layers.
"""

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn

from ...conventions import BODIES, SMPL_24

NUM_JOINTS = len(SMPL_24) - 1
JOINT_WIDTH = 32
POSE_WIDTH = 1024


@MODELS.register_module()
class HMRDiscriminator(BaseModule):
    """Scores near 1 for real bodies and near 0 for predicted ones (least squares GAN)."""

    def __init__(self, init_cfg: dict | None = None):
        super().__init__(init_cfg)
        self.joint_fc1 = nn.Linear(9, JOINT_WIDTH)
        self.joint_fc2 = nn.Linear(JOINT_WIDTH, JOINT_WIDTH)
        self.joint_out = nn.Linear(JOINT_WIDTH, NUM_JOINTS)  # row j reads joint j only
        self.betas_fc1 = nn.Linear(BODIES['smpl'].num_betas, 10)
        self.betas_fc2 = nn.Linear(10, 5)
        self.betas_out = nn.Linear(5, 1)
        self.pose_fc1 = nn.Linear(NUM_JOINTS * JOINT_WIDTH, POSE_WIDTH)
        self.pose_fc2 = nn.Linear(POSE_WIDTH, POSE_WIDTH)
        self.pose_out = nn.Linear(POSE_WIDTH, 1)
        for layer in self.children():
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        for row in self.joint_out.weight.split(1):  # 23 layers of one output each
            nn.init.xavier_uniform_(row)

    def forward(self, body_pose: Tensor, betas: Tensor) -> Tensor:
        """Score bodies: 23 joints, betas, whole pose.

        body_pose (B, 23, 3, 3), rotation matrices, betas (B, 10) -> (B, 25).
        """
        joints = F.relu(self.joint_fc1(body_pose.flatten(2)))
        joints = F.relu(self.joint_fc2(joints))  # (B, 23, 32)
        each = (joints * self.joint_out.weight).sum(-1) + self.joint_out.bias

        shape = F.relu(self.betas_fc1(betas))
        shape = self.betas_out(F.relu(self.betas_fc2(shape)))

        # In the official layer, channels are the outer dimension and joints the inner one.
        pose = F.relu(self.pose_fc1(joints.transpose(1, 2).flatten(1)))
        pose = self.pose_out(F.relu(self.pose_fc2(pose)))
        return torch.cat((each, shape, pose), dim=1)
