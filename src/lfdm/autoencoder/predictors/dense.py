"""The project's own motion predictor: global matching, then refinement, without regions.

A shared encoder describes both images. Every driving cell at stride 2 is matched against all source cells
(`lfdm.autoencoder.predictors.matching`), which finds motion of any size, also of limbs a few pixels wide. Two stages then warp
the source's features by the flow so far and correct it, at stride 4 and, for flow of stride 2, at stride 2 (PWC-Net, arXiv
1709.02371). All heads start at zero: training starts at zero flow and everything visible.

A limb that has turned far looks unlike the source. In a video it can be tracked: the motion between successive frames, which is
small, predicts where its counterpart is, and the match is pulled there (`DenseConfig.tracking`).

Shapes: source (b, 3, H, W) · driving (b, 3, t, H, W), both in [0, 1] · flow in half images.
"""

from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from lfdm.autoencoder.convolution import channels_last
from lfdm.autoencoder.layers import ConvBlock
from lfdm.autoencoder.predictors.matching import ImageFeatures, Match, Matching, double
from lfdm.autoencoder.predictors.predictor import LossInputs, MotionEstimate, MotionPredictor
from lfdm.config.predictors import DenseConfig
from lfdm.motion.motion import Motion
from lfdm.motion.warp import identity_grid, warp

OCCLUSION_BIAS = 3.0
"""Occlusion logit at the start of training: sigmoid(3) = 0.95, almost all of the image is warped rather than inpainted."""
IMAGE_CHANNELS = 5
"""RGB and the two coordinates of every pixel."""
FLOW_CHANNELS, OCCLUSION_CHANNELS, EVIDENCE_CHANNELS = 2, 1, 3
HEAD_CHANNELS = 1 + FLOW_CHANNELS + OCCLUSION_CHANNELS
"""A factor of the matched flow, a residual flow and an occlusion logit."""


class DenseMotionPredictor(MotionPredictor):
    """Flow and occlusion at `stride` (2 or 4). `config.channels` are the encoder's widths at strides 1, 2, 4 and the joint
    network's at 8, 16, ...
    """

    def __init__(self, config: DenseConfig, *, stride: int, corners: bool = False, padding_mode: str = "border") -> None:
        super().__init__(config, stride=stride, corners=corners, padding_mode=padding_mode)
        self.max_residual, self.tracking = config.max_residual, config.tracking
        full, half, quarter = config.channels[:3]
        joint = config.channels[2:]
        self.stem = ConvBlock(IMAGE_CHANNELS, full)
        self.encoder = nn.ModuleList(
            (
                ConvBlock(full, half, stride=2),
                nn.Sequential(ConvBlock(half, quarter, stride=2), ConvBlock(quarter, quarter)),
            )
        )
        self.join = ConvBlock(2 * quarter + FLOW_CHANNELS + EVIDENCE_CHANNELS, quarter)
        self.downs = nn.ModuleList(nn.Sequential(ConvBlock(a, b, stride=2), ConvBlock(b, b)) for a, b in pairwise(joint))
        self.ups = nn.ModuleList(ConvBlock(a + b, b) for a, b in pairwise(joint[::-1]))
        self.coarse_head = _zero_convolution(quarter, HEAD_CHANNELS)
        if stride == 2:
            num_known = full + 2 * FLOW_CHANNELS + OCCLUSION_CHANNELS + EVIDENCE_CHANNELS
            self.to_fine = nn.Conv2d(quarter, full, 1)
            self.refine = nn.Sequential(ConvBlock(2 * half + num_known, half), ConvBlock(half, half))
            self.fine_head = _zero_convolution(half, HEAD_CHANNELS)
        self.matching = Matching((half, quarter), config.match_channels)

    def predict(self, source: Tensor, driving: Tensor, before: tuple[Tensor, Tensor] | None = None) -> MotionEstimate:
        """Estimate motion (see `MotionPredictor.predict`). With `tracking`, driving frames must be successive frames."""
        b = len(driving)
        if self.tracking and before is not None:
            driving = torch.cat((before[0].unsqueeze(2), driving), dim=2)
        source_features = self._describe(source)
        frames = self._describe(rearrange(driving, "b c t h w -> (b t) c h w"))
        if not self.tracking or driving.shape[2] == 1:
            return self._estimate(source_features, frames)
        return MotionEstimate(self._track(source_features, frames, b, None if before is None else before[1]))

    def _describe(self, image: Tensor) -> ImageFeatures:
        """Return the features of images (n, 3, H, W)."""
        position = identity_grid(*image.shape[-2:], corners=False, device=image.device).permute(2, 0, 1).to(image.dtype)
        x = self.stem(channels_last(torch.cat((2 * image - 1, position.expand(len(image), -1, -1, -1)), dim=1)))
        half = self.encoder[0](x)
        return ImageFeatures(half, self.encoder[1](half), F.pixel_unshuffle(image, 2))

    def _track(self, source: ImageFeatures, frames: ImageFeatures, b: int, flow: Tensor | None) -> Motion:
        """Estimate t frames one after another, except for the first one where its flow (b, 2, h, w) is given."""
        t = len(frames.half) // b
        previous, following = frames.select_frames(b, slice(0, -1)), frames.select_frames(b, slice(1, None))
        steps = self._estimate(previous, following).motion.flow
        steps = rearrange(steps, "(b t) c 1 h w -> b t c h w", b=b)
        motions: list[Motion] = []
        for k in range(t):
            if k == 0 and flow is not None:
                continue
            expected = None if flow is None else compose_flow(flow, steps[:, k - 1])
            motions.append(self._estimate(source, frames.select_frames(b, slice(k, k + 1)), expected).motion)
            flow = motions[-1].flow[:, :, 0]
        return Motion.concatenate(motions, dim=2)

    def _estimate(self, source: ImageFeatures, driving: ImageFeatures, expected: Tensor | None = None) -> MotionEstimate:
        """Estimate b * t driving frames against b sources; the expected flow is (b * t, 2, h, w)."""
        b = len(source.half)
        t = len(driving.half) // b
        if expected is not None and self.stride == 4:  # matching is at stride 2
            expected = double(expected)
        match = self.matching(source, driving, expected, self.tracking)
        coarse_match, coarse_evidence = F.avg_pool2d(match.flow, 2), F.avg_pool2d(match.evidence, 2)
        hidden = self._join(source.quarter, driving.quarter, coarse_match, coarse_evidence.detach(), t)
        head = self.coarse_head(hidden).float()
        flow = head[:, :1] * coarse_match + self.max_residual * torch.tanh(head[:, 1:3])
        occlusion = head[:, 3:]
        if self.stride == 2:
            detail = match.flow - double(coarse_match)
            known = double(flow), double(occlusion), double(self.to_fine(hidden))
            flow, occlusion = self._refine(source.half, driving.half, match, detail, known, t)
        occlusion = torch.sigmoid(occlusion + OCCLUSION_BIAS)
        flow, occlusion = (rearrange(x, "(b t) c h w -> b c t h w", b=b) for x in (flow, occlusion))
        losses = {
            "match": partial(_match_loss, match.pixels, driving.pixels),
            "tracking_distillation": partial(_tracking_distillation_loss, flow, match.flow),
        }
        return MotionEstimate(Motion(flow, occlusion, corners=False), losses)

    def _join(self, source: Tensor, driving: Tensor, flow: Tensor, evidence: Tensor, t: int) -> Tensor:
        """Run the joint network at stride 4 on features there, the matched flow (b * t, 2, h, w) and its evidence."""
        inputs = torch.cat((driving, _warp_features(source, flow, t), flow.detach(), evidence), dim=1)
        x = self.join(inputs.to(driving.dtype))  # flow and evidence are float32
        skips = []
        for down in self.downs:
            skips.append(x)
            x = down(x)
        for up in self.ups:
            x = up(torch.cat((F.interpolate(x, scale_factor=2, mode="nearest"), skips.pop()), dim=1))
        return x

    def _refine(
        self, source: Tensor, driving: Tensor, match: Match, detail: Tensor, known: tuple[Tensor, Tensor, Tensor], t: int
    ) -> tuple[Tensor, Tensor]:
        """Refine flow and occlusion logit at stride 2.

        Args:
            detail: what the matched flow has at stride 2 and not at stride 4, (b * t, 2, H/2, W/2).
            known: flow, occlusion logit and hidden state of stride 4, doubled.
        """
        flow, occlusion, hidden = known
        inputs = (_warp_features(source, flow, t), flow, match.flow, occlusion, match.evidence)
        x = torch.cat((hidden, driving, *(x.detach() for x in inputs)), dim=1)
        head = self.fine_head(self.refine(x.to(driving.dtype))).float()
        flow = flow + head[:, :1] * detail + self.max_residual * torch.tanh(head[:, 1:3])
        return flow, occlusion + head[:, 3:]


def compose_flow(flow: Tensor, step: Tensor) -> Tensor:
    """Return a frame's flow (b, 2, h, w) from the previous frame's and the step between them: step(x) + flow(x + step(x))."""
    grid = identity_grid(*step.shape[-2:], corners=False, device=step.device) + step.permute(0, 2, 3, 1)
    return step + warp(flow, grid.unsqueeze(1), padding_mode="border")[:, :, 0]


def _warp_features(source: Tensor, flow: Tensor, t: int) -> Tensor:
    """Warp source features (b, c, h, w) by flow (b * t, 2, h, w), without gradient through the flow."""
    grid = identity_grid(*flow.shape[-2:], corners=False, device=flow.device) + flow.detach().permute(0, 2, 3, 1)
    grid = rearrange(grid, "(b t) h w xy -> b t h w xy", t=t)
    return channels_last(rearrange(warp(source, grid, padding_mode="border"), "b c t h w -> (b t) c h w"))


def _match_loss(matched: Tensor, target: Tensor, _: LossInputs) -> Tensor:
    """Return the mean absolute error of the driving frame assembled from matched source cells, (n, 12, h, w) each."""
    return (matched.float() - target.float()).abs().mean()


def _tracking_distillation_loss(flow: Tensor, match_flow: Tensor, inputs: LossInputs) -> Tensor:
    """Return the mean L1 distance of flow (b, 2, 1, h, w) and of its match (b, 2, H/2, W/2) to the teacher's flow."""
    teacher, valid = inputs.teacher_flow, inputs.has_teacher_flow
    assert teacher is not None
    assert valid is not None
    finer = F.interpolate(teacher, size=match_flow.shape[-2:], mode="bilinear", align_corners=False)
    error = (flow[:, :, 0].float() - teacher).abs().sum(1).mean((1, 2))
    match_error = (match_flow.float() - finer).abs().sum(1).mean((1, 2))
    return ((error + match_error) * valid).mean()


def _zero_convolution(in_channels: int, out_channels: int) -> nn.Conv2d:
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
    nn.init.zeros_(conv.weight)
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    return conv
