"""What a run optimizes, as numbers: prompts, shifts in CLIP space, losses, augmentation and metrics."""
