"""The scheduler extender and admission webhook: keeps migration targets off nodes that refuse their VM.

One process, several replicas, no leader, no reservations. Answers come from memory kept by watches; the
request path makes no API call and takes no lock. It only chooses: the guarantee is the device plugin's
(contract, chapter *Device plugin*, the guard).

==================  ====================================================================
:mod:`.wire`        what kube-scheduler and kube-apiserver send and get
:mod:`.table`       the verdicts for one VM, evaluated once per state of the cluster
:mod:`.filter`      ``POST /filter``
:mod:`.prioritize`  ``POST /prioritize``
:mod:`.admission`   ``POST /mutate``: required node affinity by name, or a denial
:mod:`.affinity`    node affinity: conjunction with names
:mod:`.denial`      the text of a denial
:mod:`.explain`     ``GET /explain``
:mod:`.caches`      watches that fill the fleet, and whether they can be trusted
:mod:`.server`      the aiohttp application
:mod:`.tls`         certificates, reloaded when they change
==================  ====================================================================
"""
