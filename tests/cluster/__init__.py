"""The test cluster: a real control plane, and stand-ins for what a machine would add."""

import os

# Read by grpc when it is imported; otherwise it reports every connection that a plugin closes.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
