"""The operations of StyleGAN2 in plain PyTorch: they run, and differentiate twice, on any device."""

from .activation import bias_act
from .convolution import modulated_conv
from .fir import smooth, upsample
from .styled import styled_conv

__all__ = ["bias_act", "modulated_conv", "smooth", "styled_conv", "upsample"]
