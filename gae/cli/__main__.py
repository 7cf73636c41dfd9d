"""``python -m gae.cli``: the ``gae`` command, for launchers that start a module, as ``torchrun -m gae.cli``."""

from gae.cli.main import main

if __name__ == "__main__":
    main()
