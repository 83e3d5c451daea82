"""The customer relationship system that users are synchronised to: its interface, and a stand-in without network."""

from typing import Protocol


class CrmBusy(Exception):
    """Raised when the CRM asks to come back later."""


class Crm(Protocol):
    """What we ask of the CRM. Both requests may be repeated: the second changes nothing."""

    def save_contact(self, user_id: int, name: str, email: str | None) -> None:
        """Create or update a contact; CrmBusy where it must wait."""

    def remove_contact(self, user_id: int) -> None:
        """Remove a contact, if there is one; CrmBusy where it must wait."""


class CrmInMemory:
    """A CRM that forgets everything when the process ends."""

    def __init__(self) -> None:
        self.contacts: dict[int, tuple[str, str | None]] = {}

    def save_contact(self, user_id: int, name: str, email: str | None) -> None:
        """Remember a contact."""
        self.contacts[user_id] = (name, email)

    def remove_contact(self, user_id: int) -> None:
        """Forget a contact."""
        self.contacts.pop(user_id, None)
