"""The error of a study without a single result."""


class EveryTrainingFailed(RuntimeError):
    """No training of a study succeeded; the message gives the reasons, and its folder holds the table of them."""
