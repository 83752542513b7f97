"""Flow, pixels or frame latents: our method against baselines at equal cost."""
