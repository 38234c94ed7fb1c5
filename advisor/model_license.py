"""The license and the hub's name of a model, as far as it states them, for the cards of what is made of it."""

from __future__ import annotations

from pathlib import Path

from advisor.demo import DEMO_BASE, demo_gguf
from advisor.types import ModelRef


def base_model(ref: ModelRef) -> str:
    """The hub's name of the model; empty where it does not come from there."""
    return {"hub": ref.source, "demo": DEMO_BASE}.get(ref.kind, "")


def license_of(ref: ModelRef) -> str:
    """The license's identifier as the model's card or GGUF file states it; empty where nothing is stated or reached."""
    try:
        if ref.kind == "hub":
            from huggingface_hub import model_info

            card = model_info(ref.source, timeout=5).card_data
            return str((card and card.license) or "")
        if ref.kind == "folder":
            from huggingface_hub import ModelCard

            card = Path(ref.source) / "README.md"
            return str(ModelCard.load(card).data.license or "") if card.is_file() else ""
        return _of_gguf(demo_gguf(lambda progress: None) if ref.kind == "demo" else Path(ref.source))
    except Exception:  # a hub without network, a card that is not YAML, a foreign file: no reason to stop an export
        return ""


def _of_gguf(path: Path) -> str:
    from gguf import GGUFReader

    field = GGUFReader(path).fields.get("general.license")
    return str(field.contents()) if field else ""
