"""The client of experiments for GrowthBook, and a sink that publishes its allocations as events.

Features are evaluated here, by GrowthBook's own package (the extra `experiments`), which is imported with the first run
and not before. Only their definitions are fetched, beside the runs; no user is ever sent to GrowthBook.
https://docs.growthbook.io/lib/python

Neighbours: `experiments` has the interface, and a client for tests.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from importlib.util import find_spec
from pathlib import Path
from threading import Lock, Thread
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from msgspec import Struct

from cdc_reactor.errors import UsageError, WorldError
from cdc_reactor.events import Event
from cdc_reactor.experiments import Allocation

if TYPE_CHECKING:
    from growthbook import Experiment, Feature, GrowthBook, Result, UserContext

_log = logging.getLogger("cdc_reactor")

#: Takes a run's allocations for good before its message is acknowledged; what it raises fails the run.
AllocationSink: TypeAlias = Callable[[Sequence[Allocation]], None]

# Seconds that a fetch may take to connect, and to wait for each answer.
_PATIENCE = 10.0


class GrowthBookExperiments:
    """Experiments as GrowthBook defines them; thread-safe, one for the process.

    `features` is where the definitions are: an SDK endpoint ("https://cdn.growthbook.io/api/features/sdk-…"), a file of
    what such an endpoint answers, or a mapping of the same. They are read at the first run, and again, beside the runs,
    when they are older than `refresh` seconds; while that fails the last good ones are used. `attributes` are those
    that every user has, the environment for one; `decryption_key` is for endpoints that encrypt.

    Raises:
        UsageError: the extra `experiments` is not installed.
    """

    def __init__(
        self,
        features: str | Path | Mapping[str, Any],
        *,
        sink: AllocationSink,
        refresh: float = 60.0,
        decryption_key: str = "",
        attributes: Mapping[str, Any] | None = None,
    ) -> None:
        if find_spec("growthbook") is None:
            raise UsageError("experiments by GrowthBook need its package: pip install 'cdc-reactor[experiments]'")
        self._source = _Source(features, decryption_key)
        self._sink = sink
        self._refresh = refresh
        self._attributes = dict(attributes or {})
        self._lock = Lock()
        self._definitions: _Definitions | None = None
        self._due = float("-inf")
        self._loading: Future[_Definitions] | None = None
        self._is_failing = False

    def begin(self) -> GrowthBookAllocations:
        """Give a run its allocations; the first waits for the definitions.

        Raises:
            WorldError: there are no definitions, and they cannot be read.
        """
        return GrowthBookAllocations(self._current(), self._attributes, self._sink)

    def _current(self) -> _Definitions:
        with self._lock:
            if self._loading is None and monotonic() >= self._due:
                self._loading = Future()
                # A daemon thread, as an end of the process need not wait for it. One in `refresh` seconds at most.
                Thread(target=self._load, args=(self._loading,), name="experiments", daemon=True).start()
            definitions, loading = self._definitions, self._loading
        if definitions is not None:
            return definitions
        assert loading is not None, "without definitions it is always due"
        return loading.result()

    def _load(self, loading: Future[_Definitions]) -> None:
        try:
            definitions = self._source.read()
        except BaseException as error:  # noqa: BLE001 - a thread ends here; whoever waits raises it
            self._end_load(None)
            self._tell(error)
            loading.set_exception(error)
        else:
            self._end_load(definitions)
            self._is_failing = False
            loading.set_result(definitions)

    def _end_load(self, definitions: _Definitions | None) -> None:
        with self._lock:
            self._loading = None
            self._definitions = definitions or self._definitions
            if self._definitions is not None:
                self._due = monotonic() + self._refresh

    def _tell(self, error: BaseException) -> None:
        """Log the first of several failures in a row, unless a run hears of it anyway."""
        if self._definitions is not None and not self._is_failing:
            _log.warning("experiments go on with the definitions that they have: %s", error)
            self._is_failing = True


class GrowthBookAllocations:
    """The experiments of one run; not thread-safe."""

    def __init__(self, definitions: _Definitions, attributes: Mapping[str, Any], sink: AllocationSink) -> None:
        self._definitions = definitions
        self._attributes = attributes
        self._sink = sink
        self._user_id = ""
        self._noted: dict[tuple[str, str], Allocation] = {}

    def allocate(self, feature: str, *, user_id: str, default: Any, attributes: Mapping[str, Any] | None = None) -> Any:
        """Return the value that a feature has for a user, and note the experiments that decided it.

        The user's GrowthBook attribute `id` is `user_id`. A feature that is not defined has the default.
        """
        if feature not in self._definitions.features:
            # GrowthBook would log each of these.
            return default
        self._user_id = user_id
        user = {**self._attributes, **(attributes or {}), "id": user_id}
        return self._definitions.evaluator(user, self._note).get_feature_value(feature, default)

    def _note(self, *, experiment: Experiment[Any], result: Result[Any], user_context: UserContext) -> None:  # noqa: ARG002 - GrowthBook calls it by these names
        noted = Allocation(experiment.key, result.key, self._user_id, result.value)
        self._noted.setdefault((experiment.key, self._user_id), noted)

    def flush(self) -> None:
        """Hand what was noted to the sink, each experiment and user once."""
        if self._noted:
            self._sink(tuple(self._noted.values()))
            self._noted.clear()


# ── definitions ─────────────────────────────────────────────────────────────────────────────────────────────────────


class _Definitions(Struct, frozen=True):
    """What an endpoint answers, read once for all runs."""

    features: dict[str, Feature]
    saved_groups: dict[str, Any]
    contextual_bandits: dict[str, Any]

    def evaluator(self, user: dict[str, Any], note: Callable[..., None]) -> GrowthBook:
        """Make what evaluates features for a user, and tells of each experiment that the user is in."""
        from growthbook import GrowthBook

        return GrowthBook(
            attributes=user,
            features=self.features,
            saved_groups=self.saved_groups,
            contextual_bandits=self.contextual_bandits,
            on_experiment_viewed=note,
        )


class _Source:
    """Where definitions come from."""

    def __init__(self, features: str | Path | Mapping[str, Any], decryption_key: str) -> None:
        self._place = features
        self._decryption_key = decryption_key
        self._http: Any = None

    def read(self) -> _Definitions:
        """Read and check them; WorldError where that fails."""
        from growthbook import GrowthBook, feature_repo

        payload = self._payload()
        if not isinstance(payload, Mapping) or not {"features", "encryptedFeatures"} & payload.keys():
            raise self._refused("this is no answer of a GrowthBook SDK endpoint: it has no features")
        try:
            plain = feature_repo.decrypt_payload_sections(dict(payload), self._decryption_key)
        except ValueError:
            raise self._refused("they are encrypted; give the decryption_key") from None
        if plain is None:
            raise self._refused("the decryption_key does not fit")
        try:
            features = GrowthBook(features=plain["features"]).get_features()
        except (AttributeError, TypeError) as error:
            raise self._refused(f"a feature is malformed ({type(error).__name__})") from None
        return _Definitions(features, plain.get("savedGroups") or {}, plain.get("contextualBandits") or {})

    def _payload(self) -> Any:
        place = self._place
        if isinstance(place, Mapping):
            return place
        is_url = isinstance(place, str) and place.startswith(("http://", "https://"))
        data = self._fetched(str(place)) if is_url else self._from_file(Path(place))
        try:
            return json.loads(data)
        except ValueError:
            raise self._refused("this is no JSON") from None

    def _from_file(self, path: Path) -> bytes:
        try:
            return path.read_bytes()
        except OSError as error:
            raise self._refused(f"{error.strerror}") from None

    def _fetched(self, url: str) -> bytes:
        # A dependency of growthbook, whose own fetch logs why it failed and does not say so.
        import urllib3

        if self._http is None:
            self._http = urllib3.PoolManager(timeout=_PATIENCE, retries=urllib3.Retry(2, backoff_factor=0.2))
        try:
            answer = self._http.request("GET", url, headers={"Accept-Encoding": "gzip, deflate"})
        except urllib3.exceptions.HTTPError as error:
            raise self._refused(f"nothing answers ({type(error).__name__})") from None
        if answer.status != 200:
            raise self._refused(f"it answers {answer.status}")
        data: bytes = answer.data
        return data

    def _refused(self, why: str) -> WorldError:
        place = "the mapping" if isinstance(self._place, Mapping) else self._place
        return WorldError(f"the experiments' definitions cannot be read from {place}: {why}")


# ── allocations as events ───────────────────────────────────────────────────────────────────────────────────────────


class ExperimentAllocated(Event, topic="experiment.allocated.v1"):
    """A user was put into a variation of an experiment."""

    experiment: str
    variation: str
    user_id: str
    value: Any = None


class EventSender(Protocol):
    """What `publish_allocations` needs of an EventPublisher."""

    def publish(self, event: ExperimentAllocated, /) -> object:
        """Publish an event, and return when the broker has confirmed it."""


def publish_allocations(publisher: EventSender) -> AllocationSink:
    """Make a sink that publishes each allocation as ExperimentAllocated, and returns when all are confirmed."""

    def publish(allocations: Sequence[Allocation]) -> None:
        for a in allocations:
            publisher.publish(
                ExperimentAllocated(experiment=a.experiment, variation=a.variation, user_id=a.user_id, value=a.value)
            )

    return publish
