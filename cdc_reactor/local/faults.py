"""What goes wrong on demand. Pure values; the services ask before they answer."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from cdc_reactor.local.refusals import Code, Refused, invalid

#: How an ack request that is to be lost is answered, and whether it is applied all the same.
LOST, UNAVAILABLE, UNCONFIRMED, TRANSIENT = "lost", "unavailable", "unconfirmed", "transient"
ACK_FAULTS = (LOST, UNAVAILABLE, UNCONFIRMED, TRANSIENT)


@dataclass(slots=True)
class Faults:
    """The faults in force.

    `delay` holds every response with messages back for so many seconds after it was leased. `refuse_until` refuses all
    calls before that moment of the event loop's clock. `stream_life` ends streams after so many seconds, as the service
    does about every half hour. The next `ack_requests` ack requests are treated as `ack_fault` says:

    lost         answered OK and forgotten
    unavailable  answered UNAVAILABLE and forgotten
    unconfirmed  applied, and answered UNAVAILABLE
    transient    forgotten, and answered with TRANSIENT_FAILURE_SERVICE_UNAVAILABLE for each ack id
    """

    delay: float = 0.0
    refuse_until: float = -inf
    stream_life: float = inf
    ack_requests: int = 0
    ack_fault: str = LOST

    def admit(self, loop_time: float) -> None:
        """Let a call in; raises UNAVAILABLE while all are refused."""
        if loop_time < self.refuse_until:
            raise unavailable("The broker was told to refuse everything")

    def drop_acks(self, count: int, fault: str) -> None:
        """Treat the next ack requests so."""
        if fault not in ACK_FAULTS:
            raise invalid(f"There is no ack fault {fault!r}; there are {', '.join(ACK_FAULTS)}.")
        self.ack_requests, self.ack_fault = count, fault

    def ack_request(self) -> str:
        """Return how to treat an ack request that came in, empty for honestly."""
        if not self.ack_requests:
            return ""
        self.ack_requests -= 1
        return self.ack_fault


def unavailable(why: str) -> Refused:
    """Blame the broker."""
    return Refused(Code.UNAVAILABLE, f"{why}.")
