"""Wire contract of the PodResources API v1 (generated from ``podresources.proto``)."""
