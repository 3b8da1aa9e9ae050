"""Files and pictures that a run passed over, or did not read as they are."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from vartok.errors import counted, warn
from vartok.images.channels import warn_of_grey
from vartok.sources.passed_over import warn_of_members


@dataclass
class Findings:
    """Files and pictures that were not read as they are, and are told at the end of a run.

    Attributes:
        members: for each tar that was read to its end, the counts of members passed over, by kind.
        damaged: a line for each damaged picture that was taken.
        grey: hashes of the places of pictures whose colours became grey levels.
    """

    members: dict[str, Counter[str]] = field(default_factory=dict)
    damaged: set[str] = field(default_factory=set)
    grey: set[bytes] = field(default_factory=set)

    def update(self, other: Findings) -> None:
        """Add the findings of another process; what both found counts once."""
        self.members.update(other.members)
        self.damaged |= other.damaged
        self.grey |= other.grey

    def warn(self) -> None:
        """Warn of damaged pictures that were taken, of colours converted to grey, and of members passed over.

        Warns:
            VartokWarning: there are some.
        """
        if self.damaged:
            pictures = counted(len(self.damaged), "damaged picture")
            warn(f"took what can be decoded of {pictures}, such as {min(self.damaged)}")
        warn_of_grey(len(self.grey))
        warn_of_members(sum(self.members.values(), Counter()))
