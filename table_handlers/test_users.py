"""Users: announced, kept as cards, synchronised."""

from sqlalchemy import select

from cdc_reactor.testing import Harness, assert_registered
from table_handlers.crm import CrmBusy, CrmInMemory
from table_handlers.schema import author_cards
from table_handlers.users import (
    User,
    UserCreated,
    UserDeleted,
    UserRenamed,
    announce,
    crm_sync,
    keep_author_cards,
    sync_to_crm,
)

ADA = User(id=1, handle="ada", email="ada@forum.example")


class BusyCrm(CrmInMemory):
    """A CRM that is busy for the first requests about some users."""

    def __init__(self, **busy: int) -> None:
        super().__init__()
        self.busy = busy

    def save_contact(self, user_id: int, name: str, email: str | None) -> None:
        if self.busy.get(name):
            self.busy[name] -= 1
            raise CrmBusy
        super().save_contact(user_id, name, email)


def test_announces_an_arrival_a_new_name_and_a_departure() -> None:
    run = Harness(announce).insert(ADA).update(ADA, handle="countess").update(ADA, karma=7).delete(ADA).run()

    assert run.events == [
        UserCreated(user_id=1, handle="ada"),
        UserRenamed(user_id=1, old="ada", new="countess"),
        UserDeleted(user_id=1),
    ]


def test_a_table_that_sends_no_row_as_it_was_announces_departures_only() -> None:
    run = Harness(announce, replica_identity="default").update(ADA, handle="countess").delete(ADA).run().expect_acked()

    assert run.events == [UserDeleted(user_id=1)]


def test_a_changed_id_is_a_departure_and_an_arrival() -> None:
    run = Harness(announce, keep_author_cards).insert(ADA).update(ADA, id=2).run()

    arrivals = [UserCreated(user_id=user_id, handle="ada") for user_id in (1, 2)]
    assert run.events == [arrivals[0], UserDeleted(user_id=1), arrivals[1]]
    assert run.session.execute(select(author_cards)).all() == [(2, "ada")]


def test_cards_follow_users_and_go_with_them() -> None:
    harness = Harness(keep_author_cards).insert(ADA).insert(id=2, handle="bob").update(ADA, handle="countess")

    assert harness.run().session.execute(select(author_cards).order_by("id")).all() == [(1, "countess"), (2, "bob")]
    assert harness.delete(id=2, handle="bob").run().session.execute(select(author_cards)).all() == [(1, "countess")]
    assert harness.redeliver().run().session.execute(select(author_cards)).all() == [(1, "countess")]
    assert harness.truncate().run().session.execute(select(author_cards)).all() == []


def test_users_are_synchronised_to_the_crm() -> None:
    crm = CrmInMemory()

    Harness(crm_sync(crm)).insert(ADA).insert(id=2, handle="bob").delete(id=2, handle="bob").run().expect_acked()

    assert crm.contacts == {1: ("ada", "ada@forum.example")}


def test_what_the_crm_is_too_busy_for_comes_again() -> None:
    crm = BusyCrm(ada=3)

    run = Harness(crm_sync(crm)).insert(ADA).insert(id=2, handle="bob").run().expect_acked()

    assert crm.contacts == {1: ("ada", "ada@forum.example"), 2: ("bob", None)}
    assert run.runs == 5  # ada and bob; bob without ada; ada three times more


def test_a_crm_that_is_busy_for_ever_costs_the_change_in_question() -> None:
    run = Harness(crm_sync(BusyCrm(ada=99))).insert(ADA).insert(id=2, handle="bob").run()

    assert [letter.reason for letter in run.dead_letters] == ["the CRM is busy"]
    assert run.acked == 1


def test_all_are_registered() -> None:
    for handler in (announce, keep_author_cards, sync_to_crm):
        assert_registered(handler)
