from .ghost_batch_norm import GhostBatchNorm2d as GhostBatchNorm2d
from .wide_resnet import WideResNet as WideResNet
