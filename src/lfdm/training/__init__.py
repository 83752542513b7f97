"""Training of stage 1 and stage 2 by one loop, which resumes exactly, and adaptation of a decoder to new images."""

__all__ = [
    "adaptation",
    "batches",
    "checkpoint",
    "clip_arrays",
    "encoded_clips",
    "encoded_shards",
    "exact_motion",
    "few_steps",
    "growing",
    "interruption",
    "latent_cache",
    "loop",
    "losses",
    "motion_cache",
    "optimization",
    "planning",
    "reports",
    "stage1",
    "stage2",
    "track_sampling",
]
