"""What replaces the cloud on one machine: a strict Pub/Sub broker that any official client can talk to.

The broker is a machine of values (`broker`, `backlog`, `lanes`, `leases`, `filters`, `names`, `limits`, `wire`) with a
clock that is passed in; around it stand a SQLite store (`store`) and a gRPC server (`broker_server` and the services).
It must never be stricter or laxer than the documented service without saying so where it happens.
"""
