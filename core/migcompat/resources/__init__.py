"""Which extended resource a device is advertised under: by a configuration file, or by default names."""
