"""Fused operations, each beside the plain form that its test holds it to.

``dispatch`` is what the rest of msa calls for a single operation, ``route`` for a whole choice of documents;
``reference`` holds the oracles, ``cpu`` (with ``routing.c``) and ``triton_*`` the implementations, ``check`` compares
them on any machine.
"""
