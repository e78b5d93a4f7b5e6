"""The contract between broker and fetchers, and what all processes have in common."""

import os

# gRPC's core reads this at import. By default it writes a line to stderr for every failed
# handshake, again and again, past the process's logging.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
