"""Networks, frozen on load: StyleGAN2 generators, domains (weight deltas), CLIP, LPIPS and ArcFace."""
