"""Which estimated layers leave a decision open, and are worth an exact measurement. Pure.

At a price per byte every layer takes the format of least (loss + price x bytes). A layer is open at that price where
its error bars leave another format possible; what knowing its true scores would win on average is the expected value
of perfect information (Raiffa and Schlaifer 1961). Prices over the whole range stand for every budget.
"""

from __future__ import annotations

import numpy as np

from advisor.formats.table import packed_bytes
from advisor.knowledge import find_format
from advisor.types import SensitivityProfile

_PRICES = 13
_DRAWS = 256
_TOLERANCE = 0.02  # of a plan's loss: what may stay open, all layers together


def open_layers(profile: SensitivityProfile, tolerance: float = _TOLERANCE) -> list[str]:
    """Layers to measure exactly, the most valuable first, until the rest could win `tolerance` of a plan's loss."""
    layers, loss, error, size = _table(profile)
    prices = _prices(loss, size)
    if not len(prices):
        return []
    rng = np.random.default_rng(0)
    spread = np.sqrt(np.log1p(np.square(error)))
    samples = loss * np.exp(spread * rng.standard_normal((_DRAWS, *loss.shape)) - np.square(spread) / 2)
    shares = np.array([_shares(price, loss, size, samples) for price in prices])  # (prices, layers)
    order = np.argsort(-shares.max(0), kind="stable")
    left = shares.sum(1)
    found = []
    for index in order:
        if (left <= tolerance).all() or shares[:, index].max() == 0:
            break
        found.append(layers[index])
        left = left - shares[:, index]
    return found


def _table(profile: SensitivityProfile) -> tuple[list[str], np.ndarray, np.ndarray, np.ndarray]:
    """Layers, and `(layers, formats)` of loss, relative error and bytes; the model's own dtype comes first."""
    catalogue = profile.catalogue
    names = (catalogue.dtype, *profile.formats)
    scores = {(m.layer, m.format): m for m in profile.measurements}
    layers = list(profile.measured_layers)
    loss = np.full((len(layers), len(names)), np.inf)
    error, size = np.zeros(loss.shape), np.full(loss.shape, np.inf)
    by_name = catalogue.by_name()
    for row, name in enumerate(layers):
        loss[row, 0], size[row, 0] = 0.0, packed_bytes(find_format(catalogue.dtype), by_name[name])
        for column, fmt in enumerate(names[1:], 1):
            measured = scores.get((name, fmt))
            if measured is None:
                continue
            loss[row, column] = max(measured.kl, 0.0)
            size[row, column] = packed_bytes(find_format(fmt), by_name[name])
            if measured.kl > 0:
                error[row, column] = measured.kl_stderr / measured.kl
    return layers, loss, error, size


def _prices(loss: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Nats per byte at which layers change their format: evenly spread quantiles of all exchange rates."""
    with np.errstate(invalid="ignore"):
        saved = size[:, :, None] - size[:, None, :]
        rates = (loss[:, None, :] - loss[:, :, None]) / saved
    rates = rates[np.isfinite(rates) & (saved > 0) & (rates > 0)]
    return np.quantile(rates, np.linspace(0.05, 0.95, _PRICES)) if len(rates) else rates


def _shares(price: float, loss: np.ndarray, size: np.ndarray, samples: np.ndarray) -> np.ndarray:
    """What perfect knowledge of each layer would win at this price, as a share of the plan's loss: `(layers,)`."""
    chosen = (loss + price * size).argmin(1)
    cost = samples + price * size
    taken = np.take_along_axis(cost, np.broadcast_to(chosen[:, None], (len(samples), len(chosen), 1)), 2)[..., 0]
    won = (taken - cost.min(2)).mean(0)
    total = np.take_along_axis(loss, chosen[:, None], 1).sum()
    return won / max(total, np.finfo(float).tiny)
