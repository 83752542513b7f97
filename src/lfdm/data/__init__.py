"""Clip data sets: their table, video and image files, decoded frames and augmentation; data sets rendered or converted.

Shapes: frames are (t, H, W, 3) uint8 RGB in numpy; items for training are uint8 tensors (3, H, W) or (3, t, H, W).
"""

__all__ = [
    "alpha",
    "animations",
    "augmentation",
    "backgrounds",
    "cache",
    "characters",
    "checking",
    "clip_file",
    "clips",
    "containers",
    "corpora",
    "fitting",
    "frame_indices",
    "free_motion",
    "gif_blocks",
    "images",
    "index",
    "pictures",
    "progress",
    "puppets",
    "shard_cache",
    "shard_file",
    "sharded_clips",
    "sharding",
    "sound",
    "sprite_sheets",
    "sprites",
    "tables",
    "training_clips",
    "truth",
    "video",
]
