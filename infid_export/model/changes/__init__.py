"""What a build changes about a model's weights: LoRAs, another VAE, another UNet."""
