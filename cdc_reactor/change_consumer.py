"""A subscription of changes: its schemas, its heartbeats, its unknown tables. See `consumer` for all the rest."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from cdc_reactor.aside import aside
from cdc_reactor.consumer import WORLD_RETRY, Consumer, Subscription, Surroundings
from cdc_reactor.decoder import Decoder
from cdc_reactor.deferred_schemas import SchemaNeeded
from cdc_reactor.envelope import Drop
from cdc_reactor.errors import ReactorError, Stopped, WorldError
from cdc_reactor.messages import Delivery, Message
from cdc_reactor.reactor import Work
from cdc_reactor.routing import CdcRouter


class ChangeConsumer(Consumer):
    """Consumes the changes of one subscription."""

    def __init__(
        self,
        name: str,
        subscription: Subscription,
        router: CdcRouter,
        decoder: Decoder,
        *,
        surroundings: Surroundings,
    ) -> None:
        super().__init__(name, subscription, router, surroundings=surroundings, decoder=decoder)
        self._router = router
        self._heartbeats = 0
        #: When a heartbeat was last received, in Unix seconds; or None.
        self.last_heartbeat: float | None = None

    async def take_in(self, deliveries: list[Delivery]) -> None:
        """Hand deliveries to the reactor; where a schema is needed for that, fetch it first.

        Raises:
            Stopped: a change of an unknown table came, and the policy is to stop.
        """
        taken = 0
        while taken < len(deliveries):
            try:
                taken += self._receive(deliveries[taken:] if taken else deliveries)
            except SchemaNeeded as needed:
                # Nothing can be decoded meanwhile, and nothing may overtake.
                taken += self._reactor.taken
                self.advance()
                if not await self._fetch(needed):
                    self._subscription.nack(deliveries[taken:][::-1])
                    return
        self.advance()
        if (breaker := self._breakers.get("")) is not None:
            while breaker.is_open(self._loop.time()) and not self._draining.is_set():
                await self.sleep(WORLD_RETRY)
        if self._router.stopped_by is not None:
            raise Stopped(f"{self._router.stopped_by} has no handler, and unknown_table is stop")

    def _receive(self, deliveries: list[Delivery]) -> int:
        self._reactor.receive_all(deliveries, self._loop.time())
        heartbeats = self._router.tally.dropped[Drop.HEARTBEAT]
        if heartbeats != self._heartbeats:
            self._heartbeats = heartbeats
            self.last_heartbeat = self._around.clock()
        return len(deliveries)

    async def _fetch(self, needed: SchemaNeeded) -> bool:
        """Fetch a schema, however long that takes; tell whether it came before the end."""
        while not self._draining.is_set():
            try:
                if not await self._before_the_end(aside(needed.fetch)):
                    return False
            except WorldError as error:
                self.note_pause("schemas", self.name, str(error))
                await self.sleep(WORLD_RETRY)
            else:
                self.note_pause("schemas", self.name, "")
                return True
        return False

    async def _before_the_end(self, waiting: Coroutine[Any, Any, None]) -> bool:
        """Wait for something; tell whether it came before the drain began."""
        task, draining = asyncio.create_task(waiting), asyncio.create_task(self._draining.wait())
        await asyncio.wait({task, draining}, return_when=asyncio.FIRST_COMPLETED)
        draining.cancel()
        if not task.done():
            task.cancel()
            return False
        task.result()
        return True

    def table_of(self, message: Message) -> str:
        """Name the table of a message; empty where it cannot be read."""
        return self._router.table_of(message)

    def tell_run(self, work: Work, seconds: float) -> None:
        """Tell the telemetry of a batch, and how long ago its oldest change was committed."""
        committed = _committed_at(work)
        self._around.telemetry.worked(
            work.consumer.name,
            str(work.consumer.table_id),
            changes=len(work.held),
            seconds=seconds,
            attempt=work.attempt,
            lag=None if committed is None else max(0.0, self._around.clock() - committed),
        )

    def report(self) -> None:
        """Hand the router's totals to the telemetry."""
        tally = self._router.tally
        telemetry = self._around.telemetry
        telemetry.tallied(self.name, dropped=tally.drops(), changes=tally.changes(), undecodable=tally.undecodable)
        if self.last_heartbeat is not None:
            telemetry.heartbeat(self.name, self.last_heartbeat)


def _committed_at(work: Work) -> float | None:
    """Tell when the oldest change of a work was committed, in Unix seconds."""
    change: Any = work.held[0].subject
    try:
        committed = change.committed_at
    except ReactorError:
        return None
    return None if committed is None else float(committed.timestamp())
