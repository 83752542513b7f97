"""What one request to the web app may take, and all of them together. Imports nothing heavy: the command line reads it."""

from dataclasses import dataclass

from lfdm.config.checks import check, check_at_most, check_positive, check_types

MEGA = 1_000_000


@dataclass(frozen=True, kw_only=True)
class ServeLimits:
    """Bounds of the web app, all together what decides how much memory, disk and time its users can take.

    Raises:
        UserError: a value that is not positive or beyond what is possible.
    """

    num_jobs: int = 1
    """Jobs that run at once."""
    queue_size: int = 32
    """Requests that may wait; one more is told that the server is busy."""
    num_videos: int = 4
    """Videos of one request."""
    num_inference_steps: int = 100
    """Sampling steps of one request."""
    upload_megabytes: float = 16.0
    """Size of one uploaded file."""
    image_megapixels: float = 25.0
    """Pixels of an uploaded image."""
    clip_megapixels: float = 250.0
    """Pixels of a driving clip, all frames together."""
    clip_frames: int = 240
    """Frames of a driving clip."""
    clip_seconds: float = 30.0
    """Length of a driving clip."""
    storage_megabytes: float = 1024.0
    """Uploads and results on disk, all users together; the longest unused ones make room for new ones."""
    keep_seconds: float = 600.0
    """How long uploads and results stay after their last use."""

    def __post_init__(self) -> None:
        check_types(self)
        check_positive(self, *self.__dataclass_fields__)
        check_at_most(self, 64, "num_jobs", "num_videos")
        check_at_most(self, 1000, "queue_size", "num_inference_steps")
        check_at_most(self, 50, "image_megapixels")  # more is refused everywhere: lfdm.data.images
        check_at_most(self, 1e6, "upload_megabytes", "clip_megapixels", "clip_frames", "clip_seconds", "storage_megabytes")
        allowed = f"at most storage_megabytes, {self.storage_megabytes:g}"
        check(self.upload_megabytes <= self.storage_megabytes, "upload_megabytes", self.upload_megabytes, allowed)

    @property
    def upload_bytes(self) -> int:
        return int(self.upload_megabytes * MEGA)
