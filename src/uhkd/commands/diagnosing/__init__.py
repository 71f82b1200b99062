"""What `uhkd doctor` looks at: software, machine, places to write; each finding with what to do about it."""

from uhkd.commands.diagnosing.finding import Diagnosis, Finding
from uhkd.commands.diagnosing.machine import MACHINE
from uhkd.commands.diagnosing.places import PLACES
from uhkd.commands.diagnosing.software import SOFTWARE

__all__ = ["MACHINE", "PLACES", "SOFTWARE", "Diagnosis", "Finding"]
