"""The program ``qemuctl``, and ``python -m qemuctl``.

A command server is asked before the command line is loaded, which takes most of the
time of a short command.
"""

from qemuctl.command_server import client


def main() -> None:
    """Runs the command line of this process, in a worker where there is a server."""
    client.run()
    from qemuctl.cli.main import main as cold

    cold()


if __name__ == "__main__":
    main()
