"""React to database changes that Debezium captures: typed rows, ordered batches, one module a table."""

__version__ = "0.1.0"
