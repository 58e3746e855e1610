"""The operator: answers, for every VM with VFIO devices, where it could migrate and why not elsewhere.

=====================  ==================================================================================
:mod:`.cli`            command line
:mod:`.app`            wiring of one process: client, kopf, worker, resync, health
:mod:`.handlers`       kopf's event handlers: decode, hand on
:mod:`.mirror`         what the operator knows of the cluster; refuses what is older than it knows
:mod:`.resync`         lists every kind: before the first answer, and from time to time
:mod:`.question`       what a MigrationCompatibility asks, as a migrant to be surveyed
:mod:`.answer`         the survey as status: counts, groups, conditions (pure)
:mod:`.reconcile`      what is to be done about one object: create, patch, delete, say (pure)
:mod:`.targets`        what is to be done about migrations' target pods (pure)
:mod:`.policies`       what each CompatibilityPolicy governs, as its status (pure)
:mod:`.memory`         what was told last, and since when an answer is in doubt (pure)
:mod:`.retries`        which waiting migrations are worth another try (pure)
:mod:`.writer`         does it: the only module that writes to the API server
:mod:`.worker`         when: debounce, urgency, coalescing, backoff
=====================  ==================================================================================

Reference of conditions, reasons and events: docs/reference/operator.md.
"""
