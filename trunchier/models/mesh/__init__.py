"""Human mesh recovery: estimator, head, body model, losses, discriminator."""
