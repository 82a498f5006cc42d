"""The saliency bridge: where the findings head looks helps the lungs head to see.

MultiMix (Haque et al., arXiv 2110.13185) joins its two tasks by the saliency map of the
classifier: the size of the derivative of its highest score with respect to every pixel
(Simonyan et al., "Deep inside convolutional networks", 2014, section 3), given to the decoder
together with the image. Here it is a pure function of weights and image: it needs no optimizer,
leaves mode, weights and their gradients alone, and no gradient flows through it into the
weights. Each image's map depends on that image only, so a unit's loss stays its own.
"""

import torch
from torch import Tensor

from common.encoder import Encoder, standardise
from common.heads import FindingsHead

PLANES = 2  # the image, and its saliency


def saliency(encoder: Encoder, head: FindingsHead, images: Tensor) -> Tensor:
    """|d (highest finding logit) / d pixel| of images (B, 1, S, S): same shape, not normalised.

    Works under `torch.no_grad` and in either mode. Not under `torch.inference_mode`, where
    PyTorch keeps no graph: RuntimeError.
    """
    # In full precision also where the network around it runs in bf16: training works it out
    # outside of autocast, evaluation inside, and both must get the same map.
    with torch.enable_grad(), torch.autocast(images.device.type, enabled=False):
        pixels = images.detach().to(head.linear.weight.dtype).requires_grad_()
        highest = head(encoder(pixels)).amax(dim=1)
        # The sum over images only puts B independent scores into one call.
        (slope,) = torch.autograd.grad(highest.sum(), pixels)
    return slope.detach().abs()


def bridge_planes(encoder: Encoder, head: FindingsHead, images: Tensor) -> Tensor:
    """What crosses the bridge, (B, 2, S, S): the image and its saliency, each standardised.

    A raw slope is about 0.003 beside an image of about 0.5, and grows while the network
    becomes sure; divided by its own mean and standardised it has one scale for ever.
    """
    slope = saliency(encoder, head, images)
    even = slope / slope.mean(dim=(1, 2, 3), keepdim=True).clamp_min(1e-12)
    return torch.cat([standardise(images.detach()), standardise(even).to(images.dtype)], dim=1)
