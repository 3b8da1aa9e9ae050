"""The networks: VAR's autoencoder, the `light` autoencoder, the quantizer, and the whole VQ-VAE."""
