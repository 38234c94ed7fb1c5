"""Blind tests: what was asked, the answers as they arrive, and votes until the result is revealed."""

from __future__ import annotations

import secrets
from collections.abc import Iterable

from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from advisor.errors import StorageError
from advisor.types import Answer, AnswersRequest, BlindTest, BlindTestSummary, Vote, now
from storage.deletions import deletion_of, kept
from storage.sessions import Sessions, from_document, new_id, to_document
from storage.tables import AnswerRow, BlindTestRow, PlanRow, VoteRow


class BlindTests(Sessions):
    """Queries of the tables `blind_tests`, `answers` and `votes`."""

    def open_blind_test(self, request: AnswersRequest) -> str:
        """The id of the newest test of this very request that still takes votes; a new one where there is none."""
        document = to_document(request)
        open_ones = select(BlindTestRow.id, BlindTestRow.request).where(
            BlindTestRow.plan_id == request.plan_id, BlindTestRow.revealed.is_(None), kept(BlindTestRow)
        )
        with self._writing() as session:
            for test_id, asked in session.execute(open_ones.order_by(BlindTestRow.number.desc())):
                if asked == document:
                    return test_id
            row = BlindTestRow(id=new_id(), plan_id=request.plan_id, request=document, created=now())
            row.prompts, row.shuffle = len(request.prompts), secrets.token_hex(16)
            row.deletion_id = deletion_of(session, "plan", request.plan_id)
            session.add(row)
            return row.id

    def blind_test(self, test_id: str) -> BlindTest | None:
        """The test with its answers, and with its votes in the order given; None where there is none of that id."""
        with self._reading() as session:
            row = session.scalar(select(BlindTestRow).where(BlindTestRow.id == test_id, kept(BlindTestRow)))
            if row is None:
                return None
            answers = select(AnswerRow).where(AnswerRow.test_id == test_id)
            votes = select(VoteRow).where(VoteRow.test_id == test_id)
            document = {
                "id": row.id,
                "request": row.request,
                "shuffle": row.shuffle,
                "answers": [_fields(Answer, a) for a in session.scalars(answers.order_by(AnswerRow.number))],
                "votes": [_fields(Vote, vote) for vote in session.scalars(votes.order_by(VoteRow.id))],
                "created": row.created,
                "revealed": row.revealed,
            }
        return from_document(BlindTest, document)

    def blind_tests(self, plan_id: str | None = None) -> list[BlindTestSummary]:
        """Blind tests, newest first, of one plan or all; one query."""
        counts = [
            select(func.count()).where(table.test_id == BlindTestRow.id).scalar_subquery().label(name)
            for name, table in (("answers", AnswerRow), ("votes", VoteRow))
        ]
        own = (BlindTestRow.id, BlindTestRow.plan_id, BlindTestRow.prompts, BlindTestRow.created, BlindTestRow.revealed)
        query = select(*own, PlanRow.model_name, *counts).join(PlanRow, PlanRow.id == BlindTestRow.plan_id)
        query = query.where(kept(BlindTestRow))
        if plan_id is not None:
            query = query.where(BlindTestRow.plan_id == plan_id)
        with self._reading() as session:
            rows = session.execute(query.order_by(BlindTestRow.number.desc()))
            return [BlindTestSummary(**row._mapping) for row in rows]

    def known_answers(self, keys: Iterable[str]) -> dict[str, Answer]:
        """Key -> an answer that some test has under it; those of deleted tests are not given again."""
        tests = select(BlindTestRow.id).where(kept(BlindTestRow))
        with self._reading() as session:
            rows = session.scalars(select(AnswerRow).where(AnswerRow.key.in_(list(keys)), AnswerRow.test_id.in_(tests)))
            return {row.key: from_document(Answer, _fields(Answer, row)) for row in rows}

    def save_answers(self, test_id: str, answers: Iterable[Answer]) -> None:
        """Store answers of a test, in place of what the same variant said to the same prompts before."""
        with self._writing() as session:
            for answer in answers:
                same = (AnswerRow.number == answer.number) & (AnswerRow.variant == answer.variant)
                session.execute(delete(AnswerRow).where(AnswerRow.test_id == test_id, same))
                session.add(AnswerRow(test_id=test_id, **answer.model_dump()))
                session.flush()

    def save_vote(self, test_id: str, vote: Vote) -> None:
        """Store a vote, in place of the same rater's on the same pair.

        Raises:
            StorageError: the result was revealed already.
        """
        with self._writing() as session:
            _refuse_revealed(session, test_id)
            same = (VoteRow.test_id == test_id) & (VoteRow.number == vote.number) & (VoteRow.rater == vote.rater)
            session.execute(delete(VoteRow).where(same))
            session.add(VoteRow(test_id=test_id, **vote.model_dump()))

    def withdraw_vote(self, test_id: str, rater: str) -> None:
        """Delete the rater's last vote, if there is one; raises StorageError once the result was revealed."""
        last = select(func.max(VoteRow.id)).where(VoteRow.test_id == test_id, VoteRow.rater == rater)
        with self._writing() as session:
            _refuse_revealed(session, test_id)
            session.execute(delete(VoteRow).where(VoteRow.id == last.scalar_subquery()))

    def reveal(self, test_id: str) -> None:
        """End the voting for good."""
        still_blind = (BlindTestRow.id == test_id) & BlindTestRow.revealed.is_(None)
        with self._writing() as session:
            session.execute(update(BlindTestRow).where(still_blind).values(revealed=now()))


def _fields(noun: type[Answer] | type[Vote], row: AnswerRow | VoteRow) -> dict[str, object]:
    return {field: getattr(row, field) for field in noun.model_fields}


def _refuse_revealed(session: Session, test_id: str) -> None:
    if session.scalar(select(BlindTestRow.revealed).where(BlindTestRow.id == test_id)) is not None:
        raise StorageError("The result of this blind test was shown, so it takes no more votes: start another one.")
