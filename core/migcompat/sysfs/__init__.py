"""Reading sysfs: the devices of a machine, and what each says about itself."""
