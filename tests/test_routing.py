"""The CDC router: which handlers a message goes to, in which lane, and why it needs none. On real captures first."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import Field

from cdc_reactor.captures import find_captures
from cdc_reactor.changes import Batch, Create, Delete, Row, Truncate, Update
from cdc_reactor.decoder import Decoder
from cdc_reactor.envelope import Envelope, Operation, TableId
from cdc_reactor.errors import DecodeError, DefinitionError, ImageUnavailable, WorldError
from cdc_reactor.handlers import Context, Handler, handles
from cdc_reactor.messages import Delivery, Message, Settlement, Verdict
from cdc_reactor.reactor import EVERY_LANE, Held, Outcome, Reactor
from cdc_reactor.routing import Accept, CdcRouter, UnknownTable, by_table
from cdc_reactor.schemas import open_schemas

CAPTURES = Path(__file__).parent / "captures"
MANIFEST = json.loads((CAPTURES / "manifest.json").read_bytes())["files"]
ACK, NACK, DEAD_LETTER = Verdict.ACK, Verdict.NACK, Verdict.DEAD_LETTER
OPERATIONS = {"c": "create", "u": "update", "d": "delete", "t": "truncate"}


class User(Row, table="public.users"):
    id: int
    name: str | None = None


class Post(Row, table="public.posts"):
    id: int


class Vote(Row, table="public.votes", key=("post", "voter")):
    post: int
    voter: int


class Visit(Row, table="public.visits", key=()):
    pass


def handler(row: type[Row], name: str = "see", **options: Any) -> Handler[Any]:
    def see(batch: Batch[Row], ctx: Context) -> None: ...

    see.__annotations__.clear()
    return handles(row, name=name, **options)(see)


def router_of(
    *handlers: Handler[Any],
    decoder: Decoder | None = None,
    unknown_table: UnknownTable = "ack",
    accept: Accept | None = None,
) -> CdcRouter:
    return CdcRouter(handlers, decoder or Decoder(), unknown_table=unknown_table, accept=accept)


def delivery(  # noqa: PLR0917 - so that a test reads as a change does
    op: str,
    before: Any = None,
    after: Any = None,
    table: str = "public.users",
    key: str = "",
    source: Mapping[str, Any] | None = None,
) -> Delivery:
    schema, _, name = table.rpartition(".")
    where = source or {"name": "forum", "schema": schema, "table": name, "lsn": 7}
    body = {"before": before, "after": after, "source": where, "op": op}
    return Delivery(Message(json.dumps(body).encode(), ordering_key=key), "ack id")


def held(router: CdcRouter, what: Delivery) -> Held:
    routed = router.route(what)
    assert isinstance(routed, Held)
    return routed


def names(routed: Held) -> list[str]:
    return [consumer.name for consumer in routed.route.consumers]


def decoder_of(capture: str) -> Decoder:
    registry = MANIFEST[capture].get("registry")
    return Decoder(schemas=open_schemas(str(CAPTURES / registry) if registry else None))


def deliveries_of(capture: str) -> list[Delivery]:
    (found,) = find_captures([str(CAPTURES / capture)])
    messages = [m for m in found.messages() if isinstance(m, Message)]
    return [Delivery(message, n) for n, message in enumerate(messages)]


def route_all(router: CdcRouter, deliveries: Iterable[Delivery]) -> list[Held | Settlement]:
    return [router.route(each) for each in deliveries]


def all_at_once(router: CdcRouter, deliveries: Sequence[Delivery], size: int = 256) -> list[Any]:
    """Route lists of so many deliveries, and hold what the reactor would hold."""
    routed: list[Any] = []
    for at in range(0, len(deliveries), size):
        router.route_all(deliveries[at : at + size], routed)
    return [
        each if isinstance(each, Held | Settlement) else Held(what, each, each.route)
        for what, each in zip(deliveries, routed, strict=True)
    ]


def told(routed: Held | Settlement) -> tuple[Any, ...]:
    """Everything that a router says of a delivery."""
    if isinstance(routed, Settlement):
        return routed.delivery.ack_id, routed.verdict, routed.reason, str(routed.error), routed.handler
    change = routed.subject
    try:
        columns = change.columns
    except DecodeError as error:
        columns = str(error)
    schema = change.envelope.schema
    compiled = schema and (list(schema.converters), schema.defaults)
    seen = type(change), change.op, change.source, columns, compiled
    worst = routed.worst and told(routed.worst)
    return routed.delivery.ack_id, *seen, routed.route.stream, names(routed), routed.lane, worst


def counted(router: CdcRouter) -> tuple[Any, ...]:
    tally = router.tally
    drops, changes = tally.drops(), tally.changes()
    return tally.messages, tally.undecodable, drops, changes, tally.snapshot_reads(), tally.unhandled()


def mutated(bodies: Sequence[bytes], count: int, chance: random.Random) -> Iterator[bytes]:
    """Make messages that are mostly sound, and wrong in the rest in all the ways that bytes can be."""
    texts = [b'"payload"', b'"schema"', b'"source"', b'"op"', b"null", b"{}", b"1e999", b'"x"', b"\xff", b" ", b"}"]
    for _ in range(count):
        body = chance.choice(bodies)
        for _ in range(chance.choice((0, 0, 1, 1, 2))):
            at = chance.randrange(len(body) + 1)
            body = body[:at] + chance.choice((b"", *texts)) + body[at + chance.choice((0, 1, 1, 5, 20)) :]
        yield body


@pytest.mark.parametrize("capture", MANIFEST)
class TestTheForum:
    def test_what_is_counted_is_what_the_manifest_counts(self, capture):
        counts = MANIFEST[capture]["counts"]
        decoded = MANIFEST[capture].get("decoded", counts)
        ends = decoded.get("transaction_metadata", decoded)
        tables = {table: Counter(ops) for table, ops in decoded["by_table_op"].items()}
        router = router_of(decoder=decoder_of(capture))

        route_all(router, deliveries_of(capture))

        tally = router.tally
        assert (tally.messages, tally.undecodable) == (counts["records"], 0)
        assert tally.changes() == {
            table: {name: ops[op] for op, name in OPERATIONS.items()} for table, ops in tables.items()
        }
        assert tally.snapshot_reads() == {table: ops["r"] for table, ops in tables.items() if ops["r"]}
        assert Counter(tally.drops()) == Counter(
            heartbeat=counts["heartbeats"],
            tombstone=counts["tombstones"],
            transaction=sum(n for name, n in ends.items() if name.endswith(("BEGIN", "END"))),
            logical_message=decoded["messages"],
            snapshot_read=sum(ops["r"] for ops in tables.values()),
        )
        assert tally.unhandled() == {table: sum(ops[op] for op in OPERATIONS) for table, ops in tables.items()}

    def test_without_handlers_everything_is_acknowledged_with_its_reason(self, capture):
        router = router_of(decoder=decoder_of(capture))

        routed = route_all(router, deliveries_of(capture))

        assert all(isinstance(each, Settlement) and each.verdict is ACK for each in routed)
        reasons = Counter(each.reason for each in routed if isinstance(each, Settlement))
        assert reasons == Counter(router.tally.drops()) + Counter(unhandled=sum(router.tally.unhandled().values()))

    def test_handlers_get_the_changes_of_their_tables_and_nothing_else(self, capture):
        tables = MANIFEST[capture].get("decoded", MANIFEST[capture]["counts"])["by_table_op"]
        router = router_of(handler(User), handler(Vote), handler(Visit, snapshot=True), decoder=decoder_of(capture))

        routed = [each for each in route_all(router, deliveries_of(capture)) if isinstance(each, Held)]

        seen = Counter((str(each.subject.table_id), str(each.subject.op)) for each in routed)
        wanted = {"public.users", "public.votes", "public.visits"}
        assert seen == {(t, op): n for t, ops in tables.items() for op, n in ops.items() if t in wanted and op != "r"}
        assert set(router.tally.unhandled()) == set(tables) - wanted

    def test_changes_of_one_row_share_a_lane_with_or_without_an_ordering_key(self, capture):
        router = router_of(handler(User), handler(Vote), handler(Visit), decoder=decoder_of(capture))

        lanes: dict[Any, set[Any]] = {}
        for each in route_all(router, deliveries_of(capture)):
            if isinstance(each, Held) and each.subject.op is not Operation.TRUNCATE:
                row = (each.route.stream, *each.subject.key.values())
                lanes.setdefault(row, set()).add(each.lane)

        assert {len(of_row) for row, of_row in lanes.items() if len(row) > 1} == {1}
        assert len(lanes) > 3

    @pytest.mark.parametrize("size", [1, 7, 1000])
    def test_all_at_once_goes_where_each_alone_goes(self, capture, size):
        wanted = [handler(User, when_changed=["name"]), handler(User, "other"), handler(Vote), handler(Visit)]
        alone, together = (router_of(*wanted, decoder=decoder_of(capture)) for _ in range(2))
        deliveries = deliveries_of(capture) * 2

        routed = all_at_once(together, deliveries, size)

        assert list(map(told, routed)) == list(map(told, route_all(alone, deliveries)))
        assert counted(together) == counted(alone)

    @pytest.mark.parametrize("is_one_by_one", [False, True])
    def test_a_reactor_settles_the_whole_capture(self, capture, is_one_by_one):
        router = router_of(handler(User, max_size=2), handler(Vote), handler(Visit), decoder=decoder_of(capture))
        reactor = Reactor(router.route if is_one_by_one else router)
        deliveries = deliveries_of(capture)

        reactor.receive_all(deliveries, 0.0)
        while works := reactor.ready(0.0, flush=True):
            for work in works:
                reactor.complete(work, Outcome.acked(len(work.held)), 0.0)

        settled = reactor.settlements()
        assert sorted(s.delivery.ack_id for s in settled) == list(range(len(deliveries)))
        assert {s.verdict for s in settled} == {ACK}
        assert reactor.outstanding == 0


class TestLanes:
    def test_an_ordering_key_is_the_lane_and_no_row_is_looked_at(self):
        router = router_of(handler(User))

        assert held(router, delivery("c", after=None, key='{"id":1}')).lane == '{"id":1}'

    def test_without_one_the_key_column_is(self):
        router = router_of(handler(User))

        lanes = [
            held(router, each).lane
            for each in (
                delivery("c", after={"name": "ada", "id": 1}),
                delivery("u", before={"id": 1}, after={"id": 1, "name": "countess"}),
                delivery("d", before={"id": 1}),
                delivery("c", after={"id": 2}),
            )
        ]

        assert lanes == [(1,), (1,), (1,), (2,)]

    def test_a_composite_key_is_all_of_its_columns_in_the_order_of_the_row_model(self):
        router = router_of(handler(Vote))

        routed = held(router, delivery("c", after={"voter": 2, "post": 1}, table="public.votes"))

        assert routed.lane == (1, 2)

    def test_a_table_without_a_key_is_one_lane(self):
        router = router_of(handler(Visit))

        lanes = {held(router, delivery("c", after={"n": n}, table="public.visits")).lane for n in range(3)}

        assert len(lanes) == 1

    @pytest.mark.parametrize("row", [{}, {"id": [1]}, {"id": {}}, "no row"])
    def test_a_row_without_a_readable_key_is_in_the_lane_of_the_whole_table(self, row):
        router = router_of(handler(User))

        assert held(router, delivery("c", after=row)).lane == ""

    def test_one_key_in_two_tables_is_two_lanes(self):
        router = router_of(handler(User, max_size=1), handler(Post, max_size=1))
        reactor = Reactor(router.route)

        reactor.receive(delivery("c", after={"id": 1}, key='{"id":1}'), 0.0)
        reactor.receive(delivery("c", after={"id": 1}, table="public.posts", key='{"id":1}'), 0.0)

        assert len(reactor.ready(0.0, flush=True)) == 2

    def test_a_truncate_is_in_every_lane_whatever_its_ordering_key(self):
        router = router_of(handler(User))

        routed = held(router, delivery("t", key="default"))

        assert (routed.lane, type(routed.subject)) == (EVERY_LANE, Truncate)

    def test_two_connectors_with_the_same_table_have_streams_of_their_own(self):
        router = router_of(handler(User))
        sources = [{"name": name, "schema": "public", "table": "users"} for name in ("forum", "shop", "forum")]

        routes = [held(router, delivery("c", after={"id": 1}, source=source)).route for source in sources]

        table = TableId("public", "users")
        assert [route.stream for route in routes] == [("forum", table), ("shop", table), ("forum", table)]
        assert router.tally.changes() == {"public.users": {"create": 3, "update": 0, "delete": 0, "truncate": 0}}


class TestUnknownTables:
    def test_they_are_acknowledged_and_counted(self):
        router = router_of(handler(User))
        what = delivery("c", after={"id": 1}, table="public.badges")

        assert router.route(what) == Settlement(what, ACK, "unhandled")
        assert router.tally.unhandled() == {"public.badges": 1}

    def test_or_dead_lettered(self):
        router = router_of(unknown_table="dead-letter")
        what = delivery("d", before={"id": 1}, table="public.badges")

        assert router.route(what) == Settlement(what, DEAD_LETTER, "no handler wants public.badges")

    def test_or_given_back_while_the_first_of_them_says_why_to_stop(self):
        router = router_of(unknown_table="stop")
        first, second = (delivery("c", after={"id": 1}, table=table) for table in ("public.badges", "public.tags"))

        assert router.stopped_by is None
        assert [router.route(first), router.route(second)] == [
            Settlement(first, NACK, "unhandled"),
            Settlement(second, NACK, "unhandled"),
        ]
        assert router.stopped_by == TableId("public", "badges")

    @pytest.mark.parametrize("policy", ["ack", "dead-letter", "stop"])
    @pytest.mark.parametrize(("op", "reason"), [("r", "snapshot_read"), ("m", "logical_message")])
    def test_what_is_no_change_is_acknowledged_under_every_policy(self, policy, op, reason):
        router = router_of(unknown_table=policy)
        what = delivery(op, after={"id": 1}, table="public.badges")

        assert router.route(what) == Settlement(what, ACK, reason)
        assert router.stopped_by is None

    @pytest.mark.parametrize("policy", ["ack", "dead-letter", "stop"])
    def test_an_operation_that_no_handler_wants_is_acknowledged_under_every_policy(self, policy):
        router = router_of(handler(User, ops=(Create,)), unknown_table=policy)
        what = delivery("d", before={"id": 1})

        assert router.route(what) == Settlement(what, ACK, "no handler wants this operation")
        assert router.tally.unhandled() == {}


class TestWhatIsWanted:
    def test_ops_choose_the_handlers_of_each_change(self):
        router = router_of(
            handler(User, "all"),
            handler(User, "comings", ops=(Create,)),
            handler(User, "goings", ops=(Delete, Truncate)),
        )

        wanted = [
            names(held(router, each))
            for each in (
                delivery("c", after={"id": 1}),
                delivery("u", before={"id": 1}, after={"id": 1}),
                delivery("d", before={"id": 1}),
                delivery("t"),
            )
        ]

        assert wanted == [["all", "comings"], ["all"], ["all", "goings"], ["all", "goings"]]

    def test_each_operation_is_a_change_of_its_kind(self):
        router = router_of(handler(User, snapshot=True))

        kinds = [type(held(router, delivery(op, before={"id": 1}, after={"id": 1})).subject) for op in "rcudt"]

        assert kinds == [Create, Create, Update, Delete, Truncate]

    def test_rows_of_snapshots_go_to_the_handlers_that_ask_for_them(self):
        router = router_of(handler(User, "fill", snapshot=True, ops=(Create,)), handler(User, "react"))

        routed = held(router, delivery("r", after={"id": 1}))

        assert (names(routed), routed.subject.is_snapshot) == (["fill"], True)
        assert (router.tally.drops(), router.tally.snapshot_reads()) == ({}, {"public.users": 1})

    def test_accept_drops_what_it_does_not_want_before_anything_is_counted(self):
        def is_ours(envelope: Envelope, message: Message) -> bool:
            return envelope.source.table == "users" and message.ordering_key == "mine"

        router = router_of(handler(User), accept=is_ours)
        other = delivery("c", after={"id": 1}, key="yours")

        assert names(held(router, delivery("c", after={"id": 1}, key="mine"))) == ["see"]
        assert router.route(other) == Settlement(other, ACK, "filtered")
        assert router.tally.drops() == {"filtered": 1}
        assert router.tally.changes()["public.users"]["create"] == 1

    def test_bytes_that_are_no_change_are_dead_lettered_with_the_error(self):
        router = router_of(handler(User))
        what = Delivery(Message(b"{"), 1)

        settlement = router.route(what)

        assert isinstance(settlement, Settlement)
        assert isinstance(settlement.error, DecodeError)
        assert settlement == Settlement(what, DEAD_LETTER, str(settlement.error), settlement.error)
        assert (router.tally.undecodable, router.tally.messages) == (1, 1)

    def test_a_tombstone_is_dropped(self):
        router = router_of(handler(User))
        what = Delivery(Message(b""), 1)

        assert router.route(what) == Settlement(what, ACK, "tombstone")


class SilentRegistry:
    """Knows no schema, and does not answer when it is asked for one."""

    def schema(self, schema_id: int) -> Any:
        raise WorldError(f"the registry does not answer for {schema_id}")

    def named(self, name: str, revision: str) -> Any:
        raise WorldError(f"the registry does not answer for {name}@{revision}")

    def add(self, schema: Any) -> int:
        raise AssertionError(f"nothing brings a schema along: {schema}")


class TestAllAtOnce:
    def test_whatever_is_wrong_with_a_message_it_goes_where_it_goes_alone(self):
        captures = ("forum_schemas_off", "forum_schemas_on", "forum_one_topic")
        bodies = [line for c in captures for line in (CAPTURES / f"{c}.values.ndjson").read_bytes().splitlines()]
        bodies += [b"", b"{}", b"null", b'{"source":{"name":"forum","schema":"public","table":"users"},"op":"c"}']
        chance = random.Random("routed all at once")
        deliveries = [Delivery(Message(body), n) for n, body in enumerate(mutated(bodies, 4000, chance))]
        alone, together = (
            router_of(handler(User), handler(Vote), handler(Post, ops=(Create, Update))) for _ in range(2)
        )

        routed = all_at_once(together, deliveries, 50)

        for one, other, what in zip(routed, route_all(alone, deliveries), deliveries, strict=True):
            assert told(one) == told(other), what.message.data
        assert counted(together) == counted(alone)
        kinds = Counter(type(each).__name__ for each in routed)
        assert min(kinds["Held"], kinds["Settlement"]) > 200

    def test_a_change_of_a_table_that_is_known_stands_there_itself_with_its_route(self):
        router = router_of(handler(User))
        routed: list[Any] = []

        router.route_all([delivery("c", after={"id": 1}), delivery("r", after={"id": 1})], routed)
        router.route_all([delivery("c", after={"id": 2})], routed)

        assert [type(each) for each in routed] == [Held, Settlement, Create]
        assert routed[2].route is routed[0].route

    def test_tables_of_one_name_are_told_apart(self):
        class Other(Row, table="audit.users"):
            id: int

        wanted = [handler(User), handler(Other)]
        sources = [
            {"name": name, "schema": schema, "table": "users"} for name in ("a", "b") for schema in ("public", "audit")
        ]
        deliveries = [delivery("c", after={"id": 1}, source=source) for source in sources * 3]
        alone, together = router_of(*wanted), router_of(*wanted)

        routed = all_at_once(together, deliveries)

        assert list(map(told, routed)) == list(map(told, route_all(alone, deliveries)))
        assert counted(together) == counted(alone)

    def test_filters_and_limits_hold(self):
        body = delivery("c", after={"id": 1}).message.data
        longer = delivery("c", after={"id": 1000}).message.data
        router = router_of(handler(User), decoder=Decoder(max_bytes=len(body)), accept=lambda e, _: e.source.lsn == 7)
        limited = router_of(handler(User), decoder=Decoder(max_bytes=len(body)))
        elsewhere = delivery("c", source={"schema": "public", "table": "users"})
        deliveries = [Delivery(Message(body), 1), Delivery(Message(longer), 2), elsewhere]

        assert [type(each) for each in all_at_once(router, deliveries)] == [Held, Settlement, Settlement]
        assert [type(each) for each in all_at_once(limited, deliveries)] == [Held, Settlement, Held]

    def test_avro_in_json_is_read_with_its_schema_or_not_at_all(self):
        plain = delivery("c", after={"forum.public.users.Value": {"id": 1}})
        named = Message(plain.message.data, {"googclient_schemaname": "projects/p/schemas/s"})
        router = router_of(handler(User), decoder=Decoder(schemas=SilentRegistry()))
        routed: list[Any] = []

        with pytest.raises(WorldError, match="does not answer for projects/p/schemas/s"):
            router.route_all([plain, plain, Delivery(named, 1), plain], routed)

        assert [type(each) for each in routed] == [Held, Create]
        assert router.tally.messages == 2

    def test_what_came_before_an_error_of_the_world_is_taken_in(self):
        router = router_of(handler(User, max_size=1), decoder=Decoder(schemas=SilentRegistry()))
        reactor = Reactor(router)
        plain, avro = delivery("c", after={"id": 1}), Delivery(Message(b"\x00\x00\x00\x00\x07"), 1)

        with pytest.raises(WorldError, match="does not answer for 7"):
            reactor.receive_all([plain, plain, avro, plain], 0.0)
        assert (reactor.taken, reactor.outstanding) == (2, 2)

        reactor.receive_all([plain], 0.0)
        assert (reactor.taken, reactor.outstanding) == (1, 3)

    def test_of_no_deliveries_nothing_is_told(self):
        assert all_at_once(router_of(handler(User)), [], 1) == []
        Reactor(router_of(handler(User))).receive_all([], 0.0)


class TestWhenChanged:
    def test_an_update_passes_where_one_of_the_columns_changed(self):
        router = router_of(handler(User, when_changed=("name",)))
        same = delivery("u", before={"id": 1, "name": "ada", "n": 1}, after={"id": 1, "name": "ada", "n": 2})

        routed = held(router, delivery("u", before={"id": 1, "name": "ada"}, after={"id": 1, "name": "countess"}))

        assert names(routed) == ["see"]
        assert router.route(same) == Settlement(same, ACK, "nothing changed that a handler wants")

    def test_it_is_about_updates_only(self):
        router = router_of(handler(User, when_changed=("name",)))

        for each in (delivery("c", after={"id": 1}), delivery("d", before={"id": 1}), delivery("t")):
            assert names(held(router, each)) == ["see"]

    def test_each_handler_has_its_own_and_they_share_stream_and_queue(self):
        router = router_of(handler(User, "names", when_changed=("name",)), handler(User, "all"))
        same = delivery("u", before={"id": 1, "name": "ada"}, after={"id": 1, "name": "ada"})

        some, again, every = (
            held(router, same),
            held(router, same),
            held(router, delivery("u", before={"id": 1, "name": "a"}, after={"id": 1, "name": "b"})),
        )

        assert (names(some), names(every)) == (["all"], ["names", "all"])
        assert some.route is again.route
        assert some.route.stream == every.route.stream

    def test_without_a_before_image_it_is_dead_lettered_with_the_cure(self):
        router = router_of(handler(User, "names", when_changed=("name",)))
        what = delivery("u", before=None, after={"id": 1, "name": "ada"})

        settlement = router.route(what)

        assert isinstance(settlement, Settlement)
        assert isinstance(settlement.error, ImageUnavailable)
        assert settlement == Settlement(what, DEAD_LETTER, str(settlement.error), settlement.error, "names")
        assert "ALTER TABLE public.users REPLICA IDENTITY FULL" in settlement.reason

    def test_a_column_that_was_not_sent_has_not_changed(self):
        router = router_of(handler(User, when_changed=("name",)))
        what = delivery("u", before={"id": 1}, after={"id": 1})

        assert router.route(what) == Settlement(what, ACK, "nothing changed that a handler wants")

    def test_an_image_that_is_no_row_is_dead_lettered_in_the_handlers_name(self):
        router = router_of(handler(User, "names", when_changed=("name",)))
        what = delivery("u", before=5, after={"id": 1})

        settlement = router.route(what)

        assert isinstance(settlement, Settlement)
        assert settlement == Settlement(what, DEAD_LETTER, settlement.reason, settlement.error, "names")
        assert "a row image is an object or null, not int" in settlement.reason

    def test_on_the_forum_only_renamed_users_pass(self):
        capture = "forum_schemas_off.values.ndjson"
        router = router_of(handler(User, when_changed=("name",)))
        updates = [json.loads(line) for line in (CAPTURES / capture).read_bytes().splitlines() if b'"op":"u"' in line]
        users = [u for u in updates if u["source"]["table"] == "users"]

        routed = [
            router.route(Delivery(Message(json.dumps(u).encode()), n)) for n, u in enumerate(users) if u["before"]
        ]

        renamed = [n for n, u in enumerate(users) if u["before"] and u["before"]["name"] != u["after"]["name"]]
        assert [each.delivery.ack_id for each in routed if isinstance(each, Held)] == renamed


class TestDefinitions:
    def test_two_row_models_for_one_table_are_refused(self):
        class Person(Row, table="public.users"):
            id: int

        with pytest.raises(DefinitionError, match=r"public\.users has two Row models, User \(.+\) and Person \(.+\)"):
            router_of(handler(User, "one"), handler(Person, "two"))

    def test_two_handlers_of_a_table_with_one_name_are_refused(self):
        with pytest.raises(DefinitionError, match=r"public\.users has two handlers named 'see': .+ and .+"):
            router_of(handler(User), handler(User))

    def test_one_name_in_two_tables_is_fine(self):
        users, posts = handler(User), handler(Post)

        assert by_table([users, posts]) == {
            TableId("public", "users"): (users,),
            TableId("public", "posts"): (posts,),
        }


class TestOtherDatabases:
    def test_mysql_has_databases_instead_of_schemas(self):
        class Customer(Row, table="inventory.customers"):
            id: int

        router = router_of(handler(Customer))
        source = {
            "connector": "mysql",
            "name": "shop",
            "db": "inventory",
            "table": "customers",
            "file": "bin.1",
            "pos": 4,
        }

        routed = held(router, delivery("c", after={"id": 1}, source=source))

        assert (routed.route.stream, routed.lane) == (("shop", TableId("inventory", "customers")), (1,))
        assert routed.subject.after == Customer(id=1)

    def test_mongodb_has_collections_and_documents_in_strings(self):
        class Customer(Row, table="inventory.customers", key=("_id",)):
            id: int = Field(alias="_id")

        router = router_of(handler(Customer))
        source = {"connector": "mongodb", "name": "shop", "db": "inventory", "collection": "customers", "ord": 31}

        routed = held(router, delivery("c", after='{"_id": 1004, "name": "Anne"}', source=source))

        assert (routed.route.stream, routed.lane) == (("shop", TableId("inventory", "customers")), (1004,))
        assert routed.subject.after == Customer.model_validate({"_id": 1004})
