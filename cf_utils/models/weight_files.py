"""Table of the pretrained weight files: name on disk, what needs it, and how to get it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class WeightsFile:
    """A pretrained weights file in data/weights."""

    file: str  # name on disk
    metrics: str  # metrics or models that need it
    how: str  # how to get it
    begins: str = ""  # first hex digits of its SHA-256, where the publisher states them


_ACE = "https://github.com/guillaumejs2403/ACE"
_DIME = "https://github.com/guillaumejs2403/DiME"
_STEEX = "https://github.com/valeoai/STEEX/releases"
_FID = "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights"
_TORCH = "https://download.pytorch.org/models"

METRICS = {
    "alexnet": WeightsFile(
        "alexnet.safetensors", "LPIPS (alex) and all *_embedded features", "`make weights`"
    ),
    "vgg16": WeightsFile("vgg16.safetensors", "LPIPS (vgg), sigma_L", "`make weights ARGS=vgg16`"),
    "thorax": WeightsFile(
        "thorax.safetensors",
        "the world radiographs (no weights, but the layers of a CT scan)",
        "`make weights ARGS=thorax`",
    ),
    "lung_ct": WeightsFile(
        "lung_ct.safetensors",
        "the world lung_ct (no weights, but slices of a CT scan)",
        "`make weights ARGS=lung_ct`",
    ),
    "inception": WeightsFile(
        "pt_inception-2015-12-05-6726825d.pth",
        "FID, KID, sFID",
        f"{_FID}/pt_inception-2015-12-05-6726825d.pth",
        "6726825d",
    ),
    "vggface2": WeightsFile(
        "resnet50_ft_weight.pkl",
        "FVA, FS",
        "https://github.com/cydonia999/VGGFace2-pytorch, 'resnet50_ft'",
    ),
    "simsiam": WeightsFile(
        "checkpoint_0099.pth.tar",
        "S3",
        "https://github.com/facebookresearch/simsiam, pre-trained ResNet-50, 100 epochs, "
        "batch size 256",
    ),
    "celeba_oracle": WeightsFile(
        "celeba_oracle.pth",
        "MNAC and CD on CelebA",
        f"{_ACE}, 'CelebA Oracle' of its README (oracle.pth), renamed",
    ),
    "celebahq_oracle": WeightsFile(
        "celebahq_oracle.tar",
        "MNAC and CD on CelebA-HQ",
        f"{_STEEX}, checkpoints_oracle_attribute.tar.gz, celebamaskhq/checkpoint.tar, renamed",
    ),
}
MODELS = {
    "celeba_classifier": WeightsFile(
        "celeba_classifier.pth",
        "the explained CelebA classifier",
        f"{_DIME}, its README's classifier (DiVE's layout, 40 outputs), renamed",
    ),
    "celeba_ddpm": WeightsFile(
        "celeba_ddpm.pt",
        "ACE and DiME on CelebA",
        f"{_DIME}, its README's diffusion model (ddpm-celeba.pt), renamed",
    ),
    "celebahq_classifier": WeightsFile(
        "celebahq_classifier.tar",
        "the explained CelebA-HQ classifier",
        f"{_STEEX}, checkpoints_decision_densenet.tar.gz, celebamaskhq/checkpoint.tar, renamed",
    ),
    "celebahq_ddpm": WeightsFile(
        "celebahq_ddpm.pt",
        "ACE and DiME on CelebA-HQ",
        f"{_ACE}, its README's diffusion model for CelebA-HQ, renamed",
    ),
    "bdd_classifier": WeightsFile(
        "bdd_classifier.tar",
        "the explained BDD classifier",
        f"{_STEEX}, checkpoints_decision_densenet.tar.gz, bdd/checkpoint.tar, renamed",
    ),
    "bdd_ddpm": WeightsFile(
        "bdd_ddpm.pt",
        "ACE and DiME on BDD",
        f"{_ACE}, its README's diffusion model for BDD, renamed",
    ),
    "imagenet_classifier": WeightsFile(
        "resnet50-0676ba61.pth",
        "the explained ImageNet classifier",
        f"{_TORCH}/resnet50-0676ba61.pth",
        "0676ba61",
    ),
    "vgg19": WeightsFile(
        "vgg19-dcbb9e9d.pth",
        "DiME's perceptual term",
        f"{_TORCH}/vgg19-dcbb9e9d.pth",
        "dcbb9e9d",
    ),
    "imagenet_ddpm": WeightsFile(
        "256x256_diffusion_uncond.pt",
        "ACE on ImageNet",
        "https://github.com/openai/guided-diffusion, its unconditional 256 x 256 model",
    ),
}
FILES = METRICS | MODELS
