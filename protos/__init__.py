"""The contract between broker and fetchers, and how a client gets at the broker."""

import os

# grpc's core reads this when it is imported. By default it writes a line of its own to
# stderr for every failed handshake, again and again, past all logging of ours.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
