"""Evaluation of networks: metrics, probes of frozen embeddings, and diagnostics of features."""
