"""The network: backbone, discriminator, checkpoint."""
