"""Measurements of networks: metrics on held-out images, probes on frozen embeddings, diagnostics of features."""
