"""Model code: configuration, weights and the forward pass. Imports nothing: the gateway stays torch-free."""
