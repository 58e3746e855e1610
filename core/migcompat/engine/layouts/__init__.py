"""The layouts a declaration may be written in (semantics §2), from raw bytes to sets of attributes.

========================  =====================================================================
:mod:`.raw`               what a reader hands over: bytes, or why there are none
:mod:`.l1`                directories ``migration/self/<attr>``, ``migration/compatible/<attr>``
:mod:`.l2`                files ``migration/self``, ``migration/compatible``
:mod:`.l3`                one file ``migration_compatible``
:mod:`.l4`                the mdev type directory
:mod:`.lines`             the ``key=value`` lines that L2 and L3 share
========================  =====================================================================

Reading itself, and which layout is there, is :mod:`migcompat.sysfs.declaration`'s.
"""
