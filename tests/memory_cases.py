"""A tiny catalogue whose bytes can be counted by hand, and what other libraries' tensors hold, for tests of memory."""

from advisor.types import AttentionGeometry, Catalogue, Layer, ModelRef, Role

GIB = 2**30
REF = ModelRef(source="tiny", kind="folder", name="tiny")


def layer(name: str, *shape: int, role: Role = Role.MLP_DOWN, **more) -> Layer:
    return Layer(
        name=name, parameter=f"{name}.weight", role=role, block=0, shape=shape, quantizable=len(shape) > 1, **more
    )


def catalogue(dtype="bf16", layers=(), **geometry) -> Catalogue:
    shape = {"blocks": 4, "attention_heads": 8, "kv_heads": 2, "head_dim": 16} | geometry
    return Catalogue(
        model=ModelRef(source="x", kind="folder", name="tiny"),
        architecture="LlamaForCausalLM",
        dtype=dtype,
        hidden_size=128,
        intermediate_size=512,
        vocabulary=1000,
        max_context=4096,
        attention=AttentionGeometry(**shape),
        layers=layers
        or (
            layer("embed", 1000, 128, role=Role.EMBEDDING, tied_names=("lm_head",)),
            layer("up", 512, 128, role=Role.MLP_GATE_UP),
            layer("down", 128, 512),
            layer("norm", 128, role=Role.NORM),
        ),
    )


def plain_bytes(tensor) -> int:
    """Bytes of a tensor subclass: of all the plain tensors inside it."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return tensor.nbytes
    names, _ = tensor.__tensor_flatten__()
    return sum(plain_bytes(getattr(tensor, name)) for name in names)
