"""The command `python -m deploy.local`; `make run` calls it."""

from protos.process import extras

if __name__ == "__main__":
    extras.run("deploy.local.command", extra="local")
