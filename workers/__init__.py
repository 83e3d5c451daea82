"""Workers of the forum, one concern a module, each with its test beside it: copy the one that is nearest.

reputation     count in the database, once for each event however often it comes; wait for what has not come yet
notifications  tell people: a welcome, an upvote
digest         heavy work in a process of its own (`cdc-reactor run --group personalized-digest`); an experiment

They react to events that the package `table_handlers` publishes, and to topics of others. `cdc-reactor run` on a local
broker and the Harness create the tables of `metadata`; in production a migration does.
"""

from workers.schema import metadata

__all__ = ["metadata"]
