"""Which layers are decided together: those that an engine fuses into one kernel share one format."""

from __future__ import annotations

from collections.abc import Iterable

from advisor.types import Catalogue, Engine, Layer, LayerGroup


def decision_groups(catalogue: Catalogue, engine: Engine, layer_names: Iterable[str]) -> tuple[LayerGroup, ...]:
    """The named layers in catalogue order, those that `engine` fuses into one kernel together in one group."""
    wanted = set(layer_names)
    members: dict[str, list[Layer]] = {}
    for layer in catalogue.layers:
        if layer.name in wanted:
            members.setdefault(_group_key(layer, engine), []).append(layer)
    return tuple(LayerGroup(name=name, layers=tuple(layers)) for name, layers in members.items())


def _group_key(layer: Layer, engine: Engine) -> str:
    return layer.fused_with if layer.fused_with and layer.fusion in engine.fuses else layer.name
