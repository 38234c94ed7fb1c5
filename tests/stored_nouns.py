"""One small noun of each kind that the database holds, and what reaches it, for the tests of storage."""

import math

from sqlalchemy import event, text

from advisor.types import (
    AttentionGeometry,
    Baseline,
    Budget,
    CalibrationSpec,
    Catalogue,
    Evaluation,
    Layer,
    Measurement,
    MemoryEstimate,
    ModelRef,
    Plan,
    PlanRequest,
    Prediction,
    Reason,
    Role,
    SensitivityProfile,
    TextSpec,
)


def make_catalogue(source="smollm2", fingerprint="f" * 64, vocabulary=100):
    names = ("model.layers.0.mlp.down_proj", "a", "b", "before")
    layers = tuple(
        Layer(name=name, parameter=f"{name}.weight", role=Role.MLP_DOWN, block=0, shape=(8, 64), quantizable=True)
        for name in names
    )
    return Catalogue(
        model=ModelRef(source=source, kind="demo", name="SmolLM2", fingerprint=fingerprint),
        architecture="LlamaForCausalLM",
        dtype="bf16",
        hidden_size=8,
        intermediate_size=64,
        vocabulary=vocabulary,
        max_context=128,
        attention=AttentionGeometry(blocks=1, attention_heads=2, kv_heads=1, head_dim=4),
        layers=layers,
    )


def make_header(profile_id="p1", measurements=(), catalogue=None):
    return SensitivityProfile(
        id=profile_id,
        catalogue=catalogue or make_catalogue(),
        calibration=CalibrationSpec(text="python-docs", samples=8, seq_len=256, seed=3, text_sha256="ab"),
        method="exact",
        dtype="fp32",
        baseline=Baseline(nll=3.25, nll_stderr=0.125, tokens=2048),
        measurements=measurements,
        provenance={"torch": "2.13.0"},
    )


def make_measurement(layer="a", format="int8", delta_nll=0.1, sequences=(0.1, -0.2)):
    return Measurement(
        layer=layer,
        format=format,
        delta_nll=delta_nll,
        delta_nll_stderr=0.01,
        kl=0.05,
        kl_stderr=0.002,
        tokens=2048,
        delta_nll_by_sequence=sequences,
        seconds=1.5,
    )


def make_plan():
    return Plan(
        model=make_catalogue().model,
        request=PlanRequest(
            hardware="h100-sxm-80gb", engine="vllm", budget=Budget(weight_bits=4.5), locks={"lm_head": "bf16"}
        ),
        assignments={"model.layers.0.mlp.down_proj": "int4_g64"},
        predicted=Prediction(
            delta_nll=0.1,
            delta_nll_stderr=0.01,
            kl=0.05,
            kl_stderr=0.01,
            base_perplexity=30.0,
            perplexity=33.2,
            perplexity_low=32.0,
            perplexity_high=34.0,
        ),
        memory=MemoryEstimate(
            weights_bytes=5 * 2**30,
            kv_cache_bytes=2**30,
            activation_bytes=0,
            overhead_bytes=0,
            limit_bytes=2**35,
            decided_bits=4.25,
            original_weights_bytes=2**34,
        ),
        reasons={"model.layers.0.mlp.down_proj": Reason(text="cheapest")},
    )


def make_evaluation(variant="plan"):
    return Evaluation(
        variant=variant,
        model=make_catalogue().model,
        text=TextSpec(text="python-docs", tokens=4096, seq_len=256),
        nll=3.4,
        nll_stderr=0.02,
        perplexity=math.exp(3.4),
        perplexity_stderr=0.6,
    )


def count_rows(store, table):
    with store._engine.connect() as connection:
        return connection.execute(text(f"SELECT count(*) FROM {table}")).scalar()


class Statements:
    """The statements that reach the database inside the block."""

    def __init__(self, store):
        self.engine, self.seen = store._engine, []

    def _note(self, connection, cursor, statement, parameters, context, executemany):
        if not statement.startswith("BEGIN"):
            self.seen.append(statement)

    def __enter__(self):
        event.listen(self.engine, "before_cursor_execute", self._note)
        return self.seen

    def __exit__(self, *_):
        event.remove(self.engine, "before_cursor_execute", self._note)
