"""The agent on each node: finds VFIO devices, publishes and serves them, guards migration targets.

=====================  ======================================================================================
:mod:`.cli`            the command ``migcompat-device-plugin`` and its flags
:mod:`.app`            what runs beside what, from start to SIGTERM
:mod:`.inventory`      one scan as pools of devices; what changed between two (pure)
:mod:`.sysfs`          scans in a thread of their own, with a deadline
:mod:`.wakeups`        when to scan: on the kernel's events, and now and then
:mod:`.probes`         asking devices, before they are advertised, whether they can migrate
:mod:`.bootid`         which boot of the machine this is
:mod:`.problems`       what keeps an agent from its work, as log and conditions say it
:mod:`.state`          what the agent knows at this moment
:mod:`.status`         that knowledge as the status of a VFIONode and labels of a Node (pure)
:mod:`.publisher`      writing both to the API server, only when they change
:mod:`.manager`        the life of the resource servers: serve, register, register again
:mod:`.server`         the device plugin gRPC service of one resource
:mod:`.allocate`       what a container gets for its devices
:mod:`.preferred`      steering: which free devices a pod should get
:mod:`.guard`          the check before a migration target starts
:mod:`.inquiry`        what the API server says about a target pod and its source
:mod:`.obligations`    writing dynamic attributes to a device
:mod:`.allocations`    which pod holds which device
:mod:`.foreign`        devices under ids of other plugins (pure)
:mod:`.observing`      mode observe: which device is which id of the plugin that serves it (pure)
:mod:`.observation`    mode observe at work: asking what plugins offer, remembering whose devices were
:mod:`.devnodes`       the device nodes of the host
:mod:`.departure`      does the agent leave its node for good?
:mod:`.metrics`        figures for Prometheus
=====================  ======================================================================================
"""
