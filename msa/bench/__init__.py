"""Routing and the engine measured on the reader's own machine, against the best that could be used instead.

``peers`` holds every way to route, ``cells`` what is measured, ``measure`` how, ``engine`` the whole engine, ``gpu`` what only
a GPU can show; ``python -m msa.bench`` runs them.
"""
