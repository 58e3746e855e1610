"""migcompat: when may a VFIO device's state migrate to another device, and which nodes have one."""

__version__ = "0.1.0"
