"""StyleGAN-NADA (arXiv:2108.00946): settings, training loop, layer selection, validation and resume."""
