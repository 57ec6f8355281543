"""An autoencoder so small that it trains in a minute on a CPU: every square of pixels is one latent."""

from __future__ import annotations

from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput, EncoderOutput
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn


class PatchAutoencoder(ModelMixin, ConfigMixin):  # type: ignore[misc]  # as diffusers derives its own
    """A deterministic autoencoder of squares of pixels, with the interface of diffusers' AutoencoderDC.

    Args:
        factor: f, pixels on a side of a square.
        latent_channels: C.
        width: of the hidden layers.
    """

    @register_to_config
    def __init__(self, factor: int = 8, latent_channels: int = 16, width: int = 256) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, width, factor, factor),
            nn.SiLU(),
            nn.Conv2d(width, width, 1),
            nn.SiLU(),
            nn.Conv2d(width, latent_channels, 1),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(latent_channels, width, 1),
            nn.SiLU(),
            nn.Conv2d(width, width, 1),
            nn.SiLU(),
            nn.Conv2d(width, width, 1),
            nn.SiLU(),
            nn.ConvTranspose2d(width, 3, factor, factor),
        )

    def encode(self, pixels: Tensor) -> EncoderOutput:
        """Latents [B, C, H / f, W / f] of pixels [B, 3, H, W] from -1 to 1."""
        return EncoderOutput(latent=self.encoder(pixels))

    def decode(self, latents: Tensor) -> DecoderOutput:
        """Pixels [B, 3, h f, w f] of latents [B, C, h, w]."""
        return DecoderOutput(sample=self.decoder(latents))
