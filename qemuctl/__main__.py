"""``python -m qemuctl`` is the command line."""

from qemuctl.cli.main import main

if __name__ == "__main__":
    main()
