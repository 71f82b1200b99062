"""What every tapped network owes, whatever its family."""

import torch
from torch import Tensor

from uhkd.features import FeatureExtractor
from uhkd.features.timm_extractor import TimmExtractor

ALL = frozenset({"logits", "maps", "embedding"})


def check_contract(tapped: FeatureExtractor, batch: int = 2) -> None:
    """What every network owes: see the lines."""
    torch.manual_seed(0)
    image = torch.rand(batch, 3, *tapped.input_size)
    shapes = tapped.shapes
    want = ALL if shapes.embedding is not None else ALL - {"embedding"}
    tapped.eval()
    signals = tapped(image, want)
    assert signals.logits is not None
    assert signals.maps is not None
    assert signals.spectra is None
    torch.testing.assert_close(signals.logits, tapped.plain(image), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(tapped(image).logits, signals.logits, rtol=1e-4, atol=1e-5)
    assert [tuple(item.shape) for item in signals.maps] == [(batch, *shape) for shape in shapes.maps]
    assert len(signals.maps) == len(tapped.levels) == len(set(tapped.levels)) >= 2
    areas = [height * width for _, height, width in shapes.maps]
    assert areas == sorted(areas, reverse=True)
    if signals.embedding is not None:
        assert signals.embedding.shape == (batch, shapes.embedding)
        check_head(tapped, signals.embedding, signals.logits)
    # Only what was asked for, and the same whatever else was asked for.
    alone = tapped(image, frozenset({"maps"}))
    assert alone.logits is None
    assert alone.embedding is None
    for one, other in zip(alone.maps, signals.maps, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    tapped.train()
    trained = tapped(image, want)
    weighted = sum((item * torch.randn_like(item)).mean() for item in trained.maps) + trained.logits.square().mean()
    weighted.backward()
    first = next(p for p in tapped.parameters() if p.requires_grad and p.ndim > 1 and p.numel())
    gradients = [p.grad for p in tapped.parameters() if p.grad is not None]
    assert all(bool(torch.isfinite(item).all()) for item in gradients)
    assert first.grad is not None
    assert first.grad.abs().sum() > 0
    tapped.eval()


def check_head(tapped: FeatureExtractor, embedding: Tensor, logits: Tensor) -> None:
    """Where the classifier is one linear layer, it turns the embedding into the logits."""
    reader = tapped._reader
    if isinstance(reader, TimmExtractor):
        classifier = tapped.module.get_classifier() if reader.linear_head else None  # pyright: ignore
    else:
        classifier = dict(tapped.module.named_modules())[reader.classifier]  # pyright: ignore
    if classifier is not None:
        torch.testing.assert_close(classifier(embedding), logits, rtol=1e-4, atol=1e-5)
