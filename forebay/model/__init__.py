"""Model code: configuration, weights and the forward pass. This file imports nothing, so torch-free users stay so."""
