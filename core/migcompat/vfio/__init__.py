"""Asking the kernel about a VFIO device by ioctl, before anybody uses it."""
