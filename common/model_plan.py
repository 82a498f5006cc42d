"""The section of a plan that names its network. Imports neither torch nor Flower."""

from typing import Annotated, Literal

from pydantic import Field

from common.section import Section

# Networks that a site trains unless its policy says otherwise: each is tested (docs/backbones.md).
BACKBONES = (
    "tiny",
    "multimix",
    "resnet18",
    "resnet34",
    "resnet50",
    "densenet121",
    "densenet169",
    "tf_efficientnet_lite0",
    "efficientnet_b0",
    "efficientnet_b3",
    "convnext_atto",
    "convnext_tiny",
    "regnetx_008",
    "regnety_008",
    "mobilenetv3_large_100",
)
WEIGHTS_BY_NAME = ("none", "imagenet", "embedded")  # anything else is a file
Backbone = Annotated[
    str,
    Field(
        pattern=r"^[a-z0-9_]{1,64}$",
        description="tiny, multimix, or the name of a convolutional network of timm",
    ),
]


class ModelPlan(Section):
    """The network and its input size."""

    backbone: Backbone = "resnet18"
    image_size: int = Field(128, ge=32, le=1024, multiple_of=32, description="pixels per side")
    pretrained: str = Field(
        "none", max_length=4096, description="none, imagenet, embedded, or a local weight file"
    )
    norm: Literal["auto", "affine", "group"] = Field(
        "auto", description="of a network of timm; auto: affine with pretrained weights"
    )
    pixels: Literal["auto", "image", "published", "xrv"] = Field(
        "auto",
        description="how grey levels enter a network of timm: by each image's own mean and "
        "deviation, by those of its published weights, or as TorchXRayVision scales them",
    )
    frozen_stages: int = Field(
        0, ge=0, le=5, description="of the encoder, from the image on; 5: all of it is fixed"
    )
    decoder_width: int = Field(32, ge=8, le=256, description="channels of the finest lung stage")
    bridge: Literal["off", "decoder-input", "all-stages"] = Field(
        "off", description="where the saliency of the findings joins the lungs head"
    )
