"""What NVIDIA's management library (NVML) knows of the GPUs that vGPUs live on, as shown attributes.

Everything here is optional: the Python module ``pynvml`` (distribution ``nvidia-ml-py``, our extra ``nvml``),
the library ``libnvidia-ml.so.1``, the driver. What is missing is left out (docs/reference/attributes.md).
"""
