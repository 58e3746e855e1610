"""The kubelet's gRPC APIs, from both sides of its unix sockets.

``deviceplugin_v1beta1`` and ``podresources_v1`` hold the wire contract (``*.proto``) and the code generated
from it (``make generate``). :mod:`.registration` and :mod:`.podresources` are what the agent calls.
"""
