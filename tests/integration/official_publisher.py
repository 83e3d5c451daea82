"""Publishes by google-cloud-pubsub, as applications of others do: `python -m tests.integration.official_publisher`.

Every line of its input is a message, `{"topic", "data" (base64), "attributes", "key"}`, or in place of the data
`"candidate"`, the fields of a MatchedCandidate; it prints the messages' ids, in order. PUBSUB_EMULATOR_HOST says where
to publish. It knows nothing of ours.
"""

from __future__ import annotations

import base64
import json
import sys
from typing import Any

from google.cloud import pubsub_v1

from tests.integration.candidates import MatchedCandidate


def main() -> None:
    """Publish what is told, and wait until all of it is confirmed."""
    ordered = pubsub_v1.types.PublisherOptions(enable_message_ordering=True)
    client = pubsub_v1.PublisherClient(publisher_options=ordered)
    futures = []
    for line in sys.stdin:
        told = json.loads(line)
        topic = client.topic_path("p", told["topic"])
        futures.append(
            client.publish(topic, _data(told), ordering_key=told.get("key", ""), **told.get("attributes", {}))
        )
    for future in futures:
        sys.stdout.write(f"{future.result(timeout=30)}\n")
    client.stop()


def _data(told: Any) -> bytes:
    if "candidate" in told:
        return bytes(MatchedCandidate(**told["candidate"]).SerializeToString())
    return base64.b64decode(told["data"])


if __name__ == "__main__":
    main()
