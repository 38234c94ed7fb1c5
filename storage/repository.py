"""The repository: the only place that queries; nouns of `advisor.types` in and out, in short sessions."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

from sqlalchemy import bindparam, case, delete, func, insert, select, update
from sqlalchemy.orm import InstrumentedAttribute, Session

from advisor.errors import StorageError
from advisor.types import (
    CalibrationSpec,
    Catalogue,
    Evaluation,
    Measurement,
    ModelSummary,
    Plan,
    PlanSummary,
    ProfileSummary,
    SensitivityProfile,
    StoredEvaluation,
    now,
)
from storage.blind_tests import BlindTests
from storage.deletions import Deletions, deletion_of, forget_undone, kept
from storage.job_queue import JobQueue
from storage.sessions import from_document, new_id, to_document
from storage.space import Space
from storage.tables import EvaluationRow, MeasurementRow, ModelRow, PlanRow, ProfileRow

_PLAN_COLUMNS = tuple(getattr(PlanRow, field) for field in PlanSummary.model_fields)
_MEASUREMENT_COLUMNS = tuple(getattr(MeasurementRow, field) for field in Measurement.model_fields)
_SCORE_COLUMNS = tuple(c for c in _MEASUREMENT_COLUMNS if c.key not in ("delta_nll_by_sequence", "projections"))


class Repository(JobQueue, BlindTests, Deletions, Space):
    """Everything stored. Each method is one transaction; a write that fails leaves nothing behind.

    Every method raises StorageError when the database is full, locked, read-only, out of reach or not understood.
    Made by `storage.engine.open_repository`; may be shared between threads. What was deleted is in no answer, unless
    it is asked for as such (`storage.deletions`).
    """

    # ------------------------------------------------------------------------------------------ models

    def save_catalogue(self, catalogue: Catalogue) -> None:
        """Store the catalogue, replacing the one of the same fingerprint and source."""
        with self._writing() as session:
            _model_row_id(session, catalogue, replace=True)

    def catalogue_for_source(self, source: str) -> Catalogue | None:
        """The catalogue last saved for a model id, folder or file."""
        query = select(ModelRow.catalogue).where(ModelRow.source == source, kept(ModelRow))
        query = query.order_by(ModelRow.saved.desc(), ModelRow.id.desc()).limit(1)
        with self._reading() as session:
            document = session.scalar(query)
        return None if document is None else from_document(Catalogue, document)

    def models(self) -> list[ModelSummary]:
        """All models, the last saved first; one query, the catalogues stay where they are."""
        columns = [getattr(ModelRow, field) for field in ModelSummary.model_fields]
        query = select(*columns).where(kept(ModelRow)).order_by(ModelRow.saved.desc(), ModelRow.id.desc())
        with self._reading() as session:
            return [ModelSummary(**row._mapping) for row in session.execute(query)]

    def rename_model(self, model_id: int, label: str) -> None:
        """Give the model a name of the user's own, beside the one that it came with."""
        self._rename(ModelRow.id, model_id, label=label)

    # ------------------------------------------------------------------------------ sensitivity profiles

    def open_profile(self, header: SensitivityProfile) -> SensitivityProfile:
        """The stored sensitivity profile of `header.id` with its measurements, stored now if it was not.

        Measurements in `header` are stored with a new profile and ignored for one that exists. One that was deleted
        is there again, without the plans that went with it.
        """
        _refuse_not_finite(header.measurements)
        with self._writing() as session:
            row = session.get(ProfileRow, header.id)
            if row is not None and row.deletion_id is not None:
                _model_row_id(session, header.catalogue)
                row.deletion_id = None
                forget_undone(session)
            if row is None:
                session.add(_profile_row(header, _model_row_id(session, header.catalogue)))
                session.flush()
                _insert_measurements(session, header.id, header.measurements)
            stored = _load_profile(session, header.id)
        assert stored is not None
        return stored

    def add_measurements(self, profile_id: str, measurements: Iterable[Measurement]) -> None:
        """Store measurements; one of the same layer and format replaces the older."""
        measurements = tuple({(m.layer, m.format): m for m in measurements}.values())
        _refuse_not_finite(measurements)
        if not measurements:
            return
        with self._writing() as session:
            _delete_measurements(session, profile_id, measurements)
            _insert_measurements(session, profile_id, measurements)

    def profile(self, profile_id: str, whole: bool = True) -> SensitivityProfile | None:
        """The sensitivity profile with all its measurements, in the order measured.

        Args:
            whole: with what was seen of every sequence; without, it is read in a fraction of the time, for a look.
        """
        with self._reading() as session:
            return _load_profile(session, profile_id, whole)

    def profiles(self) -> list[ProfileSummary]:
        """All sensitivity profiles, newest first, without their measurements: two queries, however many there are."""
        rows = select(ProfileRow, ModelRow.name, ModelRow.source, ModelRow.fingerprint).join(
            ModelRow, ModelRow.id == ProfileRow.model_id
        )
        rows = rows.where(kept(ProfileRow))
        exact = func.sum(case((MeasurementRow.method == "exact", 1), else_=0))
        counts = select(
            MeasurementRow.profile_id, MeasurementRow.format, func.count(), exact, func.sum(MeasurementRow.tokens)
        )
        counts = counts.group_by(MeasurementRow.profile_id, MeasurementRow.format)
        counts = counts.order_by(func.min(MeasurementRow.id))
        with self._reading() as session:
            measured: dict[str, dict[str, tuple[int, int, int]]] = {}
            for profile_id, format_name, *counted in session.execute(counts):
                measured.setdefault(profile_id, {})[format_name] = tuple(map(int, counted))
            ordered = rows.order_by(ProfileRow.created.desc(), ProfileRow.id)
            return [
                _profile_summary(row, name, source, fingerprint, measured.get(row.id, {}))
                for row, name, source, fingerprint in session.execute(ordered)
            ]

    def rename_profile(self, profile_id: str, name: str) -> None:
        """Give the sensitivity profile a name of the user's own."""
        self._rename(ProfileRow.id, profile_id, name=name)

    # ------------------------------------------------------------------------------------------- plans

    def save_plan(self, plan: Plan, profile_id: str | None, name: str = "") -> str:
        """Store the plan under a new id, which is returned; `profile_id` is None for a plan from elsewhere."""
        row = PlanRow(
            id=new_id(),
            profile_id=profile_id,
            name=name,
            model_name=plan.model.name,
            hardware=plan.request.hardware,
            engine=plan.request.engine,
            decided_bits=plan.memory.decided_bits,
            total_bytes=plan.memory.total_bytes,
            perplexity=plan.predicted.perplexity,
            formats=dict(Counter(plan.assignments.values()).most_common()),
            refined=plan.refinement is not None,
            document=to_document(plan),
            created=now(),
        )
        with self._writing() as session:
            row.deletion_id = deletion_of(session, "profile", profile_id)
            return _added(session, row)

    def plan(self, plan_id: str) -> Plan | None:
        """The plan, or None where there is none of that id."""
        with self._reading() as session:
            document = session.scalar(select(PlanRow.document).where(PlanRow.id == plan_id, kept(PlanRow)))
        return None if document is None else from_document(Plan, document)

    def find_plan(self, plan: Plan) -> str | None:
        """The id under which this very plan is stored, the newest of several; None where it is not."""
        alike = (PlanRow.model_name == plan.model.name) & (PlanRow.total_bytes == plan.memory.total_bytes)
        query = select(PlanRow.id, PlanRow.document).where(alike, kept(PlanRow)).order_by(PlanRow.number.desc())
        with self._reading() as session:
            found = session.execute(query)
            return next((plan_id for plan_id, document in found if from_document(Plan, document) == plan), None)

    def plans(self, profile_id: str | None = None) -> list[PlanSummary]:
        """Plans, newest first, of one sensitivity profile or all; one query, the documents stay where they are."""
        query = select(*_PLAN_COLUMNS).where(kept(PlanRow)).order_by(PlanRow.number.desc())
        if profile_id is not None:
            query = query.where(PlanRow.profile_id == profile_id)
        with self._reading() as session:
            return [PlanSummary(**row._mapping) for row in session.execute(query)]

    def rename_plan(self, plan_id: str, name: str) -> None:
        """Give the plan a name of the user's own."""
        self._rename(PlanRow.id, plan_id, name=name)

    # ------------------------------------------------------------------------------------- evaluations

    def save_evaluation(self, evaluation: Evaluation, plan_id: str | None = None) -> str:
        """Store the evaluation under a new id, which is returned."""
        document = to_document(evaluation)
        row = EvaluationRow(id=new_id(), plan_id=plan_id, name="", document=document, created=evaluation.created)
        with self._writing() as session:
            row.deletion_id = deletion_of(session, "plan", plan_id)
            return _added(session, row)

    def evaluations(self, plan_id: str | None = None) -> list[Evaluation]:
        """Evaluations in the order stored, of one plan or all."""
        query = select(EvaluationRow.document).where(kept(EvaluationRow)).order_by(EvaluationRow.number)
        if plan_id is not None:
            query = query.where(EvaluationRow.plan_id == plan_id)
        with self._reading() as session:
            return [from_document(Evaluation, document) for document in session.scalars(query)]

    def stored_evaluations(self) -> list[StoredEvaluation]:
        """All evaluations with their ids and names, newest first; one query."""
        columns = (EvaluationRow.id, EvaluationRow.name, EvaluationRow.plan_id, EvaluationRow.document)
        query = select(*columns).where(kept(EvaluationRow)).order_by(EvaluationRow.number.desc())
        with self._reading() as session:
            return [
                StoredEvaluation(id=id, name=name, plan_id=plan_id, evaluation=from_document(Evaluation, document))
                for id, name, plan_id, document in session.execute(query)
            ]

    def rename_evaluation(self, evaluation_id: str, name: str) -> None:
        """Give the evaluation a name of the user's own."""
        self._rename(EvaluationRow.id, evaluation_id, name=name)

    # ---------------------------------------------------------------------------------------- plumbing

    def _rename(self, column: InstrumentedAttribute, identifier: str | int, **name: str) -> None:
        change = update(column.class_).where(column == identifier, kept(column.class_)).values(**name)
        with self._writing() as session:
            changed = session.execute(change).rowcount
        if not changed:
            raise StorageError(f"There is nothing stored under the id {identifier}; reload and choose again.")


# ------------------------------------------------------------------------------- rows from nouns and back


def _added(session: Session, row: PlanRow | EvaluationRow) -> str:
    session.add(row)
    session.flush()
    return row.id


def _model_row_id(session: Session, catalogue: Catalogue, replace: bool = False) -> int:
    model = catalogue.model
    same = (ModelRow.fingerprint == model.fingerprint) & (ModelRow.source == model.source)
    row = session.scalar(select(ModelRow).where(same))
    if row is None:
        row = ModelRow(fingerprint=model.fingerprint, source=model.source, label="")
        session.add(row)
    row.deletion_id = None  # who meets a deleted model again wants it back
    if replace or row.id is None:
        row.name, row.catalogue, row.saved = model.name, to_document(catalogue), now()
    session.flush()
    return row.id


def _profile_row(header: SensitivityProfile, model_id: int) -> ProfileRow:
    return ProfileRow(
        id=header.id,
        model_id=model_id,
        name="",
        method=header.method,
        around=header.around,
        dtype=header.dtype,
        calibration=to_document(header.calibration),
        baseline=to_document(header.baseline),
        provenance=dict(header.provenance),
        schema_version=header.schema_version,
        created=header.created,
    )


def _load_profile(session: Session, profile_id: str, whole: bool = True) -> SensitivityProfile | None:
    query = select(ProfileRow, ModelRow.catalogue).join(ModelRow, ModelRow.id == ProfileRow.model_id)
    found = session.execute(query.where(ProfileRow.id == profile_id, kept(ProfileRow))).one_or_none()
    if found is None:
        return None
    row, catalogue = found
    measured = (
        select(*(_MEASUREMENT_COLUMNS if whole else _SCORE_COLUMNS))
        .where(MeasurementRow.profile_id == profile_id)
        .order_by(MeasurementRow.id)
    )
    document = {
        "schema_version": row.schema_version,
        "id": row.id,
        "catalogue": catalogue,
        "calibration": row.calibration,
        "method": row.method,
        "around": row.around,
        "dtype": row.dtype,
        "baseline": row.baseline,
        "measurements": [dict(measurement._mapping) for measurement in session.execute(measured)],
        "created": row.created,
        "provenance": row.provenance,
    }
    return from_document(SensitivityProfile, document)


def _profile_summary(
    row: ProfileRow, model_name: str, source: str, fingerprint: str, counted: dict[str, tuple[int, int, int]]
) -> ProfileSummary:
    """`counted`: format -> its measurements, how many of them are exact, and the sum of their tokens."""
    measured, exact, tokens = (sum(column) for column in zip((0, 0, 0), *counted.values(), strict=True))
    calibration = from_document(CalibrationSpec, row.calibration)
    return ProfileSummary(
        id=row.id,
        name=row.name,
        model_name=model_name,
        source=source,
        fingerprint=fingerprint,
        text=calibration.text,
        samples=calibration.samples,
        seq_len=calibration.seq_len,
        method=row.method,
        around=bool(row.around),
        dtype=row.dtype,
        created=row.created,
        measured=measured,
        exact=exact,
        tokens=tokens,
        formats=tuple(counted),
    )


def _delete_measurements(session: Session, profile_id: str, measurements: Iterable[Measurement]) -> None:
    column = MeasurementRow.__table__.c
    same = (column.layer == bindparam("same_layer")) & (column.format == bindparam("same_format"))
    query = delete(MeasurementRow.__table__).where(column.profile_id == profile_id, same)
    session.connection().execute(query, [{"same_layer": m.layer, "same_format": m.format} for m in measurements])


def _insert_measurements(session: Session, profile_id: str, measurements: Iterable[Measurement]) -> None:
    rows = [{"profile_id": profile_id, **to_document(measurement)} for measurement in measurements]
    if rows:
        session.execute(insert(MeasurementRow), rows)


def _refuse_not_finite(measurements: Iterable[Measurement]) -> None:
    # SQLite would turn NaN into NULL, and no plan can weigh a number that is none.
    for m in measurements:
        if not all(map(math.isfinite, (m.delta_nll, m.delta_nll_stderr, m.kl, m.kl_stderr, *m.delta_nll_by_sequence))):
            raise StorageError(
                f"The measurement of {m.layer} in {m.format} is not a finite number, so it was not saved; "
                "leave that format out, or measure in fp32."
            )
