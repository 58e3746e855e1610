"""Which nodes take which VM: verdicts over the cluster's objects, held in memory.

Pure, like the engine it calls: objects go in (VFIONodes, CompatibilityPolicies, Nodes, launcher pods, VMIs),
answers come out. Extender, operator and guard all ask here, so that they cannot disagree.
"""
