"""The compatibility engine: when may a device's state migrate to another device.

Pure: no I/O, no Kubernetes, no clock. One module a chapter of the semantics (docs/semantics.md):

========================  =====================================================================
:mod:`.declaration`       §1  what a device says about itself
:mod:`.attributes`        §2  reading rules: values, keys, aliases, canonical forms
:mod:`.layouts`           §2  the four layouts, from raw bytes to a declaration
:mod:`.matching`          §3  the stages of matching one source against one entry
:mod:`.versions`          §3  rule V
:mod:`.templates`         §3  rule T
:mod:`.dynamic`           §3  which attributes may ever be written to a target
:mod:`.verdict`           §4  the verdict over all entries
:mod:`.trace`             §3  how a verdict was found, attribute by attribute
:mod:`.reasons`           §4  the reasons of verdicts
:mod:`.policy`            §5  policies: keys, selection, supplied attributes
:mod:`.assignment`        §6  several devices, one node
========================  =====================================================================
"""
