"""Handlers of the forum's tables, one module a table, each with its test beside it: copy the one that is nearest.

users     announce by typed events; keep a copy and clean it up; sync to a third party, with retries
posts     announce once, although the table sends no row as it was before; keep what workers must know
comments  denormalise: count rows into another table; react to one column only
votes     the row before and after, and what to do where it was not sent; a composite key
visits    a table without a key; truncate

The package `workers` reacts to the events that are published here.

`cdc-reactor replay` and the Harness create the tables of `metadata`; in production a migration does.
"""

from table_handlers.schema import metadata

__all__ = ["metadata"]
