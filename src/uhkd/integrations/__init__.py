"""Adapters for training loops of other libraries: `lightning` (pytorch_lightning) and `timm` (timm.task)."""
