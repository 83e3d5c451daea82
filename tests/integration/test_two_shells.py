"""The same from shell to shell: `cdc-reactor broker`, `cdc-reactor run` and the official client, nothing in between."""

from __future__ import annotations

import base64
import json

import pytest

from cdc_reactor.database import open_engine
from cdc_reactor.messages import Message
from tests import shells
from tests.daemon_stage import Stage
from tests.integration import forum
from tests.shells import until
from workers.schema import reputations, rewarded_upvotes

CHANGES = forum.of_tables(forum.captured("forum_schemas_on.records.ndjson"), "posts", "votes")


def line(message: Message, topic: str) -> str:
    told = {
        "topic": topic,
        "data": base64.b64encode(message.data).decode(),
        "attributes": dict(message.attributes),
        "key": message.ordering_key,
    }
    return json.dumps(told) + "\n"


@pytest.mark.parametrize("options", [(), ("--processes", "2")], ids=["threads", "processes"])
def test_two_shells_turn_debeziums_bytes_into_reputation_and_notifications(start, tmp_path, options):
    address = start("broker", "--port", "0", "--memory").says(r"listening on (\S+:\d+)")[1]
    daemon = start("run", "--pubsub-host", address, "--project", "p", "--health-port", "0", *options)
    daemon.says(r"/readyz and /metrics")
    stage = Stage(address)
    stage.subscribe("told", forum.NOTIFICATIONS)
    stage.subscribe("letters", "cdc-dead-letters")
    engine = open_engine(f"sqlite:///{tmp_path}/.cdc-reactor/run.db")

    posts, votes = forum.of_tables(CHANGES, "posts"), forum.of_tables(CHANGES, "votes")
    ids = shells.publish(address, "".join(line(change, "cdc") for change in posts))
    # Every votes' worker would wait for its post; but nobody here waits for 5 s.
    until(forum.is_settled(stage), "the posts are acknowledged")
    ids += shells.publish(address, "".join(line(change, "cdc") for change in votes))

    assert len(set(ids)) == len(CHANGES)
    until(lambda: len(forum.rows(engine, rewarded_upvotes)) == 3, "all upvotes are rewarded")
    until(forum.is_settled(stage), "all is acknowledged")
    assert forum.rows(engine, reputations) == [(1, 10), (6, 20)]
    told = [json.loads(message.data)["dedupe_key"] for message in stage.take("told")]
    assert sorted(told) == ["post-upvoted:1", "post-upvoted:3"]
    assert stage.take("letters") == []
    assert stage.statistics("cdc")["acked"] == len(CHANGES)
    daemon.terminate()
    assert daemon.status() == 0
    assert "Traceback" not in daemon.err
    stage.close()
    engine.dispose()
