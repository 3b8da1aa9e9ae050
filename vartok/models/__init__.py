"""The networks: VAR's autoencoder, the `light` one, the quantizer, and the VQ-VAE that joins them."""
