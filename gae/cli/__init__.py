"""The ``gae`` command: one module for each large subcommand."""
