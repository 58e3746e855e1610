"""What passes between components: typed custom resources, names, labels and annotations.

Pure data. The contract (docs/reference/contract.md) is normative for every name in here; the CRD schemas in
``charts/migcompat/files/crds`` describe the same fields.
"""
