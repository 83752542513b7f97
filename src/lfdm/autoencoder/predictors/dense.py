"""The project's own motion predictor: global matching, then refinement, without regions.

Both images are reduced until the motion has stride 2 in them, so that cost and memory of matching depend on the motion's grid
and not on the image's size. A shared encoder describes them. Every driving cell is matched against all source cells
(`lfdm.autoencoder.predictors.matching`), which finds motion of any size, also of limbs a few pixels wide. Two stages then warp
the source's features by the flow so far and correct it, at strides 4 and 2 (PWC-Net, arXiv 1709.02371). All heads start at
zero: training starts at zero flow and everything visible.

Where the motion's stride is larger than 2, the same encoder describes the images at every finer scale, and the flow is refined
there by local correlation (`lfdm.autoencoder.predictors.refinement`). One set of weights serves all sizes.

A limb that has turned far looks unlike the source. In a video it can be tracked: the motion between successive frames, which is
small, predicts where its counterpart is, and the match is pulled there (`DenseConfig.tracking`).

Shapes: source (b, 3, H, W) · driving (b, 3, t, H, W), both in [0, 1] · flow in half images · grid of the motion (h, w) =
(H, W) / stride.
"""

from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from lfdm.autoencoder.convolution import channels_last
from lfdm.autoencoder.layers import ConvBlock
from lfdm.autoencoder.predictors.matching import ImageFeatures, Match, Matching, resize_to
from lfdm.autoencoder.predictors.predictor import LossInputs, MotionEstimate, MotionPredictor
from lfdm.autoencoder.predictors.refinement import FlowState, LocalRefinement, warp_features, zero_convolution
from lfdm.config.predictors import TEACHER_TRACKING, DenseConfig
from lfdm.motion.motion import Motion
from lfdm.motion.warp import identity_grid, warp

OCCLUSION_BIAS = 3.0
"""Occlusion logit at the start of training: sigmoid(3) = 0.95, almost all of the image is warped rather than inpainted."""
IMAGE_CHANNELS = 5
"""RGB and the two coordinates of every pixel."""
FLOW_CHANNELS, OCCLUSION_CHANNELS, EVIDENCE_CHANNELS = 2, 1, 3
MATCHING_STRIDE = 2
"""Stride of matching in the reduced image."""
HEAD_CHANNELS = 1 + FLOW_CHANNELS + OCCLUSION_CHANNELS
"""A factor of the matched flow, a residual flow and an occlusion logit."""


class DenseMotionPredictor(MotionPredictor):
    """Flow and occlusion at `stride`, refined to stride 2. `config.channels` are the encoder's widths at strides 1, 2, 4 of the
    reduced image and the joint network's at 8, 16, ...
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
        self.coarse_head = zero_convolution(quarter, HEAD_CHANNELS)
        num_known = full + 2 * FLOW_CHANNELS + OCCLUSION_CHANNELS + EVIDENCE_CHANNELS
        self.to_fine = nn.Conv2d(quarter, full, 1)
        self.refine = nn.Sequential(ConvBlock(2 * half + num_known, half), ConvBlock(half, half))
        self.fine_head = zero_convolution(half, HEAD_CHANNELS)
        self.matching = Matching((half, quarter), config.match_channels)
        finer = stride > MATCHING_STRIDE
        self.local_refinement = LocalRefinement(half, carried=full, compared=config.match_channels) if finer else None

    def predict(self, source: Tensor, driving: Tensor, before: tuple[Tensor, Tensor] | None = None) -> MotionEstimate:
        """Estimate motion (see `MotionPredictor.predict`). With `tracking`, driving frames must be successive frames."""
        b = driving.shape[0]
        reduction = self.stride // MATCHING_STRIDE
        previous = before if self.tracking else None
        frames = driving if previous is None else torch.cat((previous[0].unsqueeze(2), driving), dim=2)
        source_features = self._describe(_reduce(source, reduction))
        features = self._describe(_reduce(rearrange(frames, "b c t h w -> (b t) c h w"), reduction))
        losses = {}
        if self.tracking and frames.shape[2] > 1:
            state = self._track(source_features, features, b, None if previous is None else previous[1])
            motion = _to_motion(state, b)
        else:
            state, match = self._estimate(source_features, features)
            motion = _to_motion(state, b)
            losses = {
                "match": partial(_match_loss, match.pixels, features.pixels),
                "tracking_distillation": partial(_tracking_distillation_loss, motion.flow, match.flow),
            }
        refine = None if self.local_refinement is None else partial(self._refine_locally, source, driving, state)
        return MotionEstimate(motion, losses, refine)

    def _describe(self, image: Tensor) -> ImageFeatures:
        """Return the features of images (n, 3, H, W)."""
        half = self._describe_half(image)
        return ImageFeatures(half, self.encoder[1](half), F.pixel_unshuffle(image, 2))

    def _describe_half(self, image: Tensor) -> Tensor:
        """Return the features of images (n, 3, H, W) at stride 2."""
        position = identity_grid(*image.shape[-2:], corners=False, device=image.device).permute(2, 0, 1).to(image.dtype)
        x = channels_last(torch.cat((2 * image - 1, position.expand(image.shape[0], -1, -1, -1)), dim=1))
        return self.encoder[0](self.stem(x))

    def _track(self, source: ImageFeatures, frames: ImageFeatures, b: int, flow: Tensor | None) -> FlowState:
        """Estimate t frames one after another, except for the first one where its flow (b, 2, h, w) is given."""
        t = len(frames.half) // b
        previous, following = frames.select_frames(b, slice(0, -1)), frames.select_frames(b, slice(1, None))
        steps = self._estimate(previous, following)[0].flow.unflatten(0, (b, -1))
        states: list[FlowState] = []
        for k in range(t):
            if k == 0 and flow is not None:
                continue
            expected = None if flow is None else compose_flow(flow, steps[:, k - 1])
            states.append(self._estimate(source, frames.select_frames(b, slice(k, k + 1)), expected)[0])
            flow = states[-1].flow
        return FlowState.stack_frames(states)

    def track_points(self, video: Tensor) -> Tensor:
        """Track the pixels of frame 0 from frame to frame (see `MotionPredictor.track_points`)."""
        b, images = video.shape[0], rearrange(video, "b c t h w -> (b t) c h w")
        frames = self._describe(_reduce(images, self.stride // MATCHING_STRIDE))
        first, previous, following = (frames.select_frames(b, s) for s in (slice(0, 1), slice(0, -1), slice(1, None)))
        steps = self._estimate(following, previous)[0].flow.unflatten(0, (b, -1)) if video.shape[2] > 1 else None
        states: list[FlowState] = []
        for k in range(video.shape[2]):
            expected = None if k == 0 or steps is None else follow_flow(states[-1].flow, steps[:, k - 1])
            states.append(self._estimate(frames.select_frames(b, slice(k, k + 1)), first, expected, TEACHER_TRACKING)[0])
        return _to_motion(FlowState.stack_frames(states), b).flow

    def _estimate(
        self, source: ImageFeatures, driving: ImageFeatures, expected: Tensor | None = None, pull: float | None = None
    ) -> tuple[FlowState, Match]:
        """Estimate b * t driving frames against b sources; the expected flow (b * t, 2, h, w) has the given or usual pull."""
        t = driving.half.shape[0] // source.half.shape[0]
        match = self.matching(source, driving, expected, self.tracking if pull is None else pull)
        coarse_match, coarse_evidence = (F.avg_pool2d(x, 2, ceil_mode=True) for x in (match.flow, match.evidence))
        hidden = self._join(source.quarter, driving.quarter, coarse_match, coarse_evidence.detach(), t)
        head = self.coarse_head(hidden).float()
        flow = head[:, :1] * coarse_match + self.max_residual * torch.tanh(head[:, 1:3])
        detail = match.flow - resize_to(coarse_match, match.flow)
        known = FlowState(*(resize_to(x, match.flow) for x in (flow, head[:, 3:], self.to_fine(hidden))))
        return self._refine(source.half, driving.half, match, detail, known, t), match

    def _join(self, source: Tensor, driving: Tensor, flow: Tensor, evidence: Tensor, t: int) -> Tensor:
        """Run the joint network at stride 4 on features there, the matched flow (b * t, 2, h, w) and its evidence."""
        inputs = torch.cat((driving, warp_features(source, flow, t), flow.detach(), evidence), dim=1)
        x = self.join(inputs.to(driving.dtype))  # flow and evidence are float32
        skips = []
        for down in self.downs:
            skips.append(x)
            x = down(x)
        for up in self.ups:
            skip = skips.pop()
            x = up(torch.cat((F.interpolate(x, size=skip.shape[-2:], mode="nearest"), skip), dim=1))
        return x

    def _refine(self, source: Tensor, driving: Tensor, match: Match, detail: Tensor, known: FlowState, t: int) -> FlowState:
        """Refine flow and occlusion at stride 2.

        Args:
            detail: what the matched flow has at stride 2 and not at stride 4, (b * t, 2, h, w).
            known: the state of stride 4, doubled.
        """
        inputs = (warp_features(source, known.flow, t), known.flow, match.flow, known.occlusion, match.evidence)
        x = torch.cat((known.hidden, driving, *(x.detach() for x in inputs)), dim=1)
        hidden = self.refine(x.to(driving.dtype))
        head = self.fine_head(hidden).float()
        flow = known.flow + head[:, :1] * detail + self.max_residual * torch.tanh(head[:, 1:3])
        return FlowState(flow, known.occlusion + head[:, 3:], hidden)

    def _refine_locally(self, source: Tensor, driving: Tensor, state: FlowState) -> Motion:
        """Refine the motion of all frames at every finer scale, down to stride 2: Motion at (H, W) / 2."""
        assert self.local_refinement is not None
        frames = rearrange(driving, "b c t h w -> (b t) c h w")
        reduction = self.stride // MATCHING_STRIDE
        while reduction > 1:
            reduction //= 2
            features = (self._describe_half(_reduce(image, reduction)) for image in (source, frames))
            state = self.local_refinement(state, *features)
        return _to_motion(state, len(source))


def _reduce(image: Tensor, factor: int) -> Tensor:
    """Reduce images (n, 3, H, W) by averaging squares of factor x factor pixels."""
    return image if factor == 1 else F.avg_pool2d(image, factor)


def _to_motion(state: FlowState, b: int) -> Motion:
    """Return the motion of b clips from a state of (b * t) frames."""
    occlusion = torch.sigmoid(state.occlusion + OCCLUSION_BIAS)
    return Motion(*(rearrange(x, "(b t) c h w -> b c t h w", b=b) for x in (state.flow, occlusion)), corners=False)


def compose_flow(flow: Tensor, step: Tensor) -> Tensor:
    """Return a frame's flow (b, 2, h, w) from the previous frame's and the step between them: step(x) + flow(x + step(x))."""
    return follow_flow(step, flow)


def follow_flow(displacement: Tensor, step: Tensor) -> Tensor:
    """Return where points are in the next frame: displacement(x) + step(x + displacement(x)), (b, 2, h, w) each."""
    grid = identity_grid(*step.shape[-2:], corners=False, device=step.device) + displacement.permute(0, 2, 3, 1)
    return displacement + warp(step, grid.unsqueeze(1), padding_mode="border")[:, :, 0]


def _match_loss(matched: Tensor, target: Tensor, _: LossInputs) -> Tensor:
    """Return the mean absolute error of the driving frame assembled from matched source cells, (n, 12, h, w) each."""
    return (matched.float() - target.float()).abs().mean()


def _tracking_distillation_loss(flow: Tensor, match_flow: Tensor, inputs: LossInputs) -> Tensor:
    """Return the mean L1 distance of flow (b, 2, 1, h, w) and of its match (b, 2, h, w) to the teacher's flow."""
    teacher, valid = inputs.teacher_flow, inputs.has_teacher_flow
    assert teacher is not None
    assert valid is not None
    error = (flow[:, :, 0].float() - teacher).abs().sum(1).mean((1, 2))
    match_error = (match_flow.float() - teacher).abs().sum(1).mean((1, 2))
    return ((error + match_error) * valid).mean()
