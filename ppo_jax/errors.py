"""Errors a user can act on: one clear line each, and the exit code the command ends with."""


class PPOJaxError(Exception):
    """Base of the errors that end a command with one line instead of a traceback."""

    exit_code = 1


class ConfigError(PPOJaxError):
    """Unusable option, flag, experiment file or model folder: exit code 2."""

    exit_code = 2


class DataError(PPOJaxError):
    """Unusable data file or row: exit code 2."""

    exit_code = 2


class NumericalError(PPOJaxError):
    """Too many non-finite updates in a row: exit code 3."""

    exit_code = 3


class CheckpointError(PPOJaxError):
    """A checkpoint that cannot be restored: exit code 4."""

    exit_code = 4


class LockedError(PPOJaxError):
    """Another run holds the run folder: exit code 5."""

    exit_code = 5


class StorageError(PPOJaxError):
    """The run folder or an output cannot be written: exit code 6."""

    exit_code = 6


class RewardError(PPOJaxError):
    """A host-side reward raised or returned something unusable: exit code 7."""

    exit_code = 7


class Preempted(PPOJaxError):
    """Told to end by a signal; what was reached is on the disk: exit code 75."""

    exit_code = 75
