"""The ``gae`` command, with a module for each large subcommand."""
