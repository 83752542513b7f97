"""Limits of the web app. Imports nothing heavy, since the command line reads them."""

from dataclasses import dataclass

from lfdm.config.checks import check, check_at_most, check_positive, check_types

MEGA = 1_000_000
MAX_JOBS = 64


@dataclass(frozen=True, kw_only=True)
class ServeLimits:
    """Limits on the memory, disk space and time that requests may use.

    Raises:
        UserError: a value that is not positive or too large.
    """

    num_jobs: int = 1
    """Number of jobs that run at the same time."""
    queue_size: int = 32
    """Largest number of waiting requests; further ones are refused."""
    num_videos: int = 4
    """Largest number of videos per request."""
    num_inference_steps: int = 100
    """Largest number of sampling steps per request."""
    upload_megabytes: float = 16.0
    """Largest size of an uploaded file, in megabytes."""
    image_megapixels: float = 25.0
    """Largest uploaded image, in megapixels."""
    full_size_megapixels: float = 64.0
    """Megapixels of a video in its picture's own size, all frames together; each takes 6 MB and about a second of one core."""
    clip_megapixels: float = 250.0
    """Megapixels of a driving clip that are used, all frames together; of longer clips the beginning is."""
    clip_frames: int = 240
    """Frames of a driving clip that are used, from its beginning."""
    sound_seconds: float = 60.0
    """Longest video that gets its driving clip's sound, in seconds."""
    storage_megabytes: float = 1024.0
    """Disk space for all uploads and results, in megabytes; the least recently used ones are removed first."""
    keep_seconds: float = 600.0
    """Time in seconds after their last use at which uploads and results are removed."""

    def __post_init__(self) -> None:
        check_types(self)
        check_positive(self, *self.__dataclass_fields__)
        check_at_most(self, MAX_JOBS, "num_jobs", "num_videos")
        check_at_most(self, 1000, "queue_size", "num_inference_steps")
        check_at_most(self, 50, "image_megapixels")  # limit of lfdm.data.images
        check_at_most(
            self,
            1e6,
            "upload_megabytes",
            "full_size_megapixels",
            "clip_megapixels",
            "clip_frames",
            "sound_seconds",
            "storage_megabytes",
        )
        allowed = f"at most storage_megabytes, {self.storage_megabytes:g}"
        check(self.upload_megabytes <= self.storage_megabytes, "upload_megabytes", self.upload_megabytes, allowed)

    @property
    def upload_bytes(self) -> int:
        return int(self.upload_megabytes * MEGA)
