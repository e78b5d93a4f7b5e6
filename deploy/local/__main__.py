"""The command `python -m deploy.local`, which `make run` stands for."""

from protos.process import extras

if __name__ == "__main__":
    extras.run("deploy.local.command", extra="local")
