"""The exceptions that a user is meant to read."""


class PatchGuardError(Exception):
    """Bad input or an impossible request.

    The message is one line that names the file or option at fault and what to do about it;
    the command line prints it and exits with status 1.
    """


class Interrupted(PatchGuardError):
    """Stopped by the user, with everything saved; the command line exits with status 130."""
