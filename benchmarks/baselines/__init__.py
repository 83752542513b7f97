"""What our method is compared with: diffusion of pixels, diffusion of frame latents, and two methods that learn nothing new."""
